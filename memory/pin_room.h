// Whether there is room for what the kernel does when pages are pinned for a device.
#ifndef MEMORY_PIN_ROOM_H_
#define MEMORY_PIN_ROOM_H_

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "memory/memory_budget.h"
#include "memory/system_files.h"

namespace hybridgen {

// A long-term pin of pages in a movable zone makes the kernel move them out of it first. On a node that has no other
// zone they go to other nodes, and if those are full the kernel kills a process. ResourceExhausted if pinning `bytes`
// on `node` would move them and the nodes with unmovable memory have no room; names node, wanted and available bytes.
// What cannot be read refuses nothing.
absl::Status CheckPinRoom(int node, int64_t bytes, const std::function<MemoryBudget(int node)>& budget,
                          const SystemRoots& roots);

}  // namespace hybridgen

#endif  // MEMORY_PIN_ROOM_H_
