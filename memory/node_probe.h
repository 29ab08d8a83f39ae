// Measures the machine's memory nodes and mapped CXL devices, with memory reserved on them for the while.
#ifndef MEMORY_NODE_PROBE_H_
#define MEMORY_NODE_PROBE_H_

#include <chrono>
#include <functional>
#include <map>
#include <string>
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
  // All of them together. Memory so slow that one piece of 2 MiB takes longer than its share exceeds it.
  std::chrono::nanoseconds time_limit = std::chrono::milliseconds(800);
  std::vector<int> cpus = AllowedCpus();  // at most 64 of them are used at once
  std::function<std::chrono::nanoseconds()> now = ProbeOptions().now;
  std::string device_directory = "/dev/";
  ArenaOptions arena;  // what it asks of the system; name, node, binding and device are filled in
};

using NodeSpeeds = std::map<int, absl::StatusOr<ReadSpeed>>;            // by id
using DeviceSpeeds = std::map<std::string, absl::StatusOr<ReadSpeed>>;  // by name
struct MemorySpeeds {
  NodeSpeeds nodes;
  DeviceSpeeds devices;  // CXL memory that programs map; read, never written
};

// A status says why memory could not be measured: ResourceExhausted (no room for the smallest piece),
// FailedPrecondition (the kernel lets nobody bind memory to a node, or tell where it lies; a device is held by another
// or may not be opened), NotFound, InvalidArgument (it is gone), Internal.
MemorySpeeds ProbeMemory(const Topology& topology, const NodeProbeOptions& options = {});

}  // namespace hybridgen

#endif  // MEMORY_NODE_PROBE_H_
