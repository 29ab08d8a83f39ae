// Warnings of the advice.
#include "backend/tier_advice_warnings.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace hybridgen {
namespace {

using Strings = std::vector<std::string>;

// False if there is none.
bool WarnOfMeasurement(const std::string& label, const absl::StatusOr<ReadSpeed>& speed, Strings& warnings) {
  if (!speed.ok()) {
    warnings.push_back(absl::StrCat(label, " was not measured: ", speed.status().message()));
  } else if (speed->disturbed) {
    warnings.push_back(absl::StrCat("other work disturbed the measurement of ", label, ": ", speed->clean_samples,
                                    " of ", speed->samples, " samples were clean"));
  }
  return speed.ok();
}

void WarnOfMeasurements(const Topology& topology, const NodeStates& states, const Advice& advice, Strings& warnings) {
  for (const MemoryNode& node : topology.nodes) {
    const auto state = states.find(node.id);
    if (state == states.end() || !state->second.speed) continue;
    if (!WarnOfMeasurement(NodeLabel(node), *state->second.speed, warnings)) continue;
    const ReadSpeed& speed = **state->second.speed;
    const std::optional<int64_t> firmware = node.performance.read_megabytes_per_second;
    if (firmware && 2 * speed.bytes_per_second < *firmware * 1e6) {
      warnings.push_back(absl::StrCat(NodeLabel(node), " was measured at ", RateText(speed.bytes_per_second), " with ",
                                      speed.threads, " threads, firmware says ", RateText(*firmware * 1e6),
                                      ": too few threads, or fewer memory modules than it was made for"));
    }
    const ReadSpeed* dram = advice.dram.nodes.empty() ? nullptr : MeasuredSpeed(states, advice.dram.nodes[0]);
    if (node.kind == MemoryKind::kCxl && dram != nullptr && speed.bytes_per_second > 0.9 * dram->bytes_per_second) {
      warnings.push_back(absl::StrCat(NodeLabel(node), " was measured as fast as DRAM: is it CXL?"));
    }
  }
}

void WarnOfUnknownMemory(const Topology& topology, const NodeStates& states, Strings& warnings) {
  for (const MemoryNode& node : topology.nodes) {
    if (node.kind != MemoryKind::kUnknown) continue;
    const ReadSpeed* speed = MeasuredSpeed(states, node.id);
    warnings.push_back(absl::StrCat("node ", node.id, " is not used, its kind is unknown",
                                    " (speed next to DRAM: ", RelativeSpeedName(node.speed),
                                    speed == nullptr ? "" : absl::StrCat(", measured: ", ToString(*speed)),
                                    "); if you know it, say so, such as HYBRIDGEN_TOPOLOGY=", node.id, ":cxl"));
  }
  for (const DaxDevice& device : topology.dax_devices) {
    if (device.kind == MemoryKind::kUnknown) {
      warnings.push_back(absl::StrCat("/dev/", device.name, " is not used, its kind is unknown: ", device.kind_why));
    } else if (device.kind == MemoryKind::kCxl && device.use == DaxUse::kUnknown) {
      warnings.push_back(absl::StrCat("/dev/", device.name,
                                      " is CXL but has no driver that gives out its memory: daxctl ",
                                      "reconfigure-device --mode=system-ram (or devdax) ", device.name));
    }
  }
}

void WarnOfTheTiers(const Topology& topology, const Advice& advice, Strings& warnings) {
  for (const int id : advice.cxl.nodes) {
    const MemoryNode& node = *FindNode(topology, id);
    if (node.movable_only != MovableOnly::kYes) continue;
    std::string device = "its device";
    for (const DaxDevice& dax : topology.dax_devices) {
      if (dax.target_node == id && dax.use == DaxUse::kNode) device = dax.name;
    }
    warnings.push_back(absl::StrCat(NodeLabel(node),
                                    " has only movable memory: pinning, as a GPU needs it, moves pages to another ",
                                    "node, silently. With a GPU: daxctl offline-memory ", device,
                                    ", then daxctl online-memory --no-movable ", device));
  }
  if (topology.transparent_huge_pages == TransparentHugePages::kNever) {
    warnings.push_back(
        "transparent huge pages are off, which costs bandwidth: set "
        "/sys/kernel/mm/transparent_hugepage/enabled to madvise");
  }
  for (const Gpu* gpu : ServedGpus(topology)) {
    const std::vector<int>& dram = advice.dram.nodes;
    if (dram.empty() || std::count(dram.begin(), dram.end(), *gpu->node) > 0) continue;
    warnings.push_back(absl::StrCat("GPU ", gpu->address, " is on node ", *gpu->node, ", the DRAM tier on ",
                                    NodeList(dram), ": what it reads crosses sockets"));
  }
}

}  // namespace

std::vector<std::string> MachineWarnings(const Topology& topology, const NodeStates& states,
                                         const DeviceSpeeds& devices, const Advice& advice) {
  Strings warnings;
  WarnOfMeasurements(topology, states, advice, warnings);
  for (const auto& [name, speed] : devices) WarnOfMeasurement(absl::StrCat("/dev/", name), speed, warnings);
  WarnOfUnknownMemory(topology, states, warnings);
  WarnOfTheTiers(topology, advice, warnings);
  return warnings;
}

const MemoryNode* FindNode(const Topology& topology, int id) {
  const auto node = std::find_if(topology.nodes.begin(), topology.nodes.end(),
                                 [id](const MemoryNode& other) { return other.id == id; });
  return node == topology.nodes.end() ? nullptr : &*node;
}

const ReadSpeed* MeasuredSpeed(const NodeStates& states, int node) {
  const auto state = states.find(node);
  const bool measured = state != states.end() && state->second.speed && state->second.speed->ok();
  return measured ? &**state->second.speed : nullptr;
}

std::vector<const Gpu*> ServedGpus(const Topology& topology) {
  constexpr char kNvidia[] = "0x10de";
  std::vector<const Gpu*> gpus;
  for (const Gpu& gpu : topology.gpus) {
    if (gpu.vendor == kNvidia && gpu.node) gpus.push_back(&gpu);
  }
  return gpus;
}

std::string RateText(double bytes_per_second) { return absl::StrFormat("%.1f GB/s", bytes_per_second * 1e-9); }

std::string NodeList(const std::vector<int>& nodes) {
  return absl::StrCat(nodes.size() == 1 ? "node " : "nodes ", absl::StrJoin(nodes, ", "));
}

std::string NodeLabel(const MemoryNode& node) {
  if (node.kind == MemoryKind::kUnknown) return absl::StrCat("node ", node.id, " (unknown)");
  const std::string kind = MemoryKindName(node.kind);
  return absl::StrCat(node.kind == MemoryKind::kPersistent ? kind : absl::AsciiStrToUpper(kind), " node ", node.id);
}

}  // namespace hybridgen
