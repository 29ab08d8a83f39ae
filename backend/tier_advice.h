// Which memory the tiers should take on a machine, how much of it, how pages should be spread, and why.
#ifndef BACKEND_TIER_ADVICE_H_
#define BACKEND_TIER_ADVICE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "memory/bandwidth_probe.h"
#include "memory/memory_budget.h"
#include "memory/memory_node.h"
#include "memory/node_probe.h"
#include "scheduler/cost_model.h"

namespace hybridgen {

// What is known of a node beside the topology.
struct NodeState {
  std::optional<absl::StatusOr<ReadSpeed>> speed;  // nullopt: nobody measured it
  MemoryBudget budget;
};
using NodeStates = std::map<int, NodeState>;  // by node id

enum class SpeedSource : uint8_t { kUnknown, kFirmware, kMeasured };
const char* SpeedSourceName(SpeedSource source);

struct TierAdvice {
  std::vector<int> nodes;        // several: the process's threads allocate on their own
  std::string device;            // a DAX device to map, in place of a node. Neither: no memory for this tier.
  std::string why;               // what it was chosen for, or why nothing was
  std::optional<int64_t> bytes;  // half of what may still be reserved there
  // Of all nodes together; the latency is the longest of them.
  std::optional<double> bytes_per_second;
  std::optional<double> nanoseconds;
  SpeedSource source = SpeedSource::kUnknown;
};

struct Advice {
  TierAdvice dram;
  TierAdvice cxl;
  // Of host pages, where there are two tiers: kProportional if the bandwidths of both are known from one source
  // (firmware names peaks, a measurement what these CPUs read, so they are not compared), else kRolePriority.
  std::optional<SpreadKind> spread;
  std::optional<double> value_share_on_cxl;  // of kProportional, for K and V of equal size and with room for them
  std::string spread_why;
  std::vector<std::string> warnings;
  // Variables to set, in this order; what `auto` does right is left out.
  std::vector<std::pair<std::string, std::string>> settings;
};

// Memory of unknown kind is never chosen; a warning says how to name it. `devices`: what was measured of mapped DAX
// devices. A pure function.
Advice Advise(const Topology& topology, const NodeStates& states, const DeviceSpeeds& devices = {});

// "DRAM node 0", "CXL node 1", "node 2 (unknown)".
std::string NodeLabel(const MemoryNode& node);

}  // namespace hybridgen

#endif  // BACKEND_TIER_ADVICE_H_
