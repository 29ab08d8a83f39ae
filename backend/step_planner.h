// Turns a batch into a StepPlan: which page every new token is written to, who attends which pages.
#ifndef BACKEND_STEP_PLANNER_H_
#define BACKEND_STEP_PLANNER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "backend/block_digests.h"
#include "backend/block_table_mirror.h"
#include "backend/copy_sink.h"
#include "backend/device_worker.h"
#include "backend/executor.h"
#include "backend/host_tiers.h"
#include "backend/mover.h"
#include "backend/step_plan.h"
#include "memory/block_manager.h"
#include "scheduler/step_knobs.h"

namespace hybridgen {

// One engine step as the engine describes it. All spans are host memory, borrowed for the call.
struct StepBatch {
  absl::Span<const int32_t> query_start;  // [num_sequences + 1]
  absl::Span<const int32_t> seq_lens;     // [num_sequences]
  bool causal = true;
  // Exactly one of the two: rows of block ids, or requests of the mirror.
  const int32_t* block_tables = nullptr;  // [num_sequences][block_table_stride]
  int64_t block_table_stride = 0;
  absl::Span<const uint64_t> requests;
  // Identity binding only, may be null: slot = block * block_size + offset per token, negative: not written.
  absl::Span<const int64_t> slot_mapping;
  bool has_slot_mapping = false;
};

// What a planner knows of the layers.
struct LayerLimits {
  // Widest sliding window if every layer has one, else 0: table entries before it are never looked at.
  int32_t widest_window = 0;
  SplitOptions split;
};

class StepPlanner {
 public:
  virtual ~StepPlanner() = default;
  // Fills `plan`, whose memory is reused. Errors: InvalidArgument for a malformed batch; NotFound for a request
  // without a table; ResourceExhausted when no tier has room.
  virtual absl::Status Plan(const StepBatch& batch, const LayerLimits& limits, StepPlan& plan) = 0;
};

// The engine's tensor is the cache: block id = page of the pool.
std::unique_ptr<StepPlanner> CreateIdentityPlanner(int block_size);

// Block ids range over all tiers. All pointers outlive the planner.
struct TieredPlannerOptions {
  int block_size = 0;
  int64_t num_blocks = 0;
  int recent_blocks = 0;
  BlockManager* blocks = nullptr;
  const HostTiers* host = nullptr;
  BlockTableMirror* mirror = nullptr;
  CopySink* copies = nullptr;
  Mover* mover = nullptr;           // null: no migrations
  BlockDigests* digests = nullptr;  // null: none are built
  Executor* executor = nullptr;     // builds digests, idle while a step is planned; null: the planning thread, alone
  const StepKnobs* knobs = nullptr;
  // Takes pool pages and the streamed share; null: the CPU takes everything.
  DeviceWorker* device = nullptr;
};
std::unique_ptr<StepPlanner> CreateTieredPlanner(const TieredPlannerOptions& options);

}  // namespace hybridgen

#endif  // BACKEND_STEP_PLANNER_H_
