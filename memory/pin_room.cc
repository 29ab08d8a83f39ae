// has_normal_memory, and the budget of the nodes in it.
#include "memory/pin_room.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hybridgen {

absl::Status CheckPinRoom(int node, int64_t bytes, const std::function<MemoryBudget(int node)>& budget,
                          const SystemRoots& roots) {
  const std::optional<std::vector<int>> unmovable = ReadIdList(roots.sysfs + "/devices/system/node/has_normal_memory");
  if (!unmovable || std::find(unmovable->begin(), unmovable->end(), node) != unmovable->end()) {
    return absl::OkStatus();
  }
  int64_t room = 0;
  for (const int other : *unmovable) {
    const std::optional<int64_t> there = budget(other).node_bytes;
    if (!there) return absl::OkStatus();
    room += *there;
  }
  if (bytes <= room) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "all memory of node ", node, " is movable, so pinning moves its pages to nodes ", absl::StrJoin(*unmovable, ", "),
      ": wanted ", bytes, " bytes, available ", room,
      " there; online the node's memory as not movable (daxctl online-memory --no-movable) or map the device"));
}

}  // namespace hybridgen
