// Reads the facts, then concludes.
#include "memory/topology.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "memory/device_reader.h"
#include "memory/node_classifier.h"
#include "memory/node_reader.h"

namespace hybridgen {
namespace {

// The mode in use stands in brackets: "always [madvise] never".
TransparentHugePages ReadTransparentHugePages(const SystemRoots& roots) {
  const std::string modes =
      ReadSystemFile(roots.sysfs + "/kernel/mm/transparent_hugepage/enabled").value_or(std::string());
  if (absl::StrContains(modes, "[never]")) return TransparentHugePages::kNever;
  if (absl::StrContains(modes, "[madvise]")) return TransparentHugePages::kMadvise;
  if (absl::StrContains(modes, "[always]")) return TransparentHugePages::kAlways;
  return TransparentHugePages::kUnknown;
}

Topology ReadFacts(const SystemRoots& roots) {
  Topology topology;
  topology.nodes = ReadMemoryNodes(roots);
  topology.dax_devices = ReadDaxDevices(roots);
  topology.cxl_regions = ReadCxlRegions(roots);
  topology.gpus = ReadGpus(roots);
  topology.transparent_huge_pages = ReadTransparentHugePages(roots);
  if (const std::optional<std::string> meminfo = ReadSystemFile(roots.procfs + "/meminfo")) {
    topology.machine_total_bytes = ParseKibibytes(*meminfo, "MemTotal:");
    topology.machine_available_bytes = ParseKibibytes(*meminfo, "MemAvailable:");
  }
  TraceProvenance(roots, topology.dax_devices, topology.cxl_regions, topology.nodes);
  return topology;
}

}  // namespace

Topology ReadTopology(const SystemRoots& roots) {
  Topology topology = ReadFacts(roots);
  ClassifyNodes(KindOverrides(), topology.nodes).IgnoreError();  // only an override can be wrong
  return topology;
}

absl::StatusOr<Topology> ReadTopology(const SystemRoots& roots, absl::string_view kind_overrides) {
  const absl::StatusOr<KindOverrides> overrides = ParseKindOverrides(kind_overrides);
  if (!overrides.ok()) return overrides.status();
  Topology topology = ReadFacts(roots);
  if (absl::Status status = ClassifyNodes(*overrides, topology.nodes); !status.ok()) return status;
  return topology;
}

}  // namespace hybridgen
