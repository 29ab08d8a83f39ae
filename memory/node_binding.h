// Binding a range of addresses to a NUMA node before its pages get memory.
#ifndef MEMORY_NODE_BINDING_H_
#define MEMORY_NODE_BINDING_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "memory/memory_policy.h"
#include "memory/system_files.h"

namespace hybridgen {

// What becomes of pages that the node cannot hold. No policy binds hard: past a node's capacity the kernel would kill
// a process rather than refuse.
enum class NodeBinding : uint8_t {
  kNone,      // wherever the process allocates
  kAdvisory,  // the node is preferred; pages may lie elsewhere, Arena::VerifyPlacement tells
  kStrict,    // every page lies on the node, or Arena::Create fails
};

struct BindOutcome {
  NodeBinding binding = NodeBinding::kNone;  // as asked, or kNone where the kernel permits none
  std::string note;                          // why it is kNone; else empty
};

// Whether this process may have memory of the node. InvalidArgument tells which it is: absent (sysfs lists no memory
// for it) or outside the process's cpuset. What cannot be read refuses nothing.
absl::Status CheckNode(int node, const MemoryPolicyCalls& calls, const SystemRoots& roots);

// Makes `node`, which CheckNode found usable, the preferred one of the range. Advisory binding survives a kernel that
// permits none. Errors: FailedPrecondition (the same, strict), InvalidArgument (the kernel refuses the node).
absl::StatusOr<BindOutcome> BindToNode(absl::Span<std::byte> range, int node, NodeBinding binding,
                                       const MemoryPolicyCalls& calls);

}  // namespace hybridgen

#endif  // MEMORY_NODE_BINDING_H_
