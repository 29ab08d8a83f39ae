// The row that each ISA source of this folder exports. Constant data, not functions: code compiled with ISA flags must
// not run before the CPU was asked.
#ifndef KERNELS_CPU_KERNEL_SETS_H_
#define KERNELS_CPU_KERNEL_SETS_H_

#include "kernels/kernel_set.h"

namespace hybridgen {

extern const KernelSet kPortableKernels;
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
extern const KernelSet kAvx512Bf16Kernels;
extern const KernelSet kAmxBf16Kernels;

}  // namespace hybridgen

#endif  // KERNELS_CPU_KERNEL_SETS_H_
