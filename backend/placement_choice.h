// Which placement policy the host tiers get, and with what share: from the options and the tiers' bandwidths.
#ifndef BACKEND_PLACEMENT_CHOICE_H_
#define BACKEND_PLACEMENT_CHOICE_H_

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "backend/backend_options.h"
#include "backend/head_groups.h"
#include "memory/placement.h"
#include "memory/tier.h"

namespace hybridgen {

struct ChosenPlacement {
  PlacementPolicy policy = PlacementPolicy::kRolePriority;
  double value_share_on_cxl = 0;  // kProportional
  std::string reason;             // "DRAM 20.1 GB/s measured, CXL 5.0 GB/s paced": for the log
};

// The rate at which the CPU worker's CPUs read a tier's memory, in bytes per second.
using MeasureTier = std::function<absl::StatusOr<double>(Tier tier)>;

// Measures with little memory of the tier, for 200 ms at most. The nodes of head groups count together.
absl::StatusOr<double> MeasureTierSpeed(const BackendOptions& options, const HeadGroups& head_groups, Tier tier);

// `key_bytes` and `value_bytes` of a block. Paced rates are taken as they are given, others are measured, and only
// where they decide something.
// Errors: InvalidArgument (proportional with a CXL tier of plain memory, which has no speed of its own); those of
// `measure` where proportional was asked for. kAuto then falls back to role priority and says why.
absl::StatusOr<ChosenPlacement> ChoosePlacement(const BackendOptions& options, int64_t key_bytes, int64_t value_bytes,
                                                const MeasureTier& measure);

}  // namespace hybridgen

#endif  // BACKEND_PLACEMENT_CHOICE_H_
