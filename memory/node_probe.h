// Measures every memory node of the machine, with memory reserved for it for the while.
#ifndef MEMORY_NODE_PROBE_H_
#define MEMORY_NODE_PROBE_H_

#include <chrono>
#include <functional>
#include <map>
#include <vector>

#include "absl/status/statusor.h"
#include "memory/arena.h"
#include "memory/bandwidth_probe.h"
#include "memory/memory_node.h"

namespace hybridgen {

// CPUs that this process may use, ascending.
std::vector<int> AllowedCpus();

// Those of `allowed` that read the node best: of the nearest node (by distance, itself first) that has any. All of them
// if the distances are not known and the node has none of its own.
std::vector<int> NearestCpus(const Topology& topology, int node, const std::vector<int>& allowed);

struct NodeProbeOptions {
  // All nodes together. Memory so slow that one piece of 2 MiB takes longer than the node's share exceeds it.
  std::chrono::nanoseconds time_limit = std::chrono::milliseconds(800);
  std::vector<int> cpus = AllowedCpus();  // at most 64 of them are used for a node
  std::function<std::chrono::nanoseconds()> now = ProbeOptions().now;
  ArenaOptions arena;  // name, node and binding are filled in
};

// By node id. A node's status says why it could not be measured: ResourceExhausted (it has no room for the smallest
// piece), FailedPrecondition (the kernel lets nobody bind memory to a node, or tell where it lies), Internal.
std::map<int, absl::StatusOr<ReadSpeed>> ProbeNodes(const Topology& topology, const NodeProbeOptions& options = {});

}  // namespace hybridgen

#endif  // MEMORY_NODE_PROBE_H_
