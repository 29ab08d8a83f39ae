// Concludes what each node's memory is from the facts that were read. Pure functions.
#ifndef MEMORY_NODE_CLASSIFIER_H_
#define MEMORY_NODE_CLASSIFIER_H_

#include <map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "memory/memory_node.h"

namespace hybridgen {

// Kinds by node id, said by the operator.
using KindOverrides = std::map<int, MemoryKind>;

// Parses "2:cxl,3:hbm"; empty text is no override. InvalidArgument names the item and what is accepted.
absl::StatusOr<KindOverrides> ParseKindOverrides(absl::string_view text);

// Fills kind and speed of every node, with the evidence. In this order: what the operator said; devices that account
// for all of the node's memory; a node with CPUs and no device memory is DRAM; a node without CPUs whose bandwidth is
// more than twice DRAM's is HBM. Anything else is unknown: slow memory without CPUs may be CXL, persistent memory or
// DRAM that lies apart. InvalidArgument if an override names a node that is not there.
absl::Status ClassifyNodes(const KindOverrides& overrides, std::vector<MemoryNode>& nodes);

}  // namespace hybridgen

#endif  // MEMORY_NODE_CLASSIFIER_H_
