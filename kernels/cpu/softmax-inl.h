// From products q.K to weights: scale, soft cap, ALiBi and visibility make logits, exp makes weights. Textually
// included once per ISA, after tile-inl.h.
#ifndef KERNELS_CPU_SOFTMAX_INL_H_
#define KERNELS_CPU_SOFTMAX_INL_H_

namespace hybridgen {
namespace {

// 16 consecutive tokens of one page.
struct Group {
  const char* k;              // as the score function reads it
  const char* v;              // as the sum function reads it
  const char* page_v;         // as the page has it
  const float* value_scales;  // [16], of 8-bit pages
  int32_t slot;               // of the first token: index of the page in the call * page_tokens + token
  int32_t position;           // of the first token
  int32_t valid;              // tokens that exist, 1 to 16
  const char* next;           // to fetch while this K is read: the run's next K, behind the last one V
  int run;                    // in the chunk
  int step;                   // in the run
};

// A group that some row of a block sees.
struct SeenGroup {
  const Group* group;
  bool whole;  // by every row of the block, all 16 tokens
};

// Tokens [lo, hi) of a group that one query token sees; lo >= hi: none.
struct Span {
  int lo;
  int hi;
};

HG_INLINE Span Visible(const Group& group, int32_t begin, int32_t end) {
  // Compared before subtracting: begin and end may be anything, such as INT32_MAX for "no limit".
  const int lo = begin <= group.position ? 0 : (begin >= group.position + 16 ? 16 : begin - group.position);
  const int hi = end >= group.position + group.valid ? group.valid : (end <= group.position ? 0 : end - group.position);
  return {lo, hi};
}

// The logits of 16 products of a row. distance: key position - query position of each, used by ALiBi.
template <bool kSoftCap, bool kAlibi>
HG_INLINE Vec LogitsOf(const QueryTile& tile, int row, Vec product, Vec distance) {
  Vec x = Mul(product, Set(tile.scale));
  if constexpr (kSoftCap) x = Mul(Tanh(Mul(x, Set(1.0f / tile.soft_cap))), Set(tile.soft_cap));
  if constexpr (kAlibi) x = Fma(distance, Set(tile.alibi_slopes[row % tile.group]), x);
  return x;
}

// Turns one row's products into logits, -inf where the row does not see the token, and returns the largest.
template <bool kSoftCap, bool kAlibi>
float LogitRow(const QueryTile& tile, int row, const SeenGroup* groups, int num_groups, float* scores) {
  alignas(64) static constexpr float kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int token = row / tile.group;
  const int32_t begin = tile.kv_begin[token];
  const int32_t end = tile.kv_end[token];
  Vec max = Set(kMinusInfinity);
  for (int i = 0; i < num_groups; ++i) {
    Vec distance = Zero();
    if constexpr (kAlibi) {
      distance = Add(Set(static_cast<float>(groups[i].group->position - tile.query_position[token])), Load(kLane));
    }
    Vec x = LogitsOf<kSoftCap, kAlibi>(tile, row, Load(scores + 16 * i), distance);
    if (!groups[i].whole) {
      const Span span = Visible(*groups[i].group, begin, end);
      x = KeepLanes(x, span.lo, span.hi, kMinusInfinity);
    }
    Store(scores + 16 * i, x);
    max = Max(max, x);
  }
  return HorizontalMax(max);
}

// Folds one row's logits, the largest of which is chunk_max, into the row's maximum and sum; visit(i, logits, weights)
// gets every 16 of them with their weights exp(logit - max). *decay: the factor for what was accumulated before. False:
// a logit is +inf.
template <typename Visit>
HG_INLINE bool FoldRow(float chunk_max, int num_groups, const float* logits, float* row_max, float* row_sum,
                       float* decay, const Visit& visit) {
  const float old_max = *row_max;
  const float new_max = old_max > chunk_max ? old_max : chunk_max;
  if (new_max == -kMinusInfinity) return false;
  // All -inf so far: any finite reference gives weights of 0, while -inf - -inf would be NaN.
  const float reference = new_max == kMinusInfinity ? 0.0f : new_max;
  Vec sum = Zero();
  for (int i = 0; i < num_groups; ++i) {
    const Vec x = Load(logits + 16 * i);
    const Vec p = Exp(Sub(x, Set(reference)));
    visit(i, x, p);
    sum = Add(sum, p);
  }
  *decay = Exp(old_max - reference);
  *row_max = new_max;
  *row_sum = *row_sum * *decay + HorizontalSum(sum);
  return true;
}

// The same, with the weights, times the unit of V as it is loaded, in the place of the logits.
bool WeightRow(float chunk_max, float unit, int num_groups, float* scores, float* row_max, float* row_sum,
               float* decay) {
  return FoldRow(chunk_max, num_groups, scores, row_max, row_sum, decay,
                 [scores, unit](int i, const Vec&, const Vec& p) { Store(scores + 16 * i, Mul(p, Set(unit))); });
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_SOFTMAX_INL_H_
