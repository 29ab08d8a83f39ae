// Discovery of the machine's memory: nodes, what their memory is and how that was recognised, memory devices, GPUs.
#ifndef MEMORY_TOPOLOGY_H_
#define MEMORY_TOPOLOGY_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "memory/memory_node.h"
#include "memory/system_files.h"

namespace hybridgen {

// Reads sysfs and procfs. Never fails: what cannot be read stays unknown.
Topology ReadTopology(const SystemRoots& roots = SystemRoots());

// The same with kinds that the operator says, such as "2:cxl,3:hbm"; they win over what was recognised.
// InvalidArgument: the text is wrong, or names a node that has no memory.
absl::StatusOr<Topology> ReadTopology(const SystemRoots& roots, absl::string_view kind_overrides);

}  // namespace hybridgen

#endif  // MEMORY_TOPOLOGY_H_
