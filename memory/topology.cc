// Memory nodes as sysfs lists them.
#include "memory/topology.h"

#include <algorithm>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"

namespace hybridgen {

const char* MemoryKindName(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::kUnknown:
      return "unknown";
    case MemoryKind::kDram:
      return "dram";
    case MemoryKind::kCxl:
      return "cxl";
    case MemoryKind::kHbm:
      return "hbm";
    case MemoryKind::kPersistent:
      return "persistent";
  }
  return "unknown";
}

Topology ReadTopology(const SystemRoots& roots) {
  const std::string directory = roots.sysfs + "/devices/system/node/";
  const auto ids = [&directory](const char* file) -> std::vector<int> {
    const std::optional<std::string> text = ReadSystemFile(directory + file);
    return text ? ParseIdList(*text).value_or(std::vector<int>()) : std::vector<int>();
  };
  constexpr int64_t kKiB = 1024;
  const std::vector<int> with_cpus = ids("has_cpu");
  Topology topology;
  // has_memory, not online: a node whose memory was taken offline stays online.
  for (const int id : ids("has_memory")) {
    MemoryNode node;
    node.id = id;
    if (std::binary_search(with_cpus.begin(), with_cpus.end(), id)) {
      node.cpus = NodeCpus::kSome;
      node.kind = MemoryKind::kDram;
    }
    if (const auto meminfo = ReadSystemFile(absl::StrCat(directory, "node", id, "/meminfo"))) {
      node.total_bytes = ParseField(*meminfo, "MemTotal:").value_or(0) * kKiB;
      node.free_bytes = ParseField(*meminfo, "MemFree:").value_or(0) * kKiB;
    }
    topology.nodes.push_back(node);
  }
  return topology;
}

}  // namespace hybridgen
