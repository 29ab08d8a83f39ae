// Which NUMA node the pages of a range lie on, by asking the kernel, and moving those that lie on another.
#ifndef MEMORY_PAGE_NODES_H_
#define MEMORY_PAGE_NODES_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "memory/memory_budget.h"
#include "memory/memory_policy.h"

namespace hybridgen {

// Who says where pages lie. kDevice: a mapped /dev/dax device, by its target node; of such pages the kernel knows no
// node, or a wrong one.
enum class PlacementSource : uint8_t { kKernel, kDevice };

// Where sampled pages lie; in pages of the system's page size (4 KiB), whatever the size of huge pages.
struct PlacementReport {
  std::map<int, int64_t> pages_on_node;
  int64_t pages_unknown = 0;    // no node was told: no memory yet, or swapped out
  int64_t pages_elsewhere = 0;  // on a node other than the one that was asked for; 0 if none was
  PlacementSource source = PlacementSource::kKernel;
};

// In pages; misplaced = repaired + unmovable + no_room.
struct RepairReport {
  int64_t misplaced = 0;  // were on another node
  int64_t repaired = 0;   // lie on the node now
  int64_t unmovable = 0;  // stayed, pinned most likely. A pinned page may keep others of its 2 MiB from moving
  int64_t no_room = 0;    // not tried: the node had no memory to spare
};

// Asks where `sample` pages of the range, spread evenly, lie (0: all pages). `node`: where they belong; -1: anywhere.
// FailedPrecondition where the kernel does not permit the question.
absl::StatusOr<PlacementReport> QueryPlacement(absl::Span<std::byte> range, int node, int64_t sample,
                                               const MemoryPolicyCalls& calls);

// Moves the pages that lie on other nodes to `node`, 2 MiB at a time while budget(node).node_bytes has room for them,
// and asks again where they are. The range starts at a multiple of 2 MiB; it may be read and written meanwhile.
// FailedPrecondition where the kernel permits no question or no move.
absl::StatusOr<RepairReport> MoveToNode(absl::Span<std::byte> range, int node,
                                        const std::function<MemoryBudget(int node)>& budget,
                                        const MemoryPolicyCalls& calls);

}  // namespace hybridgen

#endif  // MEMORY_PAGE_NODES_H_
