// The rows that each ISA source of this folder exports. Constant data, not functions: code compiled with ISA flags must
// not run before the CPU was asked.
#ifndef KERNELS_CPU_KERNEL_ROWS_H_
#define KERNELS_CPU_KERNEL_ROWS_H_

#include "kernels/kernel_set.h"

namespace hybridgen {

extern const KernelRows kPortableKernels;
extern const KernelRows kAvx2Kernels;
extern const KernelRows kAvx512Kernels;
extern const KernelRows kAvx512Bf16Kernels;
extern const KernelRows kAvx512VnniKernels;
extern const KernelRows kAmxBf16Kernels;

}  // namespace hybridgen

#endif  // KERNELS_CPU_KERNEL_ROWS_H_
