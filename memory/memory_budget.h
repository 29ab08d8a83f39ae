// How many bytes may be reserved without anybody being killed for it.
#ifndef MEMORY_MEMORY_BUDGET_H_
#define MEMORY_MEMORY_BUDGET_H_

#include <cstdint>
#include <optional>
#include <string>

#include "memory/system_files.h"

namespace hybridgen {

struct MemoryBudget {
  std::optional<int64_t> bytes;  // that may be reserved now; nullopt: the system does not tell
  std::string limited_by;        // "machine", "node 1" or "cgroup /a/b"; empty when unknown
};

// The least of: the machine's available memory, the node's free memory and page cache (node >= 0, on machines with
// several memory nodes), and the room under memory.max and memory.high of every cgroup up the hierarchy (v2 or v1;
// inactive page cache counts as room). Of each, a sixteenth of its size, at most 256 MiB, is left to everybody else.
// Files that are missing or hold garbage limit nothing.
MemoryBudget ReadMemoryBudget(int node, const SystemRoots& roots = SystemRoots());

}  // namespace hybridgen

#endif  // MEMORY_MEMORY_BUDGET_H_
