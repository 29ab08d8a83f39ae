// What a row sees of a 16-token group, and the softmax of its scores. Textually included once per ISA, after
// tile-inl.h.
#ifndef KERNELS_CPU_SOFTMAX_INL_H_
#define KERNELS_CPU_SOFTMAX_INL_H_

namespace hybridgen {
namespace {

// 16 consecutive tokens of one page.
struct Group {
  const char* k;       // as the score function reads it
  const char* v;       // as the sum function reads it
  const char* page_v;  // as the page has it
  int32_t position;    // of the first token
  int32_t valid;       // tokens that exist, 1 to 16
  const char* next;    // to fetch while this K is read: the run's next K, behind the last one V
  int run;             // in the chunk
  int step;            // in the run
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

// Turns one row's scores into weights exp(logit - max) and folds the maximum and sum into the row's state. *decay: the
// factor for what was accumulated before. False: a logit is +inf.
template <bool kSoftCap, bool kAlibi>
bool SoftmaxRow(const QueryTile& tile, int row, const SeenGroup* groups, int num_groups, float* scores, RowState state,
                float* decay) {
  const int token = row / tile.group;
  const int32_t begin = tile.kv_begin[token];
  const int32_t end = tile.kv_end[token];
  const Vec scale = Set(tile.scale);
  Vec max = Set(kMinusInfinity);
  for (int i = 0; i < num_groups; ++i) {
    Vec x = Mul(Load(scores + 16 * i), scale);
    if constexpr (kSoftCap) x = Mul(Tanh(Mul(x, Set(1.0f / tile.soft_cap))), Set(tile.soft_cap));
    if constexpr (kAlibi) {
      alignas(64) static constexpr float kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
      const float distance = static_cast<float>(groups[i].group->position - tile.query_position[token]);
      x = Fma(Add(Set(distance), Load(kLane)), Set(tile.alibi_slopes[row % tile.group]), x);
    }
    if (!groups[i].whole) {
      const Span span = Visible(*groups[i].group, begin, end);
      x = KeepLanes(x, span.lo, span.hi, kMinusInfinity);
    }
    Store(scores + 16 * i, x);
    max = Max(max, x);
  }
  const float old_max = state.max[row];
  const float chunk_max = HorizontalMax(max);
  const float new_max = old_max > chunk_max ? old_max : chunk_max;
  if (new_max == -kMinusInfinity) return false;
  // All -inf so far: any finite reference gives weights of 0, while -inf - -inf would be NaN.
  const float reference = new_max == kMinusInfinity ? 0.0f : new_max;
  Vec sum = Zero();
  for (int i = 0; i < num_groups; ++i) {
    const Vec p = Exp(Sub(Load(scores + 16 * i), Set(reference)));
    Store(scores + 16 * i, p);
    sum = Add(sum, p);
  }
  *decay = Exp(old_max - reference);
  state.max[row] = new_max;
  state.sum[row] = state.sum[row] * *decay + HorizontalSum(sum);
  return true;
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_SOFTMAX_INL_H_
