// The operations of one ISA level: a row of the kernel table. Free of library headers, because the sources that are
// compiled with ISA flags include it (docs/kernels.md, "One definition per ISA").
#ifndef KERNELS_KERNEL_SET_H_
#define KERNELS_KERNEL_SET_H_

#include "kernels/attention.h"
#include "kernels/isa.h"
#include "kernels/selection.h"

namespace hybridgen {

// Functions take any supported dtype, head size and format at run time and dispatch inside to specialised code.
struct KernelSet {
  const char* name;
  Isa isa;
  InitRowsFn init_rows;
  AttendFn attend;
  FinalizeRowsFn finalize_rows;
  MergeRowsFn merge_rows;
  WriteKvFn write_kv;
  ConvertPageFn convert_page;
  SelectionKernels selection;
};

}  // namespace hybridgen

#endif  // KERNELS_KERNEL_SET_H_
