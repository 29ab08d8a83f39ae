#include "backend/head_groups.h"

#include <sched.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hybridgen {
namespace {

HeadGroups OneGroup(int node, std::string reason) {
  HeadGroups groups;
  groups.nodes = {node};
  groups.reason = std::move(reason);
  return groups;
}

// DRAM nodes with CPUs that this process may use, and those CPUs.
HeadGroups GroupPerNode(const HeadGroupRequest& request, const Topology& topology) {
  HeadGroups groups;
  groups.nodes.clear();
  for (const MemoryNode& node : topology.nodes) {
    if (node.kind != MemoryKind::kDram) continue;
    std::vector<int> cpus;
    for (const int cpu : node.cpus) {
      const std::vector<int>& allowed = request.allowed_cpus;
      if (std::find(allowed.begin(), allowed.end(), cpu) != allowed.end()) cpus.push_back(cpu);
    }
    if (cpus.empty()) continue;
    groups.nodes.push_back(node.id);
    groups.cpus.push_back(std::move(cpus));
  }
  groups.count = static_cast<int>(groups.nodes.size());
  groups.reason = absl::StrCat("DRAM nodes with CPUs: ", absl::StrJoin(groups.nodes, ", "));
  return groups;
}

HeadGroups Emulated(const HeadGroupRequest& request) {
  HeadGroups groups;
  groups.count = request.wanted;
  groups.emulated = true;
  groups.nodes.assign(request.wanted, -1);
  groups.cpus.resize(request.wanted);
  for (size_t i = 0; i < request.allowed_cpus.size(); ++i) {
    groups.cpus[i % request.wanted].push_back(request.allowed_cpus[i]);
  }
  groups.reason = "as configured, on memory that is not bound";
  return groups;
}

}  // namespace

std::vector<int> CpusOf(Executor& executor) {
  std::mutex mutex;
  cpu_set_t all;
  CPU_ZERO(&all);
  // Errors are those of a dead executor, which its next use reports.
  (void)executor.Run([&](int) {
    cpu_set_t own;
    if (sched_getaffinity(0, sizeof(own), &own) != 0) return;
    std::lock_guard<std::mutex> lock(mutex);
    CPU_OR(&all, &all, &own);
  });
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &all)) cpus.push_back(cpu);
  }
  return cpus;
}

int HeadGroups::OfThisThread(int worker) const {
  const int cpu = sched_getcpu();
  for (size_t group = 0; group < cpus.size(); ++group) {
    if (std::binary_search(cpus[group].begin(), cpus[group].end(), cpu)) return static_cast<int>(group);
  }
  return worker % count;
}

absl::StatusOr<HeadGroups> ChooseHeadGroups(const HeadGroupRequest& request, const Topology& topology) {
  if (request.wanted > 1) {
    if (request.dram_node >= 0) {
      return absl::InvalidArgumentError(absl::StrCat("create backend: head_groups is ", request.wanted,
                                                     " and dram_node ", request.dram_node,
                                                     "; accepted: one of them, for a group has a node of its own"));
    }
    if (request.wanted > kMaxShares || request.num_kv_heads % request.wanted != 0) {
      return absl::InvalidArgumentError(absl::StrCat("create backend: head_groups is ", request.wanted,
                                                     "; accepted: 0 to ", kMaxShares,
                                                     ", dividing num_kv_heads = ", request.num_kv_heads));
    }
  }
  if (request.dram_node >= 0) return OneGroup(request.dram_node, "dram_node is given");
  if (request.wanted == 1) return OneGroup(-1, "as configured");
  HeadGroups groups = GroupPerNode(request, topology);
  if (request.wanted == 0) {
    if (groups.count <= 1) return OneGroup(-1, "one DRAM node with CPUs");
    if (groups.count > kMaxShares || request.num_kv_heads % groups.count != 0) {
      return OneGroup(
          -1, absl::StrCat(request.num_kv_heads, " KV heads cannot be divided among ", groups.count, " DRAM nodes"));
    }
  } else if (groups.count != request.wanted) {
    return Emulated(request);
  }
  for (std::vector<int>& cpus : groups.cpus) std::sort(cpus.begin(), cpus.end());
  return groups;
}

}  // namespace hybridgen
