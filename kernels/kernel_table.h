// The one table of CPU kernels: declaration, selection, tests and benchmarks all read its rows.
#ifndef KERNELS_KERNEL_TABLE_H_
#define KERNELS_KERNEL_TABLE_H_

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu_features.h"
#include "kernels/kernel_set.h"

namespace hybridgen {

// Rows of the table, lowest ISA first. Static storage.
absl::Span<const KernelSet> AllKernelSets();

// The fastest row that `features` may run, which is the last one unless its instructions are slow on this CPU. Never
// fails: the portable row runs everywhere.
const KernelSet& SelectKernelSet(const CpuFeatures& features);

// The row of exactly this ISA, or FailedPrecondition naming what the CPU lacks.
absl::StatusOr<const KernelSet*> FindKernelSet(const CpuFeatures& features, Isa isa);

}  // namespace hybridgen

#endif  // KERNELS_KERNEL_TABLE_H_
