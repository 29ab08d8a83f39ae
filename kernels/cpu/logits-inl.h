// Logits from K alone: stored, or consumed in the cache. Textually included once per ISA, after attend-inl.h.
#ifndef KERNELS_CPU_LOGITS_INL_H_
#define KERNELS_CPU_LOGITS_INL_H_

namespace hybridgen {
namespace {

// Walks over the pages as Attend does, without V: calls consume(seen groups, their number, first row, rows) for every
// block of rows once call.scores holds the block's products. It returns false for a logit of +inf, which ends the walk.
template <typename Consume>
KernelResult ForEachProducts(Call& call, const Consume& consume) {
  Cursor cursor = FirstPage(call);
  call.layout.value = call.layout.key;  // what is fetched ahead is always K
  return ForEachChunk(cursor, [&](Group* chunk, int count, const Group* next, int num_next) {
    // Behind a run's last group comes the begin of the next chunk's run, of which a packed run takes a whole group.
    const char* run_next[kMaxRuns] = {};
    for (int g = count - 1; g >= 0; --g) {
      Group& group = chunk[g];
      const bool last = run_next[group.run] == nullptr;
      const char* k = group.k;
      group.next = last ? next[AtMost(num_next - 1, group.run)].k : run_next[group.run];
      if (call.packed && call.layout.vecs_ahead == 0) group.next = k;
      run_next[group.run] = k;
    }
    TransposeChunk(call, chunk, count);
    for (int row = 0; row < call.rows; row += kRowBlock) {
      SeenGroup seen[kChunkGroups];
      const int num_seen = ScoreChunk(call, chunk, count, row, seen);
      if (num_seen > 0 && !consume(seen, num_seen, row, AtMost(kRowBlock, call.rows - row))) {
        return false;
      }
    }
    return true;
  });
}

// -inf for the groups that a row does not see at all, which the walk may not meet.
void HideUnseenGroups(const QueryTile& tile, const AttendArgs& args, float* logits, int64_t row_stride) {
  const int page_tokens = args.geometry.page_tokens;
  for (int row = 0; row < tile.num_tokens * tile.group; ++row) {
    const int token = row / tile.group;
    for (int page = 0; page < args.num_pages; ++page) {
      const KvPage& p = args.pages[page];
      float* out = logits + row * row_stride + static_cast<int64_t>(page) * page_tokens;
      for (int first = 0; first < page_tokens; first += 16) {
        Group group = {};
        group.position = p.first_position + first;
        group.valid = AtMost(16, p.num_tokens - first);
        Span span = {0, 0};
        if (group.valid > 0) span = Visible(group, tile.kv_begin[token], tile.kv_end[token]);
        if (span.lo >= span.hi) StoreStream(out + first, Set(kMinusInfinity));
      }
    }
  }
}

KernelResult StoreLogits(const QueryTile& tile, const AttendArgs& args, float* logits, int64_t row_stride,
                         void* scratch) {
  Call call;
  StartVectorCall(tile, args, KeyOrderOf(tile, args), scratch, call);
  HideUnseenGroups(tile, args, logits, row_stride);
  const KernelResult result = ForEachProducts(call, [&](const SeenGroup* seen, int num_seen, int first_row, int rows) {
    for (int r = 0; r < rows; ++r) {
      float* scores = call.scores + r * kScoreStride;
      if (call.logits(call.tile, first_row + r, seen, num_seen, scores) == -kMinusInfinity) return false;
      float* out = logits + (first_row + r) * row_stride;
      for (int i = 0; i < num_seen; ++i) StoreStream(out + seen[i].group->slot, Load(scores + 16 * i));
    }
    return true;
  });
  StreamFence();
  return result;
}

// e(x) of LogitSummary.
HG_INLINE Vec ExponentOf(Vec x) { return Round(Mul(x, Set(0x1.715476p+0f))); }

// e(max); 0, as good as any, where nothing but -inf was seen.
float TopExponent(float max) {
  if (max == kMinusInfinity) return 0.0f;
  float lanes[16];
  Store(lanes, ExponentOf(Set(max)));
  return lanes[0];
}

// Moves the bins down to a maximum that is larger by `rise` exponents.
void LowerBins(uint32_t* bins, float rise) {
  if (!(rise >= 1.0f)) return;
  const int by = rise < kLogitBins - 1 ? static_cast<int>(rise) : kLogitBins - 1;
  for (int i = 1; i <= by; ++i) bins[0] += bins[i];
  for (int i = 1; i < kLogitBins; ++i) bins[i] = i + by < kLogitBins ? bins[i + by] : 0;
}

// Tokens of a chunk by lane and bin. Neighbouring tokens often fall into one bin, and a counter cannot be raised again
// before the last time is through: every lane has counters of its own.
struct LaneBins {
  uint8_t count[16][kLogitBins];
};
static_assert(kChunkGroups <= UINT8_MAX, "a lane's counter must hold a chunk");

// Counts the tokens [lo, hi) of 16 logits.
HG_INLINE void CountExponents(Vec logits, Vec top, int lo, int hi, LaneBins& bins) {
  const Vec last = Set(static_cast<float>(kLogitBins - 1));
  // Max takes its second argument for NaN: every lane ends between 0 and kLogitBins - 1.
  const Vec below = Max(Sub(top, ExponentOf(logits)), Zero());
  const Vec bits = Add(Max(Sub(last, below), Zero()), Set(0x1p23f));
  uint32_t index[16];  // in the low bits of 2^23 + bin
  __builtin_memcpy(index, &bits, sizeof(index));
  if (lo == 0 && hi == 16) {
    HG_UNROLL
    for (int t = 0; t < 16; ++t) ++bins.count[t][index[t] % kLogitBins];
  } else {
    for (int t = lo; t < hi; ++t) ++bins.count[t][index[t] % kLogitBins];
  }
}

// Folds one row's logits, the largest of which is chunk_max, into its summary. False: a logit is +inf.
bool SummariseRow(const QueryTile& tile, int row, const SeenGroup* seen, int num_seen, const float* logits,
                  float chunk_max, LogitSummary summary) {
  const float old_max = summary.max[row];
  const float new_max = old_max > chunk_max ? old_max : chunk_max;
  const Vec top = Set(TopExponent(new_max));
  const int token = row / tile.group;
  LaneBins lanes = {};
  float decay;
  const bool finite = FoldRow(chunk_max, num_seen, logits, &summary.max[row], &summary.sum[row], &decay,
                              [&](int i, const Vec& x, const Vec&) {
                                Span span = {0, 16};
                                if (!seen[i].whole) {
                                  span = Visible(*seen[i].group, tile.kv_begin[token], tile.kv_end[token]);
                                }
                                CountExponents(x, top, span.lo, span.hi, lanes);
                              });
  if (!finite) return false;
  uint32_t* bins = summary.bins + row * kLogitBins;
  LowerBins(bins, TopExponent(new_max) - TopExponent(old_max));
  for (const auto& count : lanes.count) {
    for (int i = 0; i < kLogitBins; ++i) bins[i] += count[i];
  }
  return true;
}

KernelResult SummariseLogits(const QueryTile& tile, const AttendArgs& args, LogitSummary summary, void* scratch) {
  Call call;
  StartVectorCall(tile, args, KeyOrderOf(tile, args), scratch, call);
  return ForEachProducts(call, [&](const SeenGroup* seen, int num_seen, int first_row, int rows) {
    for (int r = 0; r < rows; ++r) {
      float* scores = call.scores + r * kScoreStride;
      const float chunk_max = call.logits(call.tile, first_row + r, seen, num_seen, scores);
      if (!SummariseRow(tile, first_row + r, seen, num_seen, scores, chunk_max, summary)) return false;
    }
    return true;
  });
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_LOGITS_INL_H_
