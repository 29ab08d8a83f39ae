// Accounting from /proc/meminfo, the nodes' meminfo and the cgroup hierarchy.
#include "memory/memory_budget.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace hybridgen {
namespace {

constexpr int64_t kMostLeftOver = int64_t{256} << 20;
constexpr int64_t kLeftOverShare = 16;

// Lowers the budget to `available` bytes of something that is `size` bytes large.
void Limit(MemoryBudget& budget, int64_t available, int64_t size, const std::string& name) {
  const int64_t bytes = std::max<int64_t>(0, available - std::min(kMostLeftOver, size / kLeftOverShare));
  if (budget.bytes && *budget.bytes <= bytes) return;
  budget.bytes = bytes;
  budget.limited_by = name;
}

void LimitByMachine(MemoryBudget& budget, const SystemRoots& roots) {
  const std::optional<std::string> meminfo = ReadSystemFile(roots.procfs + "/meminfo");
  if (!meminfo) return;
  const std::optional<int64_t> available = ParseKibibytes(*meminfo, "MemAvailable:");
  const std::optional<int64_t> total = ParseKibibytes(*meminfo, "MemTotal:");
  if (available && total) Limit(budget, *available, *total, "machine");
}

void LimitByNode(MemoryBudget& budget, int node, const SystemRoots& roots) {
  const std::string directory = roots.sysfs + "/devices/system/node/";
  // With one memory node the machine's numbers say all. The node's own may say less: a node's meminfo leaves out
  // memory that the kernel has not initialised yet.
  const std::optional<std::string> with_memory = ReadSystemFile(directory + "has_memory");
  if (with_memory) {
    const std::optional<std::vector<int>> nodes = ParseIdList(*with_memory);
    if (nodes && nodes->size() == 1) return;
  }
  const std::optional<std::string> meminfo = ReadSystemFile(absl::StrCat(directory, "node", node, "/meminfo"));
  if (!meminfo) return;
  const std::optional<int64_t> free = ParseKibibytes(*meminfo, "MemFree:");
  const std::optional<int64_t> total = ParseKibibytes(*meminfo, "MemTotal:");
  if (!free || !total) return;
  const int64_t cache = ParseKibibytes(*meminfo, "Inactive(file):").value_or(0);
  Limit(budget, *free + cache, *total, absl::StrCat("node ", node));
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
    const std::optional<int64_t> usage = ReadCount(directory + files.usage);
    for (const char* limit_file : files.limits) {
      const std::optional<int64_t> limit = ReadCount(directory + limit_file);  // "max" is no number
      if (!usage || !limit) continue;
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

MemoryBudget ReadMemoryBudget(int node, const SystemRoots& roots) {
  MemoryBudget budget;
  LimitByMachine(budget, roots);
  if (node >= 0) LimitByNode(budget, node, roots);
  LimitByCgroups(budget, roots);
  return budget;
}

}  // namespace hybridgen
