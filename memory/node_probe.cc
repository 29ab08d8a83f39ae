// Reserves small strict arenas on a node until there are enough to read, then measures them.
#include "memory/node_probe.h"

#include <sched.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

using std::chrono::nanoseconds;

constexpr int64_t kPieceBytes = int64_t{2} << 20;
constexpr size_t kMostThreads = 64;

absl::StatusOr<ReadSpeed> ProbeNode(const Topology& topology, int node, nanoseconds time_limit,
                                    const NodeProbeOptions& options) {
  const nanoseconds begin = options.now();
  ProbeOptions probe;
  probe.now = options.now;
  probe.cpus = NearestCpus(topology, node, options.cpus);
  if (probe.cpus.size() > kMostThreads) probe.cpus.resize(kMostThreads);

  ArenaOptions arena = options.arena;
  arena.name = absl::StrCat("to measure node ", node);
  if (topology.nodes.size() > 1) {  // else all memory is the node's, even where nobody may bind
    arena.node = node;
    arena.binding = NodeBinding::kStrict;
  }
  std::vector<std::unique_ptr<Arena>> arenas;
  std::vector<absl::Span<const std::byte>> pieces;
  const int64_t wanted = ProbeBytes(std::max<int>(1, probe.cpus.size()));
  do {
    absl::StatusOr<std::unique_ptr<Arena>> piece = Arena::Create(kPieceBytes, arena);
    if (!piece.ok()) {
      if (pieces.empty()) return piece.status();
      break;  // what there is must do
    }
    pieces.emplace_back((*piece)->data(), static_cast<size_t>((*piece)->bytes()));
    arenas.push_back(*std::move(piece));
  } while (static_cast<int64_t>(pieces.size()) * kPieceBytes < wanted && options.now() - begin < time_limit / 2);
  probe.time_limit = std::clamp(time_limit - (options.now() - begin), nanoseconds(0), probe.time_limit);
  return ProbeRange(pieces, probe);
}

}  // namespace

std::vector<int> AllowedCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

std::vector<int> NearestCpus(const Topology& topology, int node, const std::vector<int>& allowed) {
  const auto self = std::find_if(topology.nodes.begin(), topology.nodes.end(),
                                 [node](const MemoryNode& other) { return other.id == node; });
  if (self == topology.nodes.end()) return allowed;
  std::vector<int> nearest;
  int least = std::numeric_limits<int>::max();
  for (const MemoryNode& other : topology.nodes) {
    const auto known = self->distances.find(other.id);
    if (other.id != node && known == self->distances.end()) continue;
    const int distance = other.id == node ? 0 : known->second;
    std::vector<int> cpus;
    std::set_intersection(other.cpus.begin(), other.cpus.end(), allowed.begin(), allowed.end(),
                          std::back_inserter(cpus));
    if (cpus.empty() || distance >= least) continue;
    least = distance;
    nearest = std::move(cpus);
  }
  return nearest.empty() ? allowed : nearest;
}

std::map<int, absl::StatusOr<ReadSpeed>> ProbeNodes(const Topology& topology, const NodeProbeOptions& options) {
  std::map<int, absl::StatusOr<ReadSpeed>> speeds;
  const nanoseconds end = options.now() + options.time_limit;
  for (size_t i = 0; i < topology.nodes.size(); ++i) {
    const nanoseconds share = (end - options.now()) / static_cast<int64_t>(topology.nodes.size() - i);
    const int node = topology.nodes[i].id;
    speeds.emplace(node, ProbeNode(topology, node, std::max(nanoseconds(0), share), options));
  }
  return speeds;
}

}  // namespace hybridgen
