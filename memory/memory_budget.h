// How many bytes may be reserved without anybody being killed for it.
#ifndef MEMORY_MEMORY_BUDGET_H_
#define MEMORY_MEMORY_BUDGET_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "memory/system_files.h"

namespace hybridgen {

struct MemoryBudget {
  std::optional<int64_t> bytes;  // that may be reserved now; nullopt: the system does not tell
  std::string limited_by;        // "machine", "node 1", "cpuset nodes 0, 2" or "cgroup /a/b"; empty when unknown
  int64_t free_bytes = 0;        // what is free of that which limits, before anything is left over
  std::optional<int64_t> node_bytes = std::nullopt;  // what the node alone would allow; nullopt: not told, or no node
};

// Reads the least of
// - the machine's available memory (MemAvailable),
// - the node's free memory less what its zones keep from us (node >= 0, on machines with several memory nodes): the
//   high watermark and the lowmem reserve of /proc/zoneinfo. The node's page cache is no room: an allocation that
//   prefers the node goes to another one before the kernel drops any,
// - the memory of the nodes that the cpuset allows, free or inactive page cache (node < 0, where it allows not all),
// - the room under memory.max and memory.high of every cgroup up the hierarchy (v2 or v1; inactive page cache counts
//   as room).
// Of each, a sixteenth of its size, at most 256 MiB, is left to everybody else. Files that are missing or hold garbage
// limit nothing. One thread at a time may call an object; copies are independent.
class MemoryBudgetReader {
 public:
  explicit MemoryBudgetReader(SystemRoots roots = SystemRoots()) : roots_(std::move(roots)) {}
  // node: -1 for memory of any node.
  MemoryBudget operator()(int node);

 private:
  void LimitByNode(MemoryBudget& budget, int node);

  SystemRoots roots_;
  // Bytes of each node that its zones keep; read once, because zoneinfo is long (it lists every CPU) and this constant.
  std::optional<std::map<int, int64_t>> kept_;
};

// A single question.
inline MemoryBudget ReadMemoryBudget(int node, const SystemRoots& roots = SystemRoots()) {
  return MemoryBudgetReader(roots)(node);
}

}  // namespace hybridgen

#endif  // MEMORY_MEMORY_BUDGET_H_
