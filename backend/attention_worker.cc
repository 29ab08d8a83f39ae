#include "backend/attention_worker.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

// Tokens per kernel call when an item walks all KV heads: small enough that the rows' state stays in cache between
// heads, large enough that short pages are taken several at a time.
constexpr int32_t kChunkTokens = 256;
constexpr int32_t kMinChunkPages = 4;
constexpr int32_t kMaxChunkPages = 32;
// Rows (tokens x query heads) up to which handing merges or writes to other workers costs more than it gains.
constexpr int64_t kInlineRows = 64;

constexpr size_t kScratchAlignment = 64;

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t(kScratchAlignment)); }
};
using AlignedBuffer = std::unique_ptr<void, AlignedDelete>;

AlignedBuffer AllocateAligned(size_t bytes) {
  return AlignedBuffer(::operator new(bytes, std::align_val_t(kScratchAlignment)));
}

char* At(const TensorView& tensor, DType dtype, int64_t token, int64_t head) {
  return static_cast<char*>(tensor.data) +
         (token * tensor.token_stride + head * tensor.head_stride) * static_cast<int64_t>(DTypeSize(dtype));
}

// Bytes of one token and KV head of one role, padding left out.
int64_t TokenBytes(const PageGeometry& g) {
  return g.format == PageFormat::kPackedInt8V1 ? g.head_size + static_cast<int64_t>(sizeof(float))
                                               : g.head_size * static_cast<int64_t>(DTypeSize(g.dtype));
}

}  // namespace

// A kernel call's rows and the ranges that they may see.
struct Tile {
  QueryTile rows;
  int32_t first_token = 0;  // of the sequence's query
  int first_query_head = 0;
  int32_t positions[kMaxTileRows];
  int32_t kv_begin[kMaxTileRows];
  int32_t kv_end[kMaxTileRows];
  int32_t min_begin = 0;  // over the tile: pages outside [min_begin, max_end) are not looked at
  int32_t max_end = 0;

  void SetTokens(const LayerCall& call, const PlanSequence& sequence, int32_t token, int32_t count) {
    first_token = token;
    rows.num_tokens = count;
    rows.query_position = positions;
    rows.kv_begin = kv_begin;
    rows.kv_end = kv_end;
    const int32_t window = call.params->sliding_window;
    for (int32_t t = 0; t < count; ++t) {
      const int32_t position = sequence.seq_len - sequence.query_len + token + t;
      positions[t] = position;
      kv_begin[t] = window > 0 ? std::max(0, position + 1 - window) : 0;
      kv_end[t] = call.plan->causal ? position + 1 : sequence.seq_len;
    }
    min_begin = kv_begin[0];
    max_end = kv_end[count - 1];
  }

  void SetHeads(const LayerCall& call, const PlanSequence& sequence, DType dtype, int query_head, int count) {
    first_query_head = query_head;
    rows.group = count;
    rows.q = At(call.query, dtype, sequence.query_start + first_token, query_head);
    rows.alibi_slopes = call.params->alibi_slopes.empty() ? nullptr : call.params->alibi_slopes.data() + query_head;
  }
};

// One worker's memory; no two workers share a cache line of it.
struct AttentionWorker::Scratch {
  AlignedBuffer kernel;
  AlignedBuffer state;  // max, sum, acc of `state_rows` rows
  int state_rows = 0;
  int padded = 0;  // head size
  KvPage pages[kMaxChunkPages];
  std::vector<const float*> merge_o;
  std::vector<float> merge_lse;
  int64_t read_bytes[kNumTiers] = {};
  int head_group = 0;  // whose items it prefers in the present call

  RowState Rows(int first) const {
    float* base = static_cast<float*>(state.get());
    return {base + first, base + state_rows + first, base + 2 * state_rows + static_cast<int64_t>(first) * padded};
  }
};

AttentionWorker::AttentionWorker(Executor* executor, const KernelSet& kernels, DType dtype, int head_size,
                                 int num_kv_heads, TierPacers pacers, HeadGroups head_groups)
    : executor_(executor),
      kernels_(kernels),
      dtype_(dtype),
      head_size_(head_size),
      num_kv_heads_(num_kv_heads),
      pacers_(std::move(pacers)),
      head_groups_(std::move(head_groups)) {
  for (int i = 0; i < executor->num_workers(); ++i) {
    auto scratch = std::make_unique<Scratch>();
    scratch->padded = PaddedHeadSize(head_size);
    // Multiples of 16 floats keep all three arrays on cache lines.
    scratch->state_rows = std::max(kMaxTileRows, num_kv_heads * 16);
    scratch->kernel = AllocateAligned(AttendScratchBytes(head_size));
    scratch->state = AllocateAligned(sizeof(float) * scratch->state_rows * (2 + scratch->padded));
    scratch_.push_back(std::move(scratch));
  }
}

AttentionWorker::~AttentionWorker() = default;

absl::Status AttentionWorker::Write(const LayerCall& call, absl::Span<const WriteRun> runs) {
  if (call.key.data == nullptr) return absl::OkStatus();
  const LayerPages& layer = *call.pages;
  const auto write = [&](int, int64_t i) {
    const WriteRun& run = runs[i];
    const bool pool = run.kind == PageKind::kPool;
    WriteArgs args;
    args.geometry = pool ? layer.pool : layer.host;
    args.dtype = dtype_;
    args.k_scale = call.params->k_scale;
    args.v_scale = call.params->v_scale;
    args.offset = run.offset;
    args.num_tokens = run.num_tokens;
    args.key_token_stride = call.key.token_stride;
    args.key_head_stride = call.key.head_stride;
    args.value_token_stride = call.value.token_stride;
    args.value_head_stride = call.value.head_stride;
    for (int group = 0; group < (pool ? 1 : layer.head_groups); ++group) {
      if (pool) {
        args.k_page = layer.pool_k + run.k * layer.pool_page_bytes;
        args.v_page = layer.pool_v + run.v * layer.pool_page_bytes;
      } else {
        args.k_page = run.k + layer.HostOffset(PageRole::kKey, group);
        args.v_page = run.v + layer.HostOffset(PageRole::kValue, group);
      }
      args.key = At(call.key, dtype_, run.token, group * args.geometry.kv_heads);
      args.value = At(call.value, dtype_, run.token, group * args.geometry.kv_heads);
      kernels_.write_kv(args);
    }
  };
  if (call.plan->tokens_written * num_kv_heads_ <= kInlineRows) {
    for (size_t i = 0; i < runs.size(); ++i) write(0, i);
    return absl::OkStatus();
  }
  return ParallelFor(*executor_, runs.size(), write);
}

void AttentionWorker::AttendPages(const LayerCall& call, const WorkItem& item, PageKind kind, Range pages, Range heads,
                                  const Tile& tile, Scratch& scratch) {
  if (pages.size() == 0) return;
  const LayerPages& layer = *call.pages;
  const int group = call.params->num_query_heads / num_kv_heads_;
  // A host page holds the heads of one head group, of which an item has one.
  const int head_group = kind == PageKind::kPool ? 0 : heads.begin / layer.host.kv_heads;
  const int first_head = head_group * layer.host.kv_heads;
  AttendArgs args;
  args.geometry = kind == PageKind::kPool ? layer.pool : layer.host;
  args.k_base = kind == PageKind::kPool ? layer.pool_k : layer.HostOffset(PageRole::kKey, head_group);
  args.v_base = kind == PageKind::kPool ? layer.pool_v : layer.HostOffset(PageRole::kValue, head_group);
  args.pages = scratch.pages;
  const uint64_t unit = kind == PageKind::kPool ? layer.pool_page_bytes : 1;
  const int64_t bytes_per_token = heads.size() * TokenBytes(args.geometry);
  const int32_t chunk_pages = heads.size() == 1 ? kMaxChunkPages
                                                : std::clamp(kChunkTokens / std::max(1, args.geometry.page_tokens),
                                                             kMinChunkPages, kMaxChunkPages);
  for (int32_t next = pages.begin; next < pages.end;) {
    int32_t count = 0;
    int64_t read_bytes[kNumTiers] = {};
    for (; next < pages.end && count < chunk_pages; ++next) {
      const PlanPage& page = call.plan->pages[next];
      const int32_t seen =
          std::min(page.first_position + page.num_tokens, tile.max_end) - std::max(page.first_position, tile.min_begin);
      if (seen <= 0) continue;
      scratch.pages[count++] = {page.k * unit, page.v * unit, page.first_position, page.num_tokens};
      read_bytes[Index(page.k_tier)] += seen * bytes_per_token;
      read_bytes[Index(page.v_tier)] += seen * bytes_per_token;
    }
    if (count == 0) continue;
    args.num_pages = count;
    const AttendFn attend = kernels_.attend(args.geometry);
    for (int head = heads.begin; head < heads.end; ++head) {
      QueryTile rows = tile.rows;
      const int64_t query_head = tile.first_query_head + static_cast<int64_t>(head - heads.begin) * group;
      rows.q = At(call.query, dtype_, call.plan->sequences[item.sequence].query_start + tile.first_token, query_head);
      if (rows.alibi_slopes != nullptr) rows.alibi_slopes = call.params->alibi_slopes.data() + query_head;
      args.kv_head = head - first_head;
      args.next_kv_head = head + 1 < heads.end ? args.kv_head + 1 : -1;
      const int rows_per_head = rows.num_tokens * rows.group;
      if (attend(rows, args, scratch.Rows((head - heads.begin) * rows_per_head), scratch.kernel.get()) ==
          KernelResult::kInfiniteLogit) {
        infinite_logit_.store(true, std::memory_order_relaxed);
      }
    }
    for (int tier = 0; tier < kNumTiers; ++tier) {
      scratch.read_bytes[tier] += read_bytes[tier];
      if (pacers_.of[tier] != nullptr) pacers_.of[tier]->Read(read_bytes[tier]);
    }
  }
}

void AttentionWorker::AttendItem(const LayerCall& call, const WorkItem& item, Scratch& scratch) {
  const PlanSequence& sequence = call.plan->sequences[item.sequence];
  const int num_query_heads = call.params->num_query_heads;
  const int group = num_query_heads / num_kv_heads_;
  // All heads of the item together when their rows' state fits; else one head, and of it at most a tile, at a time.
  const bool together = item.tokens.size() * group <= 16;
  const int tile_group = std::min(group, kMaxTileRows);
  const int32_t tile_tokens = together ? item.tokens.size() : std::max(1, kMaxTileRows / tile_group);
  const int32_t head_step = together ? item.heads.size() : 1;

  Tile tile;
  tile.rows.dtype = dtype_;
  tile.rows.token_stride = call.query.token_stride;
  tile.rows.head_stride = call.query.head_stride;
  tile.rows.head_size = head_size_;
  tile.rows.scale = call.params->scale * call.params->k_scale;
  tile.rows.soft_cap = call.params->soft_cap;
  for (int32_t token = item.tokens.begin; token < item.tokens.end; token += tile_tokens) {
    tile.SetTokens(call, sequence, token, std::min(tile_tokens, item.tokens.end - token));
    for (int32_t head = item.heads.begin; head < item.heads.end; head += head_step) {
      for (int g = 0; g < group; g += tile_group) {
        const int count = std::min(tile_group, group - g);
        tile.SetHeads(call, sequence, dtype_, head * group + g, count);
        const int rows_per_head = tile.rows.num_tokens * count;
        const float* sinks =
            item.owns_sink && !call.params->sinks.empty() ? call.params->sinks.data() + head * group + g : nullptr;
        for (int32_t h = 0; h < head_step; ++h) {
          kernels_.init_rows(tile.rows, sinks == nullptr ? nullptr : sinks + h * group,
                             scratch.Rows(h * rows_per_head));
        }
        const Range heads{head, head + head_step};
        AttendPages(call, item, PageKind::kPool, item.pool_pages, heads, tile, scratch);
        AttendPages(call, item, PageKind::kHost, item.host_pages, heads, tile, scratch);
        for (int32_t h = 0; h < head_step; ++h) {
          const int query_head = (head + h) * group + g;
          RowOutput out;
          out.scale = call.params->v_scale;
          if (item.partial_row < 0) {
            out.o = At(call.output, dtype_, sequence.query_start + token, query_head);
            out.dtype = dtype_;
            out.token_stride = call.output.token_stride;
            out.head_stride = call.output.head_stride;
          } else {
            const int64_t row =
                static_cast<int64_t>(item.partial_row + token - item.tokens.begin) * num_query_heads + query_head;
            out.o = call.partials.o + row * head_size_;
            out.dtype = DType::kFloat32;
            out.token_stride = static_cast<int64_t>(num_query_heads) * head_size_;
            out.head_stride = head_size_;
            out.lse = call.partials.lse + row;
            out.lse_token_stride = num_query_heads;
            out.lse_head_stride = 1;
          }
          kernels_.finalize_rows(tile.rows, scratch.Rows(h * rows_per_head), out);
        }
      }
    }
  }
}

absl::Status AttentionWorker::Attend(const LayerCall& call, absl::Span<const WorkItem> items,
                                     absl::Span<const int32_t> group_ends) {
  for (const std::shared_ptr<Pacer>& pacer : pacers_.of) {
    if (pacer != nullptr) pacer->Begin();
  }
  absl::Status status;
  if (group_ends.size() <= 1) {
    status = ParallelFor(*executor_, items.size(),
                         [&](int worker, int64_t i) { AttendItem(call, items[i], *scratch_[worker]); });
  } else {
    const auto own = [&](int worker) { return scratch_[worker]->head_group = head_groups_.OfThisThread(worker); };
    status = ParallelForShares(*executor_, group_ends, own, [&](int worker, int32_t i, int share) {
      items_[share].fetch_add(1, std::memory_order_relaxed);
      if (share != scratch_[worker]->head_group) remote_items_[share].fetch_add(1, std::memory_order_relaxed);
      AttendItem(call, items[i], *scratch_[worker]);
    });
  }
  for (const std::shared_ptr<Pacer>& pacer : pacers_.of) {
    if (pacer != nullptr) pacer->Finish();
  }
  for (const std::unique_ptr<Scratch>& scratch : scratch_) {
    for (int tier = 0; tier < kNumTiers; ++tier) {
      if (scratch->read_bytes[tier] == 0) continue;
      read_bytes_[tier].fetch_add(scratch->read_bytes[tier], std::memory_order_relaxed);
      scratch->read_bytes[tier] = 0;
    }
  }
  if (!status.ok()) return status;
  if (infinite_logit_.exchange(false, std::memory_order_relaxed)) {
    return absl::InvalidArgumentError(
        "attend: a logit is +inf (query or key overflowed); accepted: finite or -inf logits. Check the model's "
        "weights and its dtype's range");
  }
  return absl::OkStatus();
}

absl::Status AttentionWorker::Merge(const LayerCall& call, absl::Span<const MergeItem> merges,
                                    const PartialWorkspace* to) {
  const int num_query_heads = call.params->num_query_heads;
  const auto merge = [&](int worker, int64_t i) {
    const MergeItem& item = merges[i];
    Scratch& scratch = *scratch_[worker];
    scratch.merge_o.resize(item.count);  // grows to the largest count once, then allocates nothing
    scratch.merge_lse.resize(item.count);
    for (int head = 0; head < num_query_heads; ++head) {
      for (int32_t p = 0; p < item.count; ++p) {
        const int64_t row = static_cast<int64_t>(item.row + p * item.stride) * num_query_heads + head;
        scratch.merge_o[p] = call.partials.o + row * head_size_;
        scratch.merge_lse[p] = call.partials.lse[row];
      }
      if (to == nullptr) {
        kernels_.merge_rows(scratch.merge_o.data(), scratch.merge_lse.data(), item.count, head_size_,
                            At(call.output, dtype_, item.token, head), dtype_);
        continue;
      }
      const int64_t row = static_cast<int64_t>(item.token) * num_query_heads + head;
      to->lse[row] = kernels_.merge_rows(scratch.merge_o.data(), scratch.merge_lse.data(), item.count, head_size_,
                                         to->o + row * head_size_, DType::kFloat32);
    }
  };
  if (static_cast<int64_t>(merges.size()) * num_query_heads <= kInlineRows) {
    for (size_t i = 0; i < merges.size(); ++i) merge(0, i);
    return absl::OkStatus();
  }
  return ParallelFor(*executor_, merges.size(), merge);
}

}  // namespace hybridgen
