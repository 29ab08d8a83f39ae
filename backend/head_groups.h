// KV head groups: on a machine with several sockets the host pages of each part of the KV heads lie in one socket's
// DRAM and are read by that socket's CPUs.
#ifndef BACKEND_HEAD_GROUPS_H_
#define BACKEND_HEAD_GROUPS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "backend/executor.h"
#include "memory/memory_node.h"

namespace hybridgen {

struct HeadGroups {
  int count = 1;
  bool emulated = false;          // stand for nodes that the machine does not have
  std::vector<int> nodes = {-1};  // [count] NUMA node of the group's DRAM pages; -1: wherever the process allocates
  std::vector<std::vector<int>> cpus;  // [count] CPUs that belong to the group; empty with one group
  std::string reason;                  // why there are as many, for the log

  // The group whose memory is nearest to the CPU that the calling thread runs on now. Threads need not be pinned. Where
  // that CPU belongs to no group: one by the worker's number.
  int OfThisThread(int worker) const;
};

// CPUs that the executor's workers may run on, ascending.
std::vector<int> CpusOf(Executor& executor);

struct HeadGroupRequest {
  int wanted = 0;  // 0: one for each DRAM node with CPUs; else exactly so many
  int num_kv_heads = 1;
  int dram_node = -1;             // >= 0: all DRAM pages on this node, hence one group
  std::vector<int> allowed_cpus;  // of the workers, ascending
};

// One group where the machine has one DRAM node with allowed CPUs, where the KV heads cannot be divided evenly among
// the nodes, or where there are more nodes than work can be shared among. A wanted number that is not the number of
// nodes gives groups that are emulated: not bound, with a share of the CPUs each.
// Errors: InvalidArgument (the KV heads cannot be divided so, or a node was named as well).
absl::StatusOr<HeadGroups> ChooseHeadGroups(const HeadGroupRequest& request, const Topology& topology);

}  // namespace hybridgen

#endif  // BACKEND_HEAD_GROUPS_H_
