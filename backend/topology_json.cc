// Null in the JSON stands for what is unknown.
#include "backend/topology_json.h"

#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "memory/memory_budget.h"
#include "memory/node_probe.h"
#include "memory/topology.h"
#include "nlohmann/json.hpp"

namespace hybridgen {
namespace {

using Json = nlohmann::ordered_json;

template <typename T>
Json OrNull(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json OrNull(MovableOnly movable) {
  return movable == MovableOnly::kUnknown ? Json(nullptr) : Json(movable == MovableOnly::kYes);
}

void AddPerformance(const Performance& performance, Json& json) {
  json["read_megabytes_per_second"] = OrNull(performance.read_megabytes_per_second);
  json["read_nanoseconds"] = OrNull(performance.read_nanoseconds);
  json["performance_evidence"] = performance.source;
}

Json MegabytesPerSecond(const std::optional<double>& bytes_per_second) {
  return bytes_per_second ? Json(std::llround(*bytes_per_second * 1e-6)) : Json(nullptr);
}

Json Nanoseconds(const std::optional<double>& nanoseconds) {
  return nanoseconds ? Json(std::llround(*nanoseconds)) : Json(nullptr);
}

// Null also for a failure, of which the advice warns.
Json SpeedJson(const ReadSpeed* speed) {
  if (speed == nullptr) return nullptr;
  return {{"read_megabytes_per_second", MegabytesPerSecond(speed->bytes_per_second)},
          {"read_nanoseconds", Nanoseconds(speed->nanoseconds)},
          {"threads", speed->threads},
          {"range_bytes", speed->range_bytes},
          {"samples", speed->samples},
          {"clean_samples", speed->clean_samples},
          {"disturbed", speed->disturbed},
          {"seconds", speed->seconds}};
}

Json TierJson(const TierAdvice& tier) {
  return {{"nodes", tier.nodes},
          {"device", tier.device.empty() ? Json(nullptr) : Json(tier.device)},
          {"evidence", tier.why},
          {"bytes", OrNull(tier.bytes)},
          {"read_megabytes_per_second", MegabytesPerSecond(tier.bytes_per_second)},
          {"read_nanoseconds", Nanoseconds(tier.nanoseconds)},
          {"source", SpeedSourceName(tier.source)}};
}

Json AdviceJson(const Advice& advice) {
  Json json = {{"dram", TierJson(advice.dram)}, {"cxl", TierJson(advice.cxl)}};
  json["placement"] = nullptr;
  if (advice.spread) json["placement"] = *advice.spread == SpreadKind::kProportional ? "proportional" : "role";
  json["placement_evidence"] = advice.spread_why;
  json["value_share_on_cxl"] = OrNull(advice.value_share_on_cxl);
  json["warnings"] = advice.warnings;
  json["settings"] = Json::object();
  for (const auto& [name, value] : advice.settings) json["settings"][name] = value;
  return json;
}

// What was measured, in one line; null if nothing was.
Json MeasurementJson(const Topology& topology, const NodeStates& states, const DeviceSpeeds& devices) {
  std::vector<std::pair<std::string, absl::StatusOr<ReadSpeed>>> named;
  for (const MemoryNode& node : topology.nodes) {
    const auto state = states.find(node.id);
    if (state != states.end() && state->second.speed) named.emplace_back(NodeLabel(node), *state->second.speed);
  }
  for (const auto& [name, speed] : devices) named.emplace_back(absl::StrCat("CXL device ", name), speed);
  const std::string summary = SpeedSummary(named);
  return summary.empty() ? Json(nullptr) : Json(summary);
}

NodeStates ReadStates(const Topology& topology, const SystemRoots& roots) {
  NodeStates states;
  for (const MemoryNode& node : topology.nodes) states[node.id].budget = ReadMemoryBudget(node.id, roots);
  return states;
}

Json NodeJson(const MemoryNode& node) {
  Json json = {{"id", node.id},
               {"kind", MemoryKindName(node.kind)},
               {"kind_evidence", node.kind_why},
               {"speed", RelativeSpeedName(node.speed)},
               {"speed_evidence", node.speed_why}};
  json["cpus"] = node.has_cpus == NodeCpus::kUnknown ? Json(nullptr) : Json(node.cpus);
  json["total_bytes"] = OrNull(node.total_bytes);
  json["free_bytes"] = OrNull(node.free_bytes);
  json["distances"] = Json::object();
  for (const auto& [id, distance] : node.distances) json["distances"][absl::StrCat(id)] = distance;
  AddPerformance(node.performance, json);
  json["kernel_tier"] = OrNull(node.kernel_tier);
  json["movable_only"] = OrNull(node.movable_only);
  json["movable_evidence"] = node.movable_why;
  json["huge_pages"] = Json::array();
  for (const HugePagePool& pool : node.huge_pages) {
    json["huge_pages"].push_back({{"page_bytes", pool.page_bytes},
                                  {"total_pages", OrNull(pool.total_pages)},
                                  {"free_pages", OrNull(pool.free_pages)}});
  }
  return json;
}

Json DaxJson(const DaxDevice& device) {
  Json json = {
      {"name", device.name},           {"kind", MemoryKindName(device.kind)},       {"kind_evidence", device.kind_why},
      {"use", DaxUseName(device.use)}, {"target_node", OrNull(device.target_node)}, {"bytes", OrNull(device.bytes)}};
  AddPerformance(device.performance, json);
  return json;
}

}  // namespace

std::string ToJson(const Topology& topology, const NodeStates& states, const DeviceSpeeds& devices) {
  Json json = {{"version", 1}};
  json["machine"] = {{"total_bytes", OrNull(topology.machine_total_bytes)},
                     {"available_bytes", OrNull(topology.machine_available_bytes)},
                     {"transparent_huge_pages", TransparentHugePagesName(topology.transparent_huge_pages)}};
  for (const char* list : {"nodes", "dax_devices", "cxl_regions", "gpus"}) json[list] = Json::array();
  for (const MemoryNode& node : topology.nodes) {
    json["nodes"].push_back(NodeJson(node));
    const auto state = states.find(node.id);
    const bool measured = state != states.end() && state->second.speed && state->second.speed->ok();
    json["nodes"].back()["measured"] = SpeedJson(measured ? &**state->second.speed : nullptr);
  }
  for (const DaxDevice& device : topology.dax_devices) {
    json["dax_devices"].push_back(DaxJson(device));
    const auto speed = devices.find(device.name);
    const bool measured = speed != devices.end() && speed->second.ok();
    json["dax_devices"].back()["measured"] = SpeedJson(measured ? &*speed->second : nullptr);
  }
  for (const CxlRegion& region : topology.cxl_regions) {
    json["cxl_regions"].push_back({{"name", region.name},
                                   {"kind", MemoryKindName(region.kind)},
                                   {"start", OrNull(region.start)},
                                   {"bytes", OrNull(region.bytes)}});
  }
  for (const Gpu& gpu : topology.gpus) {
    json["gpus"].push_back(
        {{"address", gpu.address}, {"vendor", gpu.vendor}, {"device", gpu.device}, {"node", OrNull(gpu.node)}});
  }
  json["measurement"] = MeasurementJson(topology, states, devices);
  json["advice"] = AdviceJson(Advise(topology, states, devices));
  // File names are bytes; those that are no text are replaced, not refused.
  return json.dump(/*indent=*/-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

absl::StatusOr<std::string> TopologyJson(const std::string& root, absl::string_view kind_overrides) {
  if (!root.empty() && ListDirectory(root + "/sys").empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory topology: root is '", root, "'; accepted: a directory that holds sys and proc"));
  }
  const SystemRoots roots = {root + "/sys", root + "/proc"};
  const absl::StatusOr<Topology> topology = ReadTopology(roots, kind_overrides);
  if (!topology.ok()) return topology.status();
  return ToJson(*topology, ReadStates(*topology, roots));
}

absl::StatusOr<std::string> MeasuredTopologyJson(absl::string_view kind_overrides) {
  const absl::StatusOr<Topology> topology = ReadTopology(SystemRoots(), kind_overrides);
  if (!topology.ok()) return topology.status();
  NodeStates states = ReadStates(*topology, SystemRoots());
  MemorySpeeds speeds = ProbeMemory(*topology);
  for (auto& [node, speed] : speeds.nodes) states[node].speed = std::move(speed);
  return ToJson(*topology, states, speeds.devices);
}

}  // namespace hybridgen
