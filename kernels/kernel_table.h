// The one table of CPU kernels: declaration, selection, tests and benchmarks all read its rows.
#ifndef KERNELS_KERNEL_TABLE_H_
#define KERNELS_KERNEL_TABLE_H_

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/attention.h"
#include "kernels/cpu_features.h"

namespace hybridgen {

// All operations of one ISA level. Functions take any supported dtype, head size and format at run time and
// dispatch inside to fully specialised code.
struct KernelSet {
  const char* name;
  Isa isa;
  InitRowsFn init_rows;
  AttendFn attend;
  FinalizeRowsFn finalize_rows;
  MergeRowsFn merge_rows;
  WriteKvFn write_kv;
  ConvertPageFn convert_page;
};

// Rows of the table, lowest ISA first. Static storage.
absl::Span<const KernelSet> AllKernelSets();

// The best row that `features` may run. Never fails: the portable row runs everywhere.
const KernelSet& SelectKernelSet(const CpuFeatures& features);

// The row of exactly this ISA, or an error that names what the CPU lacks.
absl::StatusOr<const KernelSet*> FindKernelSet(const CpuFeatures& features, Isa isa);

}  // namespace hybridgen

#endif  // KERNELS_KERNEL_TABLE_H_
