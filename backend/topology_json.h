// The machine's memory topology as JSON (docs/topology.md).
#ifndef BACKEND_TOPOLOGY_JSON_H_
#define BACKEND_TOPOLOGY_JSON_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "backend/tier_advice.h"
#include "memory/memory_node.h"

namespace hybridgen {

// With what is known of nodes and mapped devices, and the advice that follows.
std::string ToJson(const Topology& topology, const NodeStates& states, const DeviceSpeeds& devices = {});

// Reads the topology below `root`, the directory that holds sys and proc ("" is the running machine's), with the
// operator's kinds ("2:cxl,3:hbm" or ""). InvalidArgument: `root` is no directory, or the kinds are wrong.
absl::StatusOr<std::string> TopologyJson(const std::string& root, absl::string_view kind_overrides);

// The running machine's, its nodes measured, which takes up to a second.
absl::StatusOr<std::string> MeasuredTopologyJson(absl::string_view kind_overrides);

}  // namespace hybridgen

#endif  // BACKEND_TOPOLOGY_JSON_H_
