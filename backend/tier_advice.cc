// Chooses the tiers' memory and the spread.
#include "backend/tier_advice.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "backend/tier_advice_warnings.h"

namespace hybridgen {
namespace {

struct Speed {
  std::optional<double> bytes_per_second;
  std::optional<double> nanoseconds;
};

Speed FirmwareSpeed(const Performance& performance) {
  Speed speed;
  if (performance.read_megabytes_per_second) speed.bytes_per_second = *performance.read_megabytes_per_second * 1e6;
  if (performance.read_nanoseconds) speed.nanoseconds = *performance.read_nanoseconds;
  return speed;
}

class Adviser {
 public:
  Adviser(const Topology& topology, const NodeStates& states, const DeviceSpeeds& devices)
      : topology_(topology), states_(states), devices_(devices) {}

  Advice Run() {
    ChooseDram();
    ChooseCxl();
    ChooseSpread();
    for (std::string& warning : MachineWarnings(topology_, states_, devices_, advice_)) Warn(std::move(warning));
    Settings();
    return std::move(advice_);
  }

 private:
  void Warn(std::string warning) { advice_.warnings.push_back(std::move(warning)); }

  static Speed MeasuredOf(const ReadSpeed* speed) {
    return speed == nullptr ? Speed() : Speed{speed->bytes_per_second, speed->nanoseconds};
  }

  // Of each node or the device.
  std::vector<Speed> Speeds(const TierAdvice& tier, SpeedSource source) const {
    const bool measured = source == SpeedSource::kMeasured;
    std::vector<Speed> speeds;
    for (const int node : tier.nodes) {
      speeds.push_back(measured ? MeasuredOf(MeasuredSpeed(states_, node))
                                : FirmwareSpeed(FindNode(topology_, node)->performance));
    }
    for (const DaxDevice& device : topology_.dax_devices) {
      if (device.name != tier.device) continue;
      const auto speed = devices_.find(device.name);
      const bool known = speed != devices_.end() && speed->second.ok();
      speeds.push_back(measured ? MeasuredOf(known ? &*speed->second : nullptr) : FirmwareSpeed(device.performance));
    }
    return speeds;
  }

  // Rates of the tier's memory from one source; empty unless all of them are known.
  std::vector<Medium> Media(const TierAdvice& tier, SpeedSource source) const {
    std::vector<Medium> media;
    for (const Speed& speed : Speeds(tier, source)) {
      if (!speed.bytes_per_second) return {};
      media.push_back({*speed.bytes_per_second});
    }
    return media;
  }

  void AddSpeed(TierAdvice& tier) const {
    for (const SpeedSource source : {SpeedSource::kMeasured, SpeedSource::kFirmware}) {
      const std::vector<Medium> media = Media(tier, source);
      if (media.empty()) continue;
      tier.source = source;
      tier.bytes_per_second = 0;
      for (const Medium& medium : media) *tier.bytes_per_second += medium.bytes_per_second;
      for (const Speed& speed : Speeds(tier, source)) {
        if (speed.nanoseconds) tier.nanoseconds = std::max(tier.nanoseconds.value_or(0), *speed.nanoseconds);
      }
      return;
    }
  }

  // Half of what may be reserved; unknown where the node itself does not tell, as the machine's memory may lie
  // elsewhere.
  void AddBytes(TierAdvice& tier) const {
    int64_t bytes = 0;
    for (const int node : tier.nodes) {
      const auto state = states_.find(node);
      if (state == states_.end() || !state->second.budget.bytes) return;
      if (topology_.nodes.size() > 1 && !FindNode(topology_, node)->free_bytes) return;
      bytes += *state->second.budget.bytes;
    }
    if (topology_.machine_available_bytes) bytes = std::min(bytes, *topology_.machine_available_bytes);
    tier.bytes = bytes / 2;
  }

  void ChooseDram() {
    TierAdvice& dram = advice_.dram;
    for (const MemoryNode& node : topology_.nodes) {
      if (node.kind == MemoryKind::kDram) dram.nodes.push_back(node.id);
    }
    if (dram.nodes.empty()) {
      dram.why = topology_.nodes.empty() ? "the kernel lists no memory nodes" : "no node is known to be DRAM";
      return;
    }
    const std::vector<const Gpu*> gpus = ServedGpus(topology_);
    if (dram.nodes.size() == 1) {
      dram.why = "the only DRAM node";
    } else if (!gpus.empty() &&
               std::all_of(gpus.begin(), gpus.end(), [&](const Gpu* gpu) { return gpu->node == gpus[0]->node; }) &&
               std::count(dram.nodes.begin(), dram.nodes.end(), *gpus[0]->node) == 1) {
      dram.nodes = {*gpus[0]->node};
      dram.why = absl::StrCat("the DRAM next to GPU ", gpus[0]->address);
    } else {
      dram.why = "all DRAM nodes: pages lie where the process allocates";
      Warn(absl::StrCat("DRAM is on ", NodeList(dram.nodes),
                        ": run each rank on the CPUs of one node, with HYBRIDGEN_DRAM_NODE set to it"));
    }
    AddSpeed(dram);
    AddBytes(dram);
  }

  // One node or device: the fastest, then the nearest to DRAM, then the first.
  void ChooseCxl() {
    std::vector<TierAdvice> candidates;
    for (const MemoryNode& node : topology_.nodes) {
      if (node.kind != MemoryKind::kCxl) continue;
      TierAdvice tier;
      tier.nodes = {node.id};
      tier.why = node.kind_why;
      AddSpeed(tier);
      AddBytes(tier);
      candidates.push_back(std::move(tier));
    }
    for (const DaxDevice& device : topology_.dax_devices) {
      if (device.kind != MemoryKind::kCxl || device.use != DaxUse::kMapped) continue;
      TierAdvice tier;
      tier.device = device.name;
      tier.why = device.kind_why;
      AddSpeed(tier);
      if (device.bytes) tier.bytes = *device.bytes / 2;
      candidates.push_back(std::move(tier));
    }
    if (candidates.empty()) {
      advice_.cxl.why = "no memory is known to be CXL";
      return;
    }
    const auto better = [this](const TierAdvice& a, const TierAdvice& b) {
      const double a_rate = a.bytes_per_second.value_or(0);
      const double b_rate = b.bytes_per_second.value_or(0);
      if (a.source == b.source && a_rate != b_rate) return a_rate > b_rate;
      return DistanceToDram(a) < DistanceToDram(b);
    };
    auto best = candidates.begin();
    for (auto other = candidates.begin(); other != candidates.end(); ++other) {
      if (better(*other, *best)) best = other;
    }
    std::vector<std::string> others;
    for (const TierAdvice& tier : candidates) {
      if (&tier != &*best) others.push_back(Name(tier));
    }
    advice_.cxl = *best;
    if (!others.empty()) {
      Warn(absl::StrCat("one memory can be the CXL tier: ", Name(advice_.cxl), " is taken, ",
                        absl::StrJoin(others, ", "), " not"));
    }
  }

  static std::string Name(const TierAdvice& tier) {
    return tier.device.empty() ? NodeList(tier.nodes) : absl::StrCat("/dev/", tier.device);
  }

  int DistanceToDram(const TierAdvice& tier) const {
    int distance = std::numeric_limits<int>::max();
    const MemoryNode* node = tier.nodes.empty() ? nullptr : FindNode(topology_, tier.nodes[0]);
    if (node == nullptr) return distance;
    for (const int dram : advice_.dram.nodes) {
      const auto known = node->distances.find(dram);
      if (known != node->distances.end()) distance = std::min(distance, known->second);
    }
    return distance;
  }

  void ChooseSpread() {
    const bool has_cxl = !advice_.cxl.nodes.empty() || !advice_.cxl.device.empty();
    if (advice_.dram.nodes.empty() || !has_cxl) {
      advice_.spread_why = "there are not two tiers";
      return;
    }
    for (const SpeedSource source : {SpeedSource::kMeasured, SpeedSource::kFirmware}) {
      const HostMedia host = {Media(advice_.dram, source), Media(advice_.cxl, source)};
      if (host.dram.empty() || host.cxl.empty()) continue;
      const absl::StatusOr<double> share = ValueShareOnCxl(host, 1, 1);
      if (!share.ok()) continue;
      double dram = 0;
      for (const Medium& medium : host.dram) dram += medium.bytes_per_second;
      advice_.spread = SpreadKind::kProportional;
      advice_.value_share_on_cxl = *share;
      // DRAM, the last to finish, reads 2 - x of the 2 equal roles.
      advice_.spread_why = absl::StrFormat(
          "both tiers finish together: DRAM reads %s, CXL %s (%s); at best %.2f times the rate of DRAM alone",
          RateText(dram), RateText(host.cxl[0].bytes_per_second), SpeedSourceName(source), 1 / (1 - *share / 2));
      return;
    }
    advice_.spread = SpreadKind::kRolePriority;
    advice_.spread_why = "the bandwidths of both tiers are not known from one source";
  }

  void Settings() {
    const auto set = [this](const char* name, std::string value) {
      advice_.settings.emplace_back(name, std::move(value));
    };
    if (advice_.dram.nodes.size() == 1 && topology_.nodes.size() > 1) {
      set("HYBRIDGEN_DRAM_NODE", absl::StrCat(advice_.dram.nodes[0]));
    }
    const TierAdvice& cxl = advice_.cxl;
    if (!cxl.nodes.empty()) set("HYBRIDGEN_CXL_NODE", absl::StrCat(cxl.nodes[0]));
    if (!cxl.device.empty()) set("HYBRIDGEN_CXL_DEVICE", absl::StrCat("/dev/", cxl.device));
    if (cxl.bytes.value_or(0) >> 20 > 0) set("HYBRIDGEN_CXL", absl::StrCat(*cxl.bytes >> 20, "M"));
  }

  const Topology& topology_;
  const NodeStates& states_;
  const DeviceSpeeds& devices_;
  Advice advice_;
};

}  // namespace

const char* SpeedSourceName(SpeedSource source) {
  switch (source) {
    case SpeedSource::kUnknown:
      return "unknown";
    case SpeedSource::kFirmware:
      return "firmware";
    case SpeedSource::kMeasured:
      return "measured";
  }
  return "unknown";
}

Advice Advise(const Topology& topology, const NodeStates& states, const DeviceSpeeds& devices) {
  return Adviser(topology, states, devices).Run();
}

}  // namespace hybridgen
