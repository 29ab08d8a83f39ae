// The plan of one engine step: plain data, made once on the host and run by every layer.
#ifndef BACKEND_STEP_PLAN_H_
#define BACKEND_STEP_PLAN_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "memory/tier.h"

namespace hybridgen {

// How attention of the step is answered. Approximate modes plug in here.
enum class AttentionMode : uint8_t { kExact };

// How a page's content is stored and therefore addressed.
enum class PageKind : uint8_t {
  kPool,  // k, v: page index in the engine's tensor (block id or device page)
  kHost,  // k, v: address of the page's layer 0 in a host arena
};

// One page of a sequence, layer-independent.
struct PlanPage {
  uint64_t k = 0;
  uint64_t v = 0;
  int32_t first_position = 0;  // of its token 0 in the sequence
  int32_t num_tokens = 0;      // valid tokens
  Tier k_tier = Tier::kDevice;
  Tier v_tier = Tier::kDevice;
};

// Consecutive tokens of the step that land in one page.
struct WriteRun {
  PageKind kind = PageKind::kPool;
  uint64_t k = 0;  // as PlanPage
  uint64_t v = 0;
  int32_t offset = 0;  // token offset in the page
  int32_t token = 0;   // first row of the step's key/value tensors
  int32_t num_tokens = 0;
};

struct Range {
  int32_t begin = 0;
  int32_t end = 0;
  int32_t size() const { return end - begin; }
};

// One sequence of the batch. Page ranges index StepPlan::pages.
struct PlanSequence {
  int32_t query_start = 0;  // first row in the step's query tensor
  int32_t query_len = 0;
  int32_t seq_len = 0;   // query tokens are its last query_len tokens
  Range pool_pages;      // attended by the device worker (the CPU worker in the `cpu` kind)
  Range streamed_pages;  // host pages that the device attends
  Range host_pages;      // host pages that the CPU worker attends
};

// Query tokens [tokens) of a sequence x KV heads [heads) x pages, attended as one unit by one worker.
struct WorkItem {
  int32_t sequence = 0;
  Range tokens;  // inside the sequence's query
  Range heads;   // KV heads
  Range pool_pages;
  Range host_pages;
  int32_t partial_row = -1;  // row of tokens.begin in the partial workspace; -1: rows are complete, write the output
  bool owns_sink = false;    // exactly one item per (token, head) puts the attention sink in
};

// Rows [row, row + count * stride) step stride of the partial workspace merge into the output row `token`.
struct MergeItem {
  int32_t token = 0;  // row of the step's output tensor
  int32_t row = 0;
  int32_t count = 0;
  int32_t stride = 0;
};

struct StepPlan {
  int64_t step = 0;
  AttentionMode mode = AttentionMode::kExact;
  bool causal = true;
  // Every key position before this is outside all windows known when the plan was made.
  int32_t window_tokens = 0;  // widest window that was assumed; 0: unlimited
  int64_t max_block = -1;     // largest block id that the plan refers to
  int32_t num_tokens = 0;     // rows of the query tensor
  std::vector<PlanSequence> sequences;
  std::vector<PlanPage> pages;
  std::vector<WriteRun> pool_writes;
  std::vector<WriteRun> host_writes;
  std::vector<WorkItem> device_items;  // empty in the `cpu` kind
  std::vector<WorkItem> cpu_items;
  // [KV head group] where the group's items end in cpu_items, which begin with those of group 0.
  std::vector<int32_t> cpu_group_ends;
  std::vector<MergeItem> merges;
  int32_t partial_rows = 0;  // rows of the workspace; a row holds all query heads
  int64_t tokens_written = 0;

  void Clear();
};

// What decides the cut into items; equal inputs give equal items, whichever thread runs them.
struct SplitOptions {
  int num_kv_heads = 1;
  int head_groups = 1;  // of equal size; no item crosses from one to another, for each has host pages of its own
  int group = 1;        // query heads per KV head (largest of all layers)
  int cpu_workers = 1;
  int device_workers = 0;  // 0: no device worker, the CPU attends everything
  int max_tile_rows = 64;  // rows that one kernel call takes
};

// The most items that SplitWork makes for the device of `sequences` sequences whose query tokens are one tile, of each
// KV head.
int32_t MaxDeviceSplits(int device_workers, int32_t sequences);

// Fills items, cpu_group_ends, merges and partial_rows from sequences and pages.
void SplitWork(const SplitOptions& options, StepPlan& plan);

}  // namespace hybridgen

#endif  // BACKEND_STEP_PLAN_H_
