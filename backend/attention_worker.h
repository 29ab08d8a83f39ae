// Executes work items and writes of a plan for one layer with the CPU kernels on an Executor. The CPU worker is one of
// these; the emulated device is another on threads of its own.
#ifndef BACKEND_ATTENTION_WORKER_H_
#define BACKEND_ATTENTION_WORKER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "backend/executor.h"
#include "backend/head_groups.h"
#include "backend/layer_call.h"
#include "backend/pacer.h"
#include "backend/step_plan.h"
#include "kernels/kernel_table.h"

namespace hybridgen {

class AttentionWorker {
 public:
  // `executor` outlives the worker. Allocates every worker's scratch once. Attend's reads are paced by
  // `pacers`; threads prefer the items of the head group whose memory is nearest.
  AttentionWorker(Executor* executor, const KernelSet& kernels, DType dtype, int head_size, int num_kv_heads,
                  TierPacers pacers = TierPacers(), HeadGroups head_groups = HeadGroups());
  ~AttentionWorker();

  // Writes the call's new K/V of these runs into their pages.
  absl::Status Write(const LayerCall& call, absl::Span<const WriteRun> runs);
  // Attends the items; results go to the call's output or partial workspace. `group_ends` as StepPlan::cpu_group_ends;
  // empty: whoever is free takes the next item.
  // Errors: InvalidArgument when a logit was +inf.
  absl::Status Attend(const LayerCall& call, absl::Span<const WorkItem> items,
                      absl::Span<const int32_t> group_ends = {});
  // Merges partials into the call's output, or, if given, into the rows of `to` that the items name as tokens.
  absl::Status Merge(const LayerCall& call, absl::Span<const MergeItem> merges, const PartialWorkspace* to = nullptr);

  // KV bytes that Attend has read, by the tier they lie in.
  int64_t read_bytes(Tier tier) const { return read_bytes_[static_cast<int>(tier)].load(std::memory_order_relaxed); }
  // Items that Attend took in shares of head groups, by group; and those among them taken by a thread of another group.
  int64_t items(int head_group) const { return items_[head_group].load(std::memory_order_relaxed); }
  int64_t remote_items(int head_group) const { return remote_items_[head_group].load(std::memory_order_relaxed); }
  Executor& executor() { return *executor_; }

 private:
  struct Scratch;

  void AttendItem(const LayerCall& call, const WorkItem& item, Scratch& scratch);
  void AttendPages(const LayerCall& call, const WorkItem& item, PageKind kind, Range pages, Range heads,
                   const struct Tile& tile, Scratch& scratch);

  Executor* const executor_;
  const KernelSet kernels_;
  const DType dtype_;
  const int head_size_;
  const int num_kv_heads_;
  const TierPacers pacers_;
  const HeadGroups head_groups_;
  std::vector<std::unique_ptr<Scratch>> scratch_;  // per worker of the executor
  std::atomic<bool> infinite_logit_{false};
  std::atomic<int64_t> read_bytes_[kNumTiers] = {};
  std::atomic<int64_t> items_[kMaxShares] = {};
  std::atomic<int64_t> remote_items_[kMaxShares] = {};
};

}  // namespace hybridgen

#endif  // BACKEND_ATTENTION_WORKER_H_
