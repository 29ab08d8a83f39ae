// The machine's memory nodes.
#ifndef MEMORY_TOPOLOGY_H_
#define MEMORY_TOPOLOGY_H_

#include <cstdint>
#include <vector>

#include "memory/system_files.h"

namespace hybridgen {

// What a node's memory is. A node without CPUs may be CXL, HBM or persistent memory, or DRAM that lies apart.
enum class MemoryKind : uint8_t { kUnknown, kDram, kCxl, kHbm, kPersistent };
const char* MemoryKindName(MemoryKind kind);

enum class NodeCpus : uint8_t { kNone, kSome };

struct MemoryNode {
  int id = 0;
  NodeCpus cpus = NodeCpus::kNone;
  int64_t total_bytes = 0;  // 0: unknown
  int64_t free_bytes = 0;   // 0: unknown
  MemoryKind kind = MemoryKind::kUnknown;
};

struct Topology {
  std::vector<MemoryNode> nodes;  // with memory, by id; empty: the kernel does not tell
};

// Reads the nodes from sysfs. Nodes with CPUs are DRAM, the others of unknown kind. Never fails: what cannot be read
// stays unknown.
Topology ReadTopology(const SystemRoots& roots = SystemRoots());

}  // namespace hybridgen

#endif  // MEMORY_TOPOLOGY_H_
