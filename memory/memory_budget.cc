// Accounting from /proc/meminfo, the nodes' meminfo, zoneinfo, the cpuset and the cgroup hierarchy.
#include "memory/memory_budget.h"

#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace hybridgen {
namespace {

constexpr int64_t kMostLeftOver = int64_t{256} << 20;
constexpr int64_t kLeftOverShare = 16;
constexpr int kMostNodeId = 1023;

// What of `available` bytes may be reserved of something that is `size` bytes large.
int64_t LessLeftOver(int64_t available, int64_t size) {
  return std::max<int64_t>(0, available - std::min(kMostLeftOver, size / kLeftOverShare));
}

// Lowers the budget to `bytes` of something that has `free` bytes.
void Lower(MemoryBudget& budget, int64_t bytes, int64_t free, const std::string& name) {
  if (budget.bytes && *budget.bytes <= bytes) return;
  budget.bytes = bytes;
  budget.free_bytes = free;
  budget.limited_by = name;
}

// Lowers the budget to `available` bytes of something that is `size` bytes large.
void Limit(MemoryBudget& budget, int64_t available, int64_t size, const std::string& name) {
  Lower(budget, LessLeftOver(available, size), std::max<int64_t>(0, available), name);
}

void LimitByMachine(MemoryBudget& budget, const SystemRoots& roots) {
  const std::optional<std::string> meminfo = ReadSystemFile(roots.procfs + "/meminfo");
  if (!meminfo) return;
  const std::optional<int64_t> available = ParseKibibytes(*meminfo, "MemAvailable:");
  const std::optional<int64_t> total = ParseKibibytes(*meminfo, "MemTotal:");
  if (available && total) Limit(budget, *available, *total, "machine");
}

std::string NodeDirectory(const SystemRoots& roots) { return roots.sysfs + "/devices/system/node/"; }

// Nodes with memory on machines that have several; else empty. With one memory node the machine's numbers say all. The
// node's own may say less: a node's meminfo leaves out memory that the kernel has not initialised yet.
std::vector<int> NodesOfSeveral(const SystemRoots& roots) {
  const std::optional<std::vector<int>> nodes = ReadIdList(NodeDirectory(roots) + "has_memory");
  return nodes && nodes->size() > 1 ? *nodes : std::vector<int>();
}

// Nodes that the cpuset allows; nullopt if the kernel does not tell.
std::optional<std::vector<int>> AllowedNodes(const SystemRoots& roots) {
  constexpr absl::string_view kKey = "Mems_allowed_list:";
  const std::optional<std::string> status = ReadSystemFile(roots.procfs + "/self/status");
  if (!status) return std::nullopt;
  for (absl::string_view line : absl::StrSplit(*status, '\n')) {
    if (absl::ConsumePrefix(&line, kKey)) return ParseIdList(line);
  }
  return std::nullopt;
}

struct NodeMemory {
  int64_t total, free, cache;
};

std::optional<NodeMemory> ReadNodeMemory(const SystemRoots& roots, int node) {
  const std::optional<std::string> meminfo =
      ReadSystemFile(absl::StrCat(NodeDirectory(roots), "node", node, "/meminfo"));
  if (!meminfo) return std::nullopt;
  const std::optional<int64_t> free = ParseKibibytes(*meminfo, "MemFree:");
  const std::optional<int64_t> total = ParseKibibytes(*meminfo, "MemTotal:");
  if (!free || !total) return std::nullopt;
  return NodeMemory{*total, *free, ParseKibibytes(*meminfo, "Inactive(file):").value_or(0)};
}

// Memory of any node is memory of the nodes that the cpuset allows.
void LimitByCpuset(MemoryBudget& budget, const SystemRoots& roots) {
  const std::vector<int> nodes = NodesOfSeveral(roots);
  const std::optional<std::vector<int>> allowed = AllowedNodes(roots);
  if (!allowed) return;
  int64_t available = 0, size = 0;
  std::vector<int> counted;
  for (const int node : nodes) {
    if (std::find(allowed->begin(), allowed->end(), node) == allowed->end()) continue;
    const std::optional<NodeMemory> memory = ReadNodeMemory(roots, node);
    if (!memory) return;
    available += memory->free + memory->cache;
    size += memory->total;
    counted.push_back(node);
  }
  if (counted.empty() || counted.size() == nodes.size()) return;
  Limit(budget, available, size, absl::StrCat("cpuset nodes ", absl::StrJoin(counted, ", ")));
}

// Per node, the bytes that its zones keep from programs' pages: of each zone the high watermark, below which the
// kernel reclaims, and what it holds back from requests that a higher zone could serve (the last number of
// "protection"); at most all of the zone.
std::map<int, int64_t> ReadKeptBytes(const SystemRoots& roots) {
  struct Zone {
    int node = -1;
    int64_t high = 0, protection = 0, managed = 0;
  };
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  const auto pages = [page_bytes](absl::string_view word) {
    return std::min(ParseCount(word).value_or(0), kMostBytes / page_bytes);
  };
  std::map<int, int64_t> kept;
  const auto add = [&kept, page_bytes](const Zone& zone) {
    if (zone.node < 0) return;
    int64_t& bytes = kept[zone.node];
    bytes = std::min(kMostBytes, bytes + std::min(zone.managed, zone.high + zone.protection) * page_bytes);
  };
  const std::string text = ReadSystemFile(roots.procfs + "/zoneinfo").value_or("");
  Zone zone;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, absl::ByAnyChar(" ,()"), absl::SkipEmpty());
    if (words.size() < 2) continue;
    if (words[0] == "Node") {
      add(zone);
      zone = Zone();
      const int64_t node = ParseCount(words[1]).value_or(-1);
      zone.node = node <= kMostNodeId ? static_cast<int>(node) : -1;
    } else if (words[0] == "high") {  // "high:" is a CPU's
      zone.high = pages(words[1]);
    } else if (words[0] == "managed") {
      zone.managed = pages(words[1]);
    } else if (words[0] == "protection:") {
      zone.protection = pages(words.back());
    }
  }
  add(zone);
  return kept;
}

// File names of one cgroup version.
struct CgroupFiles {
  std::vector<const char*> limits;
  const char* usage;
  const char* cache_field;  // of memory.stat
};

void LimitByCgroup(MemoryBudget& budget, const std::string& mount, std::string path, const CgroupFiles& files) {
  // A path outside our cgroup namespace names nothing under the mount; what is mounted at the top still holds.
  if (absl::StrContains(path, "..")) path = "/";
  while (true) {
    const std::string directory = absl::StrCat(mount, path, "/");
    for (const char* limit_file : files.limits) {
      const std::optional<int64_t> limit = ReadCount(directory + limit_file);  // "max" is no number
      if (!limit || *limit >= kMostBytes) continue;                            // as large: version 1's "no limit"
      const std::optional<int64_t> usage = ReadCount(directory + files.usage);
      if (!usage) continue;
      const std::optional<std::string> stat = ReadSystemFile(directory + "memory.stat");
      const int64_t cache = stat ? ParseField(*stat, files.cache_field).value_or(0) : 0;
      Limit(budget, *limit - std::max<int64_t>(0, *usage - cache), *limit, absl::StrCat("cgroup ", path));
    }
    if (path.size() <= 1) return;
    path.resize(std::max<size_t>(1, path.rfind('/')));  // "/a/b" -> "/a" -> "/"
  }
}

void LimitByCgroups(MemoryBudget& budget, const SystemRoots& roots) {
  const std::optional<std::string> membership = ReadSystemFile(roots.procfs + "/self/cgroup");
  if (!membership) return;
  for (const absl::string_view line : absl::StrSplit(*membership, '\n')) {
    // "hierarchy:controllers:path"; version 2 is hierarchy 0 without controllers.
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3 || !absl::StartsWith(fields[2], "/")) continue;
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    const std::string mount = roots.sysfs + "/fs/cgroup";
    if (fields[0] == "0" && fields[1].empty()) {
      LimitByCgroup(budget, mount, fields[2], {{"memory.max", "memory.high"}, "memory.current", "inactive_file"});
    } else if (std::find(controllers.begin(), controllers.end(), "memory") != controllers.end()) {
      LimitByCgroup(budget, mount + "/memory", fields[2],
                    {{"memory.limit_in_bytes"}, "memory.usage_in_bytes", "total_inactive_file"});
    }
  }
}

}  // namespace

void MemoryBudgetReader::LimitByNode(MemoryBudget& budget, int node) {
  const std::vector<int> nodes = NodesOfSeveral(roots_);
  if (nodes.empty()) return;
  const std::optional<NodeMemory> memory = ReadNodeMemory(roots_, node);
  if (!memory) return;
  if (!kept_) kept_ = ReadKeptBytes(roots_);
  const auto kept = kept_->find(node);
  const int64_t usable = memory->free - (kept == kept_->end() ? 0 : kept->second);
  budget.node_bytes = LessLeftOver(usable, memory->total);
  Lower(budget, *budget.node_bytes, memory->free, absl::StrCat("node ", node));
}

MemoryBudget MemoryBudgetReader::operator()(int node) {
  MemoryBudget budget;
  LimitByMachine(budget, roots_);
  if (node >= 0) {
    LimitByNode(budget, node);
  } else {
    LimitByCpuset(budget, roots_);
  }
  LimitByCgroups(budget, roots_);
  return budget;
}

}  // namespace hybridgen
