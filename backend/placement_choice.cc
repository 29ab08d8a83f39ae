#include "backend/placement_choice.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "memory/arena.h"
#include "memory/node_probe.h"
#include "scheduler/cost_model.h"

namespace hybridgen {
namespace {

constexpr size_t kMostProbeThreads = 64;

ChosenPlacement RolePriority(std::string reason) { return {PlacementPolicy::kRolePriority, 0, std::move(reason)}; }

// The tiers' rates in bytes per second, and how each is known.
absl::StatusOr<double> Rate(const BackendOptions& options, Tier tier, const MeasureTier& measure, std::string& reason) {
  const double paced =
      1e9 * (tier == Tier::kDram ? options.dram_gigabytes_per_second : options.cxl_gigabytes_per_second);
  double rate = paced;
  if (paced == 0) {
    absl::StatusOr<ReadSpeed> speed = measure(tier);
    if (!speed.ok()) return speed.status();
    rate = speed->bytes_per_second;
  }
  absl::StrAppendFormat(&reason, "%s%s %.1f GB/s %s", reason.empty() ? "" : ", ", tier == Tier::kDram ? "DRAM" : "CXL",
                        1e-9 * rate, paced == 0 ? "measured" : "paced");
  return rate;
}

absl::StatusOr<ChosenPlacement> Proportional(const BackendOptions& options, int64_t key_bytes, int64_t value_bytes,
                                             const MeasureTier& measure) {
  ChosenPlacement chosen;
  chosen.policy = PlacementPolicy::kProportional;
  absl::StatusOr<double> dram = Rate(options, Tier::kDram, measure, chosen.reason);
  if (!dram.ok()) return dram.status();
  absl::StatusOr<double> cxl = Rate(options, Tier::kCxl, measure, chosen.reason);
  if (!cxl.ok()) return cxl.status();
  // Room is placement's concern, which gives the nearest that fits.
  HostMedia media;
  media.dram = {{*dram, kUnlimited}};
  media.cxl = {{*cxl, kUnlimited}};
  absl::StatusOr<double> share =
      ValueShareOnCxl(media, static_cast<double>(key_bytes), static_cast<double>(value_bytes));
  if (!share.ok()) return share.status();
  chosen.value_share_on_cxl = *share;
  return chosen;
}

}  // namespace

absl::StatusOr<ReadSpeed> MeasureTierSpeed(const BackendOptions& options, Tier tier) {
  ProbeOptions probe;
  probe.cpus = options.cpus.empty() ? AllowedCpus() : options.cpus;
  const size_t threads = options.num_threads > 0 ? options.num_threads : probe.cpus.size();
  probe.cpus.resize(std::min({threads, probe.cpus.size(), kMostProbeThreads}));
  ArenaOptions arena;
  arena.name = absl::StrCat(TierName(tier), " measurement");
  arena.node = tier == Tier::kDram ? options.dram_node : options.cxl_node;
  if (tier == Tier::kCxl) arena.dax_device = options.cxl_device;
  absl::StatusOr<std::unique_ptr<Arena>> memory =
      Arena::Create(ProbeBytes(std::max<int>(1, static_cast<int>(probe.cpus.size()))), arena);
  if (!memory.ok()) return memory.status();
  return ProbeRange({{(*memory)->data(), static_cast<size_t>((*memory)->bytes())}}, probe);
}

absl::StatusOr<ChosenPlacement> ChoosePlacement(const BackendOptions& options, int64_t key_bytes, int64_t value_bytes,
                                                const MeasureTier& measure) {
  if (options.placement == PlacementChoice::kRole) return RolePriority("as configured");
  if (options.placement == PlacementChoice::kInterleave) {
    return ChosenPlacement{PlacementPolicy::kInterleave, 0,
                           absl::StrCat("weights ", options.interleave_dram_weight, " (DRAM) and ",
                                        options.interleave_cxl_weight, " (CXL)")};
  }
  if (options.dram_bytes == 0 || options.cxl_bytes == 0) return RolePriority("one host tier");
  const bool automatic = options.placement == PlacementChoice::kAuto;
  if (CxlIsEmulated(options) && options.cxl_gigabytes_per_second == 0) {
    if (automatic) return RolePriority("the CXL tier is plain memory and has no speed of its own");
    return absl::InvalidArgumentError(
        "bind tiered: placement is proportional and the CXL tier is plain memory, which has no speed of its own; "
        "accepted: a CXL node or device, or cxl_gigabytes_per_second to pace it");
  }
  absl::StatusOr<ChosenPlacement> chosen = Proportional(options, key_bytes, value_bytes, measure);
  if (chosen.ok() || !automatic) return chosen;
  return RolePriority(absl::StrCat("bandwidths unknown: ", chosen.status().message()));
}

}  // namespace hybridgen
