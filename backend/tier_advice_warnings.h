// What the advice warns of, and what its two halves share. Only for tier_advice.cc.
#ifndef BACKEND_TIER_ADVICE_WARNINGS_H_
#define BACKEND_TIER_ADVICE_WARNINGS_H_

#include <string>
#include <vector>

#include "backend/tier_advice.h"

namespace hybridgen {

// Measurements that failed or surprise, memory that is not used, and what the chosen tiers suffer from.
std::vector<std::string> MachineWarnings(const Topology& topology, const NodeStates& states,
                                         const DeviceSpeeds& devices, const Advice& advice);

const MemoryNode* FindNode(const Topology& topology, int id);        // null: no such node
const ReadSpeed* MeasuredSpeed(const NodeStates& states, int node);  // null: not measured
std::vector<const Gpu*> ServedGpus(const Topology& topology);        // NVIDIA's whose node is known
std::string RateText(double bytes_per_second);                       // "21.3 GB/s"
std::string NodeList(const std::vector<int>& nodes);                 // "node 0", "nodes 0, 1"

}  // namespace hybridgen

#endif  // BACKEND_TIER_ADVICE_WARNINGS_H_
