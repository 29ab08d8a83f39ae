// Null in the JSON stands for what is unknown.
#include "backend/topology_json.h"

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
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

std::string ToJson(const Topology& topology) {
  Json json = {{"version", 1}};
  json["machine"] = {{"total_bytes", OrNull(topology.machine_total_bytes)},
                     {"available_bytes", OrNull(topology.machine_available_bytes)},
                     {"transparent_huge_pages", TransparentHugePagesName(topology.transparent_huge_pages)}};
  for (const char* list : {"nodes", "dax_devices", "cxl_regions", "gpus"}) json[list] = Json::array();
  for (const MemoryNode& node : topology.nodes) json["nodes"].push_back(NodeJson(node));
  for (const DaxDevice& device : topology.dax_devices) json["dax_devices"].push_back(DaxJson(device));
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
  // File names are bytes; those that are no text are replaced, not refused.
  return json.dump(/*indent=*/-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

absl::StatusOr<std::string> TopologyJson(const std::string& root, absl::string_view kind_overrides) {
  if (!root.empty() && ListDirectory(root + "/sys").empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory topology: root is '", root, "'; accepted: a directory that holds sys and proc"));
  }
  const absl::StatusOr<Topology> topology = ReadTopology({root + "/sys", root + "/proc"}, kind_overrides);
  if (!topology.ok()) return topology.status();
  return ToJson(*topology);
}

}  // namespace hybridgen
