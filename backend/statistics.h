// What a backend reports about itself, and its JSON form (docs/statistics.md).
#ifndef BACKEND_STATISTICS_H_
#define BACKEND_STATISTICS_H_

#include <cstdint>
#include <string>

#include "backend/mover.h"
#include "memory/block_manager.h"
#include "memory/tier.h"

namespace hybridgen {

struct TierStatistics {
  bool configured = false;
  bool emulated = false;  // stands for hardware that is not there
  int node = -1;          // NUMA node; -1: not bound to one
  int64_t capacity_bytes = 0;
  int64_t resident_key_bytes = 0;
  int64_t resident_value_bytes = 0;
  int64_t cpu_read_bytes = 0;     // KV bytes that the CPU worker attended here
  int64_t device_read_bytes = 0;  // KV bytes that the device worker attended here (streamed, for host tiers)
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
  BlockManagerStats blocks;  // zeros in the identity binding
  MoverStatistics mover;

  // Share of the attended KV bytes that the CPU worker read; 0 before the first call.
  double CpuShare() const;
  std::string ToJson() const;
};

}  // namespace hybridgen

#endif  // BACKEND_STATISTICS_H_
