// The one table of CPU kernels: declaration, selection, tests and benchmarks all read its rows.
#ifndef KERNELS_KERNEL_TABLE_H_
#define KERNELS_KERNEL_TABLE_H_

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu_features.h"
#include "kernels/kernel_set.h"

namespace hybridgen {

// The table, lowest ISA first. Static storage.
absl::Span<const KernelRow> AllKernelRows();
// The ISA levels that have rows, in the same order.
absl::Span<const Isa> AllIsas();

// For every operation and class of pages the last row that `features` may run and whose instructions are not slow on
// this CPU. Never fails: the portable rows run everywhere.
KernelSet SelectKernels(const CpuFeatures& features);

// The same up to the rows of `isa`, which count whether they are slow or not. Errors: FailedPrecondition naming what
// the CPU lacks.
absl::StatusOr<KernelSet> FindKernels(const CpuFeatures& features, Isa isa);

}  // namespace hybridgen

#endif  // KERNELS_KERNEL_TABLE_H_
