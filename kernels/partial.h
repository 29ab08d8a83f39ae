// The partial-softmax contract: what every split of one attention (NUMA nodes, threads, tiers, device and
// CPU, prefill chunks) exchanges, and the one way to merge it.
//
// A partial over a set of tokens is (o, lse), float32:
//   o[head_size]  softmax-weighted mean of V over the set, already normalised over the set
//   lse           natural log of the sum of exp(logit) over the set
// The empty set is o = 0, lse = -inf. Merging two empty partials gives the empty partial. NaN never appears
// for finite or -inf logits. A +inf logit is an error that kernels report, never an empty set.
// An attention sink adds exp(sink) to the denominator of exactly one partial of a sequence; it carries no value.
// Conversions to other conventions (base 2, +inf as empty, [head, token] layout) live in bindings/ only.
#ifndef KERNELS_PARTIAL_H_
#define KERNELS_PARTIAL_H_

#include <cmath>
#include <cstdint>
#include <limits>

namespace hybridgen {

constexpr float kEmptyLse = -std::numeric_limits<float>::infinity();

// Weights of two partials in their merge: o = wa * oa + wb * ob. They sum to 1, or are both 0 when both
// partials are empty. lse is that of the union.
struct MergeWeights {
  float wa;
  float wb;
  float lse;
};

// m = max(la, lb); w = exp(l - m) / sum; lse = m + ln(sum). Both empty would compute -inf - -inf, hence the guard.
inline MergeWeights MergePair(float la, float lb) {
  const float m = la > lb ? la : lb;
  if (m == kEmptyLse) return {0.0f, 0.0f, kEmptyLse};
  const float ea = std::exp(la - m);
  const float eb = std::exp(lb - m);
  const float sum = ea + eb;
  return {ea / sum, eb / sum, m + std::log(sum)};
}

}  // namespace hybridgen

#endif  // KERNELS_PARTIAL_H_
