#include "backend/step_plan.h"

#include <algorithm>
#include <numeric>

namespace hybridgen {
namespace {

// Below this a further split costs more in partials and merging than its parallelism gains.
constexpr int32_t kMinSplitTokens = 256;
// Items per worker: enough that a disturbed core hands its share on, few enough that the merge stays small.
constexpr int32_t kItemsPerWorker = 4;
// With few rows an item takes all KV heads of a host page, so that it reads them one after the other in one run.
constexpr int32_t kAllHeadsRows = 16;

int32_t CeilDiv(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

// The query tiles of a sequence: rows of a tile are tokens x group of one KV head, or of a group's heads when few.
struct Tiling {
  int32_t tile_tokens;
  int32_t tile_heads;
};

Tiling ChooseTiling(const SplitOptions& options, const PlanSequence& sequence) {
  if (sequence.query_len * options.group <= kAllHeadsRows) {
    return {sequence.query_len, options.num_kv_heads / options.head_groups};
  }
  return {std::max(1, options.max_tile_rows / std::min(options.group, options.max_tile_rows)), 1};
}

int64_t NumTiles(const Tiling& tiling, const SplitOptions& options, const PlanSequence& sequence) {
  return static_cast<int64_t>(CeilDiv(sequence.query_len, tiling.tile_tokens)) *
         CeilDiv(options.num_kv_heads, tiling.tile_heads);
}

int64_t TokensIn(const StepPlan& plan, Range pages) {
  int64_t tokens = 0;
  for (int32_t i = pages.begin; i < pages.end; ++i) tokens += plan.pages[i].num_tokens;
  return tokens;
}

// One processor's share of one sequence.
struct Share {
  Range pool;
  Range host;
  int64_t tokens = 0;
  int32_t splits = 0;  // 0: no pages
};

// Cuts [0, pool.size() + host.size()) into `splits` near-equal page ranges and returns the i-th.
void Cut(const Share& share, int32_t i, WorkItem& item) {
  const int64_t pages = share.pool.size() + share.host.size();
  const int32_t begin = static_cast<int32_t>(pages * i / share.splits);
  const int32_t end = static_cast<int32_t>(pages * (i + 1) / share.splits);
  const int32_t pool = share.pool.size();
  item.pool_pages = {share.pool.begin + std::min(begin, pool), share.pool.begin + std::min(end, pool)};
  item.host_pages = {share.host.begin + std::max(begin - pool, 0), share.host.begin + std::max(end - pool, 0)};
}

void EmitItems(const SplitOptions& options, const PlanSequence& sequence, int32_t index, const Share& share,
               int32_t first_row, bool has_sink, std::vector<WorkItem>& items) {
  const Tiling tiling = ChooseTiling(options, sequence);
  for (int32_t split = 0; split < share.splits; ++split) {
    for (int32_t token = 0; token < sequence.query_len; token += tiling.tile_tokens) {
      for (int32_t head = 0; head < options.num_kv_heads; head += tiling.tile_heads) {
        WorkItem item;
        item.sequence = index;
        item.tokens = {token, std::min(token + tiling.tile_tokens, sequence.query_len)};
        item.heads = {head, std::min(head + tiling.tile_heads, options.num_kv_heads)};
        Cut(share, split, item);
        item.partial_row = first_row < 0 ? -1 : first_row + split * sequence.query_len + token;
        item.owns_sink = has_sink && split == 0;
        items.push_back(item);
      }
    }
  }
}

// Brings the CPU's items into the order of their head groups.
void GroupItems(const SplitOptions& options, StepPlan& plan) {
  const auto group_of = [heads = options.num_kv_heads / options.head_groups](const WorkItem& item) {
    return item.heads.begin / heads;
  };
  if (options.head_groups > 1) {
    std::stable_sort(plan.cpu_items.begin(), plan.cpu_items.end(),
                     [&](const WorkItem& a, const WorkItem& b) { return group_of(a) < group_of(b); });
  }
  plan.cpu_group_ends.assign(options.head_groups, 0);
  for (const WorkItem& item : plan.cpu_items) ++plan.cpu_group_ends[group_of(item)];
  std::partial_sum(plan.cpu_group_ends.begin(), plan.cpu_group_ends.end(), plan.cpu_group_ends.begin());
}

}  // namespace

void StepPlan::Clear() {
  step = 0;
  mode = AttentionMode::kExact;
  causal = true;
  window_tokens = 0;
  max_block = -1;
  num_tokens = 0;
  sequences.clear();
  pages.clear();
  pool_writes.clear();
  host_writes.clear();
  device_items.clear();
  cpu_items.clear();
  cpu_group_ends.clear();
  merges.clear();
  partial_rows = 0;
  tokens_written = 0;
}

// A share of t tokens has at most t / target + 1 splits. All t together are at most workers * kItemsPerWorker targets,
// and as many more as the target, kMinSplitTokens or more, was rounded down by.
int32_t MaxDeviceSplits(int device_workers, int32_t sequences) {
  const int32_t items = device_workers * kItemsPerWorker;
  return items + CeilDiv(items, kMinSplitTokens) + sequences;
}

void SplitWork(const SplitOptions& options, StepPlan& plan) {
  // Work of a side in token-tiles decides how long a split should be: all workers of the side busy, items alike.
  int64_t device_work = 0;
  int64_t cpu_work = 0;
  std::vector<Share> device(plan.sequences.size());
  std::vector<Share> cpu(plan.sequences.size());
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const PlanSequence& sequence = plan.sequences[i];
    if (options.device_workers > 0) {
      device[i] = {sequence.pool_pages, sequence.streamed_pages};
      cpu[i] = {Range{}, sequence.host_pages};
    } else {
      cpu[i] = {sequence.pool_pages, sequence.host_pages};
    }
    if (sequence.query_len == 0) {  // nothing to answer: no items
      device[i] = cpu[i] = {};
      continue;
    }
    device[i].tokens = TokensIn(plan, device[i].pool) + TokensIn(plan, device[i].host);
    cpu[i].tokens = TokensIn(plan, cpu[i].pool) + TokensIn(plan, cpu[i].host);
    const int64_t tiles = NumTiles(ChooseTiling(options, sequence), options, sequence);
    device_work += tiles * device[i].tokens;
    cpu_work += tiles * cpu[i].tokens;
  }

  const auto choose_splits = [&](Share& share, int64_t work, int workers) {
    const int32_t pages = share.pool.size() + share.host.size();
    if (pages == 0) return;
    const int64_t target = std::max<int64_t>(kMinSplitTokens, work / (static_cast<int64_t>(workers) * kItemsPerWorker));
    share.splits = workers == 1 ? 1 : std::min<int32_t>(pages, CeilDiv(share.tokens, target));
  };

  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const PlanSequence& sequence = plan.sequences[i];
    const int32_t index = static_cast<int32_t>(i);
    choose_splits(device[i], device_work, options.device_workers);
    choose_splits(cpu[i], cpu_work, options.cpu_workers);
    const int32_t splits = device[i].splits + cpu[i].splits;
    if (splits == 0) continue;
    // The CPU side of a device's call always hands over partials: the output lies with the device.
    const bool complete = splits == 1 && (options.device_workers == 0 || cpu[i].splits == 0);
    const int32_t first_row = complete ? -1 : plan.partial_rows;
    EmitItems(options, sequence, index, device[i], first_row, /*has_sink=*/true, plan.device_items);
    EmitItems(options, sequence, index, cpu[i], complete ? -1 : first_row + device[i].splits * sequence.query_len,
              /*has_sink=*/device[i].splits == 0, plan.cpu_items);
    if (complete) continue;
    for (int32_t t = 0; t < sequence.query_len; ++t) {
      plan.merges.push_back({sequence.query_start + t, first_row + t, splits, sequence.query_len});
    }
    plan.partial_rows += splits * sequence.query_len;
  }
  GroupItems(options, plan);
}

}  // namespace hybridgen
