#include "backend/placement_choice.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "memory/arena.h"
#include "memory/bandwidth_probe.h"
#include "memory/node_probe.h"
#include "scheduler/cost_model.h"

namespace hybridgen {
namespace {

constexpr size_t kMostProbeThreads = 64;

constexpr std::chrono::milliseconds kTimeLimit{200};

absl::StatusOr<double> MeasureMemory(const BackendOptions& options, std::vector<int> cpus, int node,
                                     const std::string& device, std::chrono::nanoseconds time_limit) {
  if (options.num_threads > 0) cpus.resize(std::min<size_t>(cpus.size(), options.num_threads));
  cpus.resize(std::min(cpus.size(), kMostProbeThreads));
  ArenaOptions arena;
  arena.name = "measurement";
  arena.node = node;
  arena.dax_device = device;
  absl::StatusOr<std::unique_ptr<Arena>> memory =
      Arena::Create(ProbeBytes(std::max<int>(1, static_cast<int>(cpus.size()))), arena);
  if (!memory.ok()) return memory.status();
  ProbeOptions probe;
  probe.cpus = std::move(cpus);
  probe.time_limit = time_limit;
  absl::StatusOr<ReadSpeed> speed = ProbeRange({{(*memory)->data(), static_cast<size_t>((*memory)->bytes())}}, probe);
  if (!speed.ok()) return speed.status();
  return speed->bytes_per_second;
}

ChosenPlacement RolePriority(std::string reason) { return {PlacementPolicy::kRolePriority, 0, std::move(reason)}; }

// The tiers' rates in bytes per second, and how each is known.
absl::StatusOr<double> Rate(const BackendOptions& options, Tier tier, const MeasureTier& measure, std::string& reason) {
  const double paced =
      1e9 * (tier == Tier::kDram ? options.dram_gigabytes_per_second : options.cxl_gigabytes_per_second);
  double rate = paced;
  if (paced == 0) {
    absl::StatusOr<double> measured = measure(tier);
    if (!measured.ok()) return measured.status();
    rate = *measured;
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

absl::StatusOr<double> MeasureTierSpeed(const BackendOptions& options, const HeadGroups& head_groups, Tier tier) {
  const std::vector<int> all = options.cpus.empty() ? AllowedCpus() : options.cpus;
  if (tier == Tier::kCxl) return MeasureMemory(options, all, options.cxl_node, options.cxl_device, kTimeLimit);
  if (head_groups.count == 1 || head_groups.emulated) {
    return MeasureMemory(options, all, head_groups.nodes[0], /*device=*/"", kTimeLimit);
  }
  // Each node is read by its own CPUs while the others read theirs.
  double sum = 0;
  for (int group = 0; group < head_groups.count; ++group) {
    absl::StatusOr<double> rate = MeasureMemory(options, head_groups.cpus[group], head_groups.nodes[group],
                                                /*device=*/"", kTimeLimit / head_groups.count);
    if (!rate.ok()) return rate.status();
    sum += *rate;
  }
  return sum;
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
