// The rows of the kernel table and their selection.
#include "kernels/kernel_table.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/kernel_sets.h"

namespace hybridgen {

absl::Span<const KernelSet> AllKernelSets() {
  static const KernelSet kRows[] = {kPortableKernels, kAvx2Kernels, kAvx512Kernels, kAvx512Bf16Kernels,
                                    kAmxBf16Kernels};
  return kRows;
}

const KernelSet& SelectKernelSet(const CpuFeatures& features) {
  const absl::Span<const KernelSet> rows = AllKernelSets();
  size_t best = 0;
  for (size_t i = 1; i < rows.size(); ++i) {
    if (!Supports(features, rows[i].isa)) continue;
    if (rows[i].isa == Isa::kAvx512Bf16 && !features.fast_bf16_dot) continue;
    best = i;
  }
  return rows[best];
}

absl::StatusOr<const KernelSet*> FindKernelSet(const CpuFeatures& features, Isa isa) {
  for (const KernelSet& row : AllKernelSets()) {
    if (row.isa != isa) continue;
    const std::string missing = MissingFeatures(features, isa);
    if (missing.empty()) return &row;
    return absl::FailedPreconditionError(absl::StrCat("kernels for isa '", IsaName(isa), "' need ", missing,
                                                      ", which this CPU lacks (it has: ", features.ToString(),
                                                      "); use '", SelectKernelSet(features).name, "'"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("isa ", static_cast<int>(isa),
                   " has no kernels; use portable (0), avx2 (1), avx512 (2), avx512_bf16 (3) or amx_bf16 (4)"));
}

}  // namespace hybridgen
