// What a backend reports about itself, and its JSON form (docs/statistics.md).
#ifndef BACKEND_STATISTICS_H_
#define BACKEND_STATISTICS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "backend/block_digests.h"
#include "backend/mover.h"
#include "memory/block_manager.h"
#include "memory/tier.h"

namespace hybridgen {

struct TierStatistics {
  bool configured = false;
  bool emulated = false;                  // stands for hardware that is not there
  int node = -1;                          // NUMA node; -1: not bound to one
  double paced_gigabytes_per_second = 0;  // that the CPU worker's reads are held to; 0: not paced
  int64_t capacity_bytes = 0;
  int64_t resident_key_bytes = 0;
  int64_t resident_value_bytes = 0;
  int64_t cpu_read_bytes = 0;     // KV bytes that the CPU worker attended here
  int64_t device_read_bytes = 0;  // KV bytes that the device worker attended here (streamed, for host tiers)
};

// One piece of a host tier's memory. Pages are the system's (4 KiB).
struct ArenaStatistics {
  Tier tier = Tier::kDram;
  PageRole role = PageRole::kKey;
  int head_group = 0;
  int node = -1;  // where its pages belong; -1: anywhere
  int64_t capacity_bytes = 0;
  int64_t resident_bytes = 0;
  // Of the sample that was looked at last.
  std::map<int, int64_t> sampled_pages_on_node;
  int64_t sampled_pages_unknown = 0;
  int64_t misplaced_pages = 0;  // on another node than `node`
  // Totals.
  int64_t repaired_pages = 0;   // moved back
  int64_t unmovable_pages = 0;  // tried, stayed
  int64_t no_room_pages = 0;    // not tried: the node was full
  int64_t registered_bytes = 0;
  int64_t pin_failures = 0;
};

// How host pages are placed.
struct PlacementStatistics {
  std::string policy;  // empty in the identity binding
  std::string reason;
  std::string host_page_format;          // HostPageFormatName
  int64_t host_block_bytes = 0;          // of one block in a host tier, both roles, all layers
  double cxl_share[kNumRoles] = {0, 0};  // that the policy wants
  std::vector<std::string> notes;        // what could not be bound, verified or registered
  std::vector<ArenaStatistics> arenas;
};

// A part of the KV heads (head_groups.h). Totals since creation.
struct HeadGroupStatistics {
  int node = -1;  // of its DRAM pages; -1: wherever
  bool emulated = false;
  int64_t items = 0;         // attended by the CPU worker; not counted with one group
  int64_t remote_items = 0;  // of these, by a thread that runs nearer to another group's memory
};

// All totals since creation.
struct BackendStatistics {
  std::string device_kind;
  std::string binding;
  std::string kernels;   // row of the kernel table
  std::string executor;  // of the CPU worker
  TierStatistics tiers[kNumTiers];
  int64_t steps = 0;
  int64_t tokens_written = 0;
  int64_t forward_calls = 0;
  double device_seconds = 0;  // device worker attending
  double cpu_seconds = 0;     // CPU worker attending
  double merge_seconds = 0;
  double transfer_seconds = 0;  // pages moving between tiers
  double wait_seconds = 0;      // calling thread waiting for the device
  double streaming_share = 0;
  PlacementStatistics placement;
  BlockManagerStats blocks;  // zeros in the identity binding
  MoverStatistics mover;
  std::optional<DigestStatistics> page_digests;  // unset: none are built
  std::string head_groups_reason;                // why there are as many
  std::vector<HeadGroupStatistics> head_groups;  // of the tiered binding

  // Share of the attended KV bytes that the CPU worker read; 0 before the first call.
  double CpuShare() const;
  std::string ToJson() const;
};

}  // namespace hybridgen

#endif  // BACKEND_STATISTICS_H_
