// The rows of the kernel table and their selection.
#include "kernels/kernel_table.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/kernel_rows.h"

namespace hybridgen {
namespace {

// Whether the instructions that set `isa` apart are worth their place on this CPU.
bool IsFast(const CpuFeatures& features, Isa isa) { return isa != Isa::kAvx512Bf16 || features.fast_bf16_dot; }

void Take(const KernelRow& row, KernelSet& set) {
  switch (row.operation) {
    case Operation::kInitRows:
      set.init_rows = row.init_rows;
      break;
    case Operation::kFinalizeRows:
      set.finalize_rows = row.finalize_rows;
      break;
    case Operation::kMergeRows:
      set.merge_rows = row.merge_rows;
      break;
    case Operation::kWriteKv:
      set.write_kv = row.write_kv;
      break;
    case Operation::kConvertPage:
      set.convert_page = row.convert_page;
      break;
    case Operation::kSelection:
      set.selection = row.selection;
      break;
    case Operation::kAttend:
      for (int format = 0; format < kNumPageFormats; ++format) {
        if ((row.pages.formats & BitOf(static_cast<PageFormat>(format))) == 0) continue;
        for (int dtype = 0; dtype < kNumDTypes; ++dtype) {
          if ((row.pages.dtypes & BitOf(static_cast<DType>(dtype))) == 0) continue;
          AttendFn(&by_heads)[kNumHeadClasses] = set.attend_by[format][dtype];
          by_heads[static_cast<int>(HeadClass::kMultipleOf32)] = row.attend;
          if (row.pages.heads == HeadClass::kAny) by_heads[static_cast<int>(HeadClass::kAny)] = row.attend;
        }
      }
      break;
  }
  set.isa = row.isa;
  set.name = IsaName(row.isa);
}

}  // namespace

absl::Span<const KernelRow> AllKernelRows() {
  static const std::vector<KernelRow>* const kTable = [] {
    auto* table = new std::vector<KernelRow>;
    for (const KernelRows& rows :
         {kPortableKernels, kAvx2Kernels, kAvx512Kernels, kAvx512VnniKernels, kAvx512Bf16Kernels, kAmxBf16Kernels}) {
      table->insert(table->end(), rows.rows, rows.rows + rows.count);
    }
    return table;
  }();
  return *kTable;
}

absl::Span<const Isa> AllIsas() {
  static const std::vector<Isa>* const kIsas = [] {
    auto* isas = new std::vector<Isa>;
    for (const KernelRow& row : AllKernelRows()) {
      if (isas->empty() || isas->back() != row.isa) isas->push_back(row.isa);
    }
    return isas;
  }();
  return *kIsas;
}

KernelSet SelectKernels(const CpuFeatures& features) {
  KernelSet set;
  for (const KernelRow& row : AllKernelRows()) {
    if (Supports(features, row.isa) && IsFast(features, row.isa)) Take(row, set);
  }
  return set;
}

absl::StatusOr<KernelSet> FindKernels(const CpuFeatures& features, Isa isa) {
  const absl::Span<const Isa> isas = AllIsas();
  if (std::find(isas.begin(), isas.end(), isa) == isas.end()) {
    std::string known;
    for (const Isa level : isas) {
      absl::StrAppend(&known, known.empty() ? "" : ", ", IsaName(level), " (", static_cast<int>(level), ")");
    }
    return absl::InvalidArgumentError(
        absl::StrCat("isa ", static_cast<int>(isa), " has no kernels; accepted: ", known));
  }
  if (const std::string missing = MissingFeatures(features, isa); !missing.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("kernels for isa '", IsaName(isa), "' need ", missing,
                                                      ", which this CPU lacks (it has: ", features.ToString(),
                                                      "); use '", SelectKernels(features).name, "'"));
  }
  KernelSet set;
  bool reached = false;
  for (const KernelRow& row : AllKernelRows()) {
    if (reached && row.isa != isa) break;
    reached |= row.isa == isa;
    if (row.isa == isa || (Supports(features, row.isa) && IsFast(features, row.isa))) Take(row, set);
  }
  return set;
}

}  // namespace hybridgen
