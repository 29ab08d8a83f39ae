// Reserves small strict arenas on a node until there are enough to read, or a part of a device, and measures them.
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

// Reserves up to `wanted` bytes in arenas of `piece` bytes each, in half of the time, and measures them in the rest.
absl::StatusOr<ReadSpeed> ProbeArenas(const ArenaOptions& arena, int64_t piece, int64_t wanted, nanoseconds time_limit,
                                      ProbeOptions probe) {
  const nanoseconds begin = probe.now();
  std::vector<std::unique_ptr<Arena>> arenas;
  std::vector<absl::Span<const std::byte>> pieces;
  do {
    absl::StatusOr<std::unique_ptr<Arena>> created = Arena::Create(piece, arena);
    if (!created.ok()) {
      if (pieces.empty()) return created.status();
      break;  // what there is must do
    }
    pieces.emplace_back((*created)->data(), static_cast<size_t>((*created)->bytes()));
    arenas.push_back(*std::move(created));
  } while (static_cast<int64_t>(pieces.size()) * piece < wanted && probe.now() - begin < time_limit / 2);
  probe.time_limit = std::clamp(time_limit - (probe.now() - begin), nanoseconds(0), probe.time_limit);
  return ProbeRange(pieces, probe);
}

ProbeOptions Readers(const Topology& topology, int node, const NodeProbeOptions& options) {
  ProbeOptions probe;
  probe.now = options.now;
  probe.cpus = NearestCpus(topology, node, options.cpus);
  if (probe.cpus.size() > kMostThreads) probe.cpus.resize(kMostThreads);
  return probe;
}

int64_t WantedBytes(const ProbeOptions& probe) { return ProbeBytes(std::max<int>(1, probe.cpus.size())); }

absl::StatusOr<ReadSpeed> ProbeNode(const Topology& topology, int node, nanoseconds time_limit,
                                    const NodeProbeOptions& options) {
  ArenaOptions arena = options.arena;
  arena.name = absl::StrCat("to measure node ", node);
  if (topology.nodes.size() > 1) {  // else all memory is the node's, even where nobody may bind
    arena.node = node;
    arena.binding = NodeBinding::kStrict;
  }
  const ProbeOptions probe = Readers(topology, node, options);
  return ProbeArenas(arena, kPieceBytes, WantedBytes(probe), time_limit, probe);
}

// One arena: parts of a device need not be reserved piece by piece, as it has the memory.
absl::StatusOr<ReadSpeed> ProbeDevice(const Topology& topology, const DaxDevice& device, nanoseconds time_limit,
                                      const NodeProbeOptions& options) {
  ArenaOptions arena = options.arena;
  arena.name = absl::StrCat("to measure ", device.name);
  arena.dax_device = options.device_directory + device.name;
  const ProbeOptions probe = Readers(topology, device.target_node.value_or(-1), options);
  const int64_t bytes = std::min(WantedBytes(probe), device.bytes.value_or(kPieceBytes));
  return ProbeArenas(arena, bytes, bytes, time_limit, probe);
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

MemorySpeeds ProbeMemory(const Topology& topology, const NodeProbeOptions& options) {
  std::vector<const DaxDevice*> devices;
  for (const DaxDevice& device : topology.dax_devices) {
    if (device.kind == MemoryKind::kCxl && device.use == DaxUse::kMapped) devices.push_back(&device);
  }
  int64_t left = topology.nodes.size() + devices.size();
  const nanoseconds end = options.now() + options.time_limit;
  const auto share = [&] { return std::max(nanoseconds(0), (end - options.now()) / left--); };
  MemorySpeeds speeds;
  for (const MemoryNode& node : topology.nodes) {
    speeds.nodes.emplace(node.id, ProbeNode(topology, node.id, share(), options));
  }
  for (const DaxDevice* device : devices) {
    speeds.devices.emplace(device->name, ProbeDevice(topology, *device, share(), options));
  }
  return speeds;
}

}  // namespace hybridgen
