// The inner products over 8-bit pages (kPackedInt8V1) on integers. Textually included once per ISA, after
// softmax-inl.h.
//
// Values are int8, queries and weights int16, which are two 8-bit terms (256 * upper + lower), so that their rounding
// is 2^-16 and 2^-16 of the largest one. All sums of products are exact in int32:
//   q.K  127 * 32512 * 512 dims   = 2.114e9 < 2^31
//   p.V  127 * 32767 * 512 tokens = 2.131e9 < 2^31 (kChunkGroups * 16 tokens)
#ifndef KERNELS_CPU_INT8_INL_H_
#define KERNELS_CPU_INT8_INL_H_

namespace hybridgen {
namespace {

constexpr float kQuerySteps = 32512.0f;       // of the largest |q| of a row: 127 * 256
constexpr float kWeightSteps = 32767.0f;      // of the largest scale of V, as weights are at most 1
constexpr float kLeastMagnitude = 0x1p-100f;  // a smaller largest |q| counts as 0; its inverse is finite
static_assert(kChunkGroups * 16 <= 512 && kMaxHeadSize <= 512, "sums of products fit into int32");

// What a quad of four consecutive dims or tokens takes: int16 pairs of the elements (0, 2) and (1, 3), as StorePairs
// writes them.
constexpr int kQuadPairs = 2;

// One row of queries as pairs [head_size / 4][block][kQuadPairs], this row's at `pairs`. Returns what a step is worth;
// NaN if an element is not finite.
HG_INLINE float QuantiseQuery(const char* row, DType dtype, int head_size, int block, float* pairs) {
  Vec largest = Zero();
  Vec poison = Zero();  // 0 * x: NaN where x is not finite
  for (int dim = 0; dim < head_size; dim += 16) {
    const Vec x = LoadRow(row, dtype, dim, head_size);
    largest = Max(largest, Abs(x));
    poison = Fma(x, Zero(), poison);
  }
  const float magnitude = HorizontalMax(largest);
  const bool counts = magnitude >= kLeastMagnitude;
  const Vec steps = Set(counts ? kQuerySteps / magnitude : 0.0f);
  for (int dim = 0; dim < head_size; dim += 16) {
    float quads[4 * kQuadPairs];
    StorePairs(quads, Mul(LoadRow(row, dtype, dim, head_size), steps));
    for (int quad = 0; quad < 4 && dim + 4 * quad < head_size; ++quad) {
      __builtin_memcpy(pairs + (dim / 4 + quad) * block * kQuadPairs, quads + quad * kQuadPairs,
                       kQuadPairs * sizeof(float));
    }
  }
  return (counts ? magnitude / kQuerySteps : 0.0f) + HorizontalSum(poison);
}

// A block of rows, of which `count` exist: pairs [head_size / 4][block][kQuadPairs], then a step's worth [block].
void QuantiseQueries(const char* const* rows, int count, int block, DType dtype, int head_size, float* q) {
  float* step = q + head_size / 4 * kQuadPairs * block;
  for (int r = 0; r < block; ++r) {
    // A row that nobody reads may be any; the last one is at hand.
    step[r] = QuantiseQuery(rows[AtMost(count - 1, r)], dtype, head_size, block, q + kQuadPairs * r);
  }
}

// The scores of ScoreRows, of queries as QuantiseQueries leaves them.
template <int kRows>
void ScoreInt8(const KeyGroups& groups, const Layout& layout, int head_size, const float* q, float* scores) {
  constexpr int kGroups = AtMost(4, kAccumulatorVecs / kRows);
  static_assert(kChunkGroups % kGroups == 0, "a short last block writes whole blocks of groups");
  const float* step = q + head_size / 4 * kQuadPairs * kRows;
  const int64_t bytes = int64_t{16} * head_size;
  const int64_t scales = int64_t{256} * layout.full_vecs;
  for (int first = 0; first < groups.count; first += kGroups) {
    const char* p[kGroups];
    const char* next[kGroups];
    HG_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      p[i] = groups.k[AtMost(groups.count - 1, first + i)];
      next[i] = groups.next[AtMost(groups.count - 1, first + i)];
    }
    Ints acc[kGroups][kRows];
    HG_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) acc[i][r] = ZeroInts();
    }
    const float* pair = q;
    for (int64_t offset = 0; offset < bytes; offset += kLineBytes, pair += kQuadPairs * kRows) {
      Ints even[kGroups], odd[kGroups];
      HG_UNROLL
      for (int i = 0; i < kGroups; ++i) {
        Prefetch(next[i] + offset);
        LoadQuads(p[i] + offset, even[i], odd[i]);
      }
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Ints q_even = SetPair(pair + kQuadPairs * r);
        const Ints q_odd = SetPair(pair + kQuadPairs * r + 1);
        HG_UNROLL
        for (int i = 0; i < kGroups; ++i) acc[i][r] = AddPairs(even[i], q_even, acc[i][r]);
        HG_UNROLL
        for (int i = 0; i < kGroups; ++i) acc[i][r] = AddPairs(odd[i], q_odd, acc[i][r]);
      }
    }
    HG_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      Prefetch(next[i] + scales);
      const Vec scale = Load(reinterpret_cast<const float*>(p[i] + scales));
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) {
        Store(scores + r * kScoreStride + (first + i) * 16, Mul(ToFloat(acc[i][r]), Mul(scale, Set(step[r]))));
      }
    }
  }
}

// Puts the scales of V into the weights of groups. Of a group that every row sees in full the weights become integers,
// as pairs and in place; of others they stay float32. As weights are at most 1, one step serves all rows. Returns its
// worth; NaN if a scale is that all rows see.
float WeighInt8(const SeenGroup* seen, int count, int rows, float* scores) {
  Vec largest = Zero();
  Vec poison = Zero();  // 0 * x: NaN where x is
  for (int i = 0; i < count; ++i) {
    if (!seen[i].whole) continue;
    const Vec scale = Load(seen[i].group->value_scales);
    largest = Max(largest, scale);
    poison = Fma(scale, Zero(), poison);
  }
  const float scale = HorizontalMax(largest);
  const Vec steps = Set(scale > 0.0f ? kWeightSteps / scale : 0.0f);
  for (int i = 0; i < count; ++i) {
    const Vec scales = Load(seen[i].group->value_scales);
    const Vec factor = seen[i].whole ? Mul(scales, steps) : scales;
    for (int r = 0; r < rows; ++r) {
      float* p = scores + r * kScoreStride + 16 * i;
      const Vec weight = Mul(Load(p), factor);
      seen[i].whole ? StorePairs(p, weight) : Store(p, weight);
    }
  }
  return scale / kWeightSteps + HorizontalSum(poison);
}

// Vector j of kStreams groups, four tokens at a time in turn: sum[c % kSets] takes those of group first + c.
template <int kRows, int kStreams, int kSets>
HG_INLINE void AddInt8Groups(const ValueGroups& groups, int first, const Layout& layout, int j,
                             Ints (&sum)[kSets][kRows]) {
  const int beyond = j + layout.vecs_ahead - layout.full_vecs;
  const char* v[kStreams];
  const char* next[kStreams];
  const float* p[kStreams];
  HG_UNROLL
  for (int c = 0; c < kStreams; ++c) {
    v[c] = groups.v[first + c] + j * layout.value.vec;
    next[c] =
        beyond < 0 ? v[c] + layout.vecs_ahead * layout.value.vec : groups.next[first + c] + beyond * layout.ahead.vec;
    p[c] = groups.p[first + c];
  }
  for (int quad = 0; quad < 4; ++quad) {
    HG_UNROLL
    for (int c = 0; c < kStreams; ++c) {
      Prefetch(next[c] + quad * kLineBytes);
      Ints even, odd;
      LoadQuads(v[c] + quad * kLineBytes, even, odd);
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const float* pair = p[c] + r * kScoreStride + quad * kQuadPairs;
        Ints& total = sum[c % kSets][r];
        total = AddPairs(even, SetPair(pair), total);
        total = AddPairs(odd, SetPair(pair + 1), total);
      }
    }
  }
}

// SumRows: groups.p are pairs [4][kQuadPairs], of which a step is worth groups.step.
template <int kRows>
void SumInt8(const ValueGroups& groups, const Layout& layout, int rows, const float* decay, float* acc) {
  constexpr int kStreams = 4;
  constexpr int kSets = AtMost(kStreams, kAccumulatorVecs / kRows);
  const Vec step = Set(groups.step);
  for (int j = 0; j < layout.full_vecs; ++j) {
    Ints sum[kSets][kRows];
    HG_UNROLL
    for (int set = 0; set < kSets; ++set) {
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) sum[set][r] = ZeroInts();
    }
    int first = 0;
    for (; first + kStreams <= groups.count; first += kStreams) {
      AddInt8Groups<kRows, kStreams>(groups, first, layout, j, sum);
    }
    for (; first < groups.count; ++first) AddInt8Groups<kRows, 1>(groups, first, layout, j, sum);
    HG_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      float* a = acc + (static_cast<size_t>(r) * layout.full_vecs + j) * 16;
      Ints total = sum[0][r];
      HG_UNROLL
      for (int set = 1; set < kSets; ++set) total = AddInts(total, sum[set][r]);
      Store(a, Fma(ToFloat(total), step, Mul(Load(a), Set(decay[r]))));
    }
  }
}

// SumEdge, with the scales of V already in p.
void SumInt8Edge(const char* v, const Layout& layout, const float* p, int lo, int hi, float* acc) {
  for (int j = 0; j < layout.full_vecs; ++j, v += layout.value.vec) {
    Vec sum = Load(acc + 16 * j);
    for (int t = lo; t < hi; ++t) sum = Fma(LoadByte(v + t / 4 * kLineBytes, t % 4), Set(p[t]), sum);
    Store(acc + 16 * j, sum);
  }
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_INT8_INL_H_
