// Prints what the cost model says of spreads and of streaming, as the tables of docs/topology.md. Predictions from
// round bandwidths, nothing measured.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "scheduler/cost_model.h"

namespace hybridgen {
namespace {

constexpr double kGiga = 1e9;
constexpr StepBytes kBytes = {8 * kGiga, 8 * kGiga, 0};

std::string Milliseconds(const absl::StatusOr<StepCost>& cost) {
  return cost.ok() ? absl::StrFormat("%.1f ms", cost->seconds * 1e3) : "does not fit";
}

std::string Percent(double share) { return absl::StrFormat("%.0f %%", 100 * share); }

// The next whole weight of DRAM to 1 of CXL.
InterleaveWeights WholeWeights(double dram, double cxl) { return {std::max(1.0, std::round(dram / cxl)), 1}; }

void PrintSpreads() {
  struct Row {
    double dram;
    double cxl;
    double dram_room;
  };
  std::cout << "| DRAM, CXL | room in DRAM | all in DRAM | role priority | proportional | V on CXL | interleave 1:1 | "
               "interleave by bandwidth |\n|---|---|---|---|---|---|---|---|\n";
  for (const Row& row : {Row{300, 30, kUnlimited}, Row{300, 60, kUnlimited}, Row{200, 36, kUnlimited},
                         Row{600, 30, kUnlimited}, Row{300, 30, 15}, Row{300, 30, 12}}) {
    Platform platform;
    platform.host.dram = {{row.dram * kGiga, row.dram_room * kGiga}};
    platform.host.cxl = {{row.cxl * kGiga}};
    const InterleaveWeights weights = WholeWeights(row.dram, row.cxl);
    const absl::StatusOr<StepCost> proportional = PredictStep(platform, kBytes, SpreadKind::kProportional);
    std::cout << "| " << row.dram << ", " << row.cxl << " GB/s | "
              << (std::isinf(row.dram_room) ? "all" : absl::StrCat(row.dram_room, " GB")) << " | "
              << Milliseconds(PredictStep(platform, kBytes, SpreadKind::kAllDram)) << " | "
              << Milliseconds(PredictStep(platform, kBytes, SpreadKind::kRolePriority)) << " | "
              << Milliseconds(proportional) << " | "
              << Percent(proportional.ok() ? proportional->value_share_on_cxl : 0) << " | "
              << Milliseconds(PredictStep(platform, kBytes, SpreadKind::kInterleave)) << " | "
              << Milliseconds(PredictStep(platform, kBytes, SpreadKind::kInterleave, weights)) << " (" << weights.dram
              << ":" << weights.cxl << ") |\n";
  }
}

void PrintStreaming() {
  std::cout << "| CPU attends | step | limit | useful share to stream |\n|---|---|---|---|\n";
  for (const double cpu : {100, 200, 250, 300, 400}) {
    Platform platform;
    platform.host.dram = {{300 * kGiga}};
    platform.cpu_bytes_per_second = cpu * kGiga;
    platform.device = DeviceSide{4000 * kGiga, 4000 * kGiga, 50 * kGiga};
    const absl::StatusOr<StepCost> cost = PredictStep(platform, kBytes, SpreadKind::kAllDram);
    if (!cost.ok()) continue;
    std::cout << "| " << cpu << " GB/s | " << Milliseconds(cost) << " | " << StepLimitName(cost->limit) << " | "
              << Percent(cost->least_streaming_share) << " to " << Percent(cost->most_streaming_share) << " |\n";
  }
}

}  // namespace
}  // namespace hybridgen

int main() {
  hybridgen::PrintSpreads();
  std::cout << "\n";
  hybridgen::PrintStreaming();
}
