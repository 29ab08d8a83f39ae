// The two inner products of attention on register blocks: scores = q.K and out += p.V, for up to kRowBlock query rows
// that share every load. Textually included once per ISA, after elements-inl.h.
//
// All loops run over 16-token groups. Rows come in blocks of 1, 2, 4 or 8; a block is filled up with rows of zeros
// whose results nobody reads, so that no K or V byte is loaded twice for the sake of an odd group size.
#ifndef KERNELS_CPU_TILE_INL_H_
#define KERNELS_CPU_TILE_INL_H_

#define HG_UNROLL _Pragma("GCC unroll 16")

namespace hybridgen {
namespace {

// Into the second-level cache: a chunk's K or V is as large as the first level.
HG_INLINE void Prefetch(const char* p) { __builtin_prefetch(p, 0, 2); }

constexpr int AtMost(int limit, int x) { return x < limit ? x : limit; }

// Distances in bytes between the vectors of 16 dims of a token and between the tokens of a vector, in K or V.
struct Strides {
  int64_t vec;
  int64_t token;
};

// K and V as the inner loops see them, the same for every group of a call.
//   K  strided: dims [16 j, 16 j + 16) of token t at k + j * key.vec + t * key.token. Packed pages, and strided ones
//   that
//      were transposed, are read in order: [head_size][16 tokens] elements, pairs [head_size / 2][16][2].
//   V  dims [16 j, 16 j + 16) of token t at v + j * value.vec + t * value.token; pairs: of tokens t and t + 1, t even.
struct Layout {
  Strides key;  // of K as it lies in memory, for fetching ahead too
  Strides value;
  int full_vecs;  // vectors of 16 dims in V, and in K by strides
  int half_vecs;  // 0 or 1: vectors of 8 dims behind them
};

// Groups that some row of a block sees.
struct KeyGroups {
  int count;
  const char* k[kChunkGroups];
  const char* next_v[kChunkGroups];  // V that is read after this K
  int valid[kChunkGroups];           // tokens that exist, 1 to 16
};

// scores[row * kScoreStride + 16 * i + t] = q[row] . K[token t of group i]. q is [head_size][kRows]. Writes up to
// kChunkGroups groups, the number rounded up.
template <Elements kElements, int kRows>
void ScoreRows(const KeyGroups& groups, const Layout& layout, int head_size, const float* q, float* scores) {
  constexpr int kGroups = AtMost(4, kAccumulatorVecs / kRows);
  static_assert(kChunkGroups % kGroups == 0, "a short last block writes whole blocks of groups");
  constexpr int kStep = kElements == Elements::kBF16Pairs ? 2 : 1;
  constexpr int kStepBytes = kElements == Elements::kF16 ? 32 : 64;
  for (int first = 0; first < groups.count; first += kGroups) {
    const char* p[kGroups];
    const char* next[kGroups];
    HG_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      p[i] = groups.k[AtMost(groups.count - 1, first + i)];
      next[i] = groups.next_v[AtMost(groups.count - 1, first + i)];
    }
    Vec acc[kGroups][kRows];
    HG_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) acc[i][r] = Zero();
    }
    size_t offset = 0;
    const float* qd = q;
    for (int vec = 0; vec < head_size; vec += 16) {
      int64_t next_offset = vec / 16 * layout.value.vec;
      for (int d = 0; d < AtMost(16, head_size - vec); d += kStep) {
        Vec x[kGroups][kStep];
        HG_UNROLL
        for (int i = 0; i < kGroups; ++i) {
          Prefetch(next[i] + next_offset);
          if constexpr (kElements == Elements::kBF16Pairs) {
            LoadBF16Pairs(p[i] + offset, x[i][0], x[i][1]);
          } else {
            x[i][0] = LoadElements<kElements>(p[i] + offset);
          }
        }
        HG_UNROLL
        for (int s = 0; s < kStep; ++s) {
          HG_UNROLL
          for (int r = 0; r < kRows; ++r) {
            const Vec qr = Set(qd[s * kRows + r]);
            HG_UNROLL
            for (int i = 0; i < kGroups; ++i) acc[i][r] = Fma(x[i][s], qr, acc[i][r]);
          }
        }
        qd += kStep * kRows;
        offset += kStepBytes;
        next_offset += kStep * layout.value.token;
      }
    }
    HG_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) Store(scores + r * kScoreStride + (first + i) * 16, acc[i][r]);
    }
  }
}

// The same scores from K by strides; q is [head_size / 16 rounded up][kRows][16]. Tokens that do not exist are not read
// and get the score of one that does.
template <Elements kElements, int kRows>
void ScoreTokens(const KeyGroups& groups, const Layout& layout, int, const float* q, float* scores) {
  constexpr int kTokens = kAccumulatorVecs / kRows;
  static_assert(kTokens * kRows == kAccumulatorVecs && 16 % kTokens == 0, "all sums are reduced at once");
  for (int i = 0; i < groups.count; ++i) {
    for (int first = 0; first < 16; first += kTokens) {
      const char* k[kTokens];
      const char* next[kTokens];
      HG_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        k[t] = groups.k[i] + AtMost(groups.valid[i] - 1, first + t) * layout.key.token;
        next[t] = groups.next_v[i] + (first + t) * layout.value.token;
      }
      Vec acc[kRows * kTokens];
      HG_UNROLL
      for (int a = 0; a < kRows * kTokens; ++a) acc[a] = Zero();
      const float* qj = q;
      for (int j = 0; j < layout.full_vecs; ++j, qj += 16 * kRows) {
        HG_UNROLL
        for (int t = 0; t < kTokens; ++t) Prefetch(next[t] + j * layout.value.vec);
        HG_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          const Vec x = LoadElements<kElements>(k[t] + j * layout.key.vec);
          HG_UNROLL
          for (int r = 0; r < kRows; ++r) acc[r * kTokens + t] = Fma(x, Load(qj + 16 * r), acc[r * kTokens + t]);
        }
      }
      if (layout.half_vecs > 0) {
        HG_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          const Vec x = LoadElements<kElements, Extent::kHalf>(k[t] + layout.full_vecs * layout.key.vec);
          HG_UNROLL
          for (int r = 0; r < kRows; ++r) acc[r * kTokens + t] = Fma(x, Load(qj + 16 * r), acc[r * kTokens + t]);
        }
      }
      float sums[kRows * kTokens];
      StoreSums(sums, acc);
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) {
        __builtin_memcpy(scores + r * kScoreStride + 16 * i + first, sums + r * kTokens, kTokens * sizeof(float));
      }
    }
  }
}

// Groups that every row of a block sees in full.
struct ValueGroups {
  int count;
  const char* v[kChunkGroups];
  const char* next_k[kChunkGroups];  // K that is read after this V
  const float* p[kChunkGroups];      // weights of row 0; those of row r lie kScoreStride floats further each
};

template <Elements kElements, Extent kExtent, int kRows, int kVecs>
void SumBlock(const ValueGroups& groups, const Layout& layout, int j, int rows, const float* decay, float* acc) {
  Vec sum[kVecs][kRows];
  HG_UNROLL
  for (int i = 0; i < kVecs; ++i) {
    HG_UNROLL
    for (int r = 0; r < kRows; ++r) sum[i][r] = Zero();
  }
  constexpr int kStep = kElements == Elements::kBF16Pairs ? 2 : 1;
  for (int g = 0; g < groups.count; ++g) {
    const char* v = groups.v[g] + j * layout.value.vec;
    const char* next = groups.next_k[g] + j * layout.key.vec;
    const float* p = groups.p[g];
    for (int t = 0; t < 16; t += kStep) {
      Vec x[kVecs][kStep];
      HG_UNROLL
      for (int i = 0; i < kVecs; ++i) {
        Prefetch(next + i * layout.key.vec);
        if constexpr (kElements == Elements::kBF16Pairs) {
          LoadBF16Pairs(v + i * layout.value.vec, x[i][0], x[i][1]);
        } else {
          x[i][0] = LoadElements<kElements, kExtent>(v + i * layout.value.vec);
        }
      }
      HG_UNROLL
      for (int s = 0; s < kStep; ++s) {
        HG_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const Vec pr = Set(p[r * kScoreStride + t + s]);
          HG_UNROLL
          for (int i = 0; i < kVecs; ++i) sum[i][r] = Fma(x[i][s], pr, sum[i][r]);
        }
      }
      v += kStep * layout.value.token;
      next += kStep * layout.key.token;
    }
  }
  const int vecs = layout.full_vecs + layout.half_vecs;
  HG_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    float* a = acc + (static_cast<size_t>(r) * vecs + j) * 16;
    HG_UNROLL
    for (int i = 0; i < kVecs; ++i) Store(a + 16 * i, Fma(Load(a + 16 * i), Set(decay[r]), sum[i][r]));
  }
}

template <Elements kElements, int kRows, int kVecs>
void SumColumns(const ValueGroups& groups, const Layout& layout, int j, int rows, const float* decay, float* acc) {
  for (; j + kVecs <= layout.full_vecs; j += kVecs) {
    SumBlock<kElements, Extent::kFull, kRows, kVecs>(groups, layout, j, rows, decay, acc);
  }
  if constexpr (kVecs > 1) {
    SumColumns<kElements, kRows, kVecs / 2>(groups, layout, j, rows, decay, acc);
  } else if constexpr (kElements != Elements::kBF16Pairs) {
    if (layout.half_vecs > 0) SumBlock<kElements, Extent::kHalf, kRows, 1>(groups, layout, j, rows, decay, acc);
  }
}

// acc[row] = acc[row] * decay[row] + sum over the groups' tokens of p[row][token] * V[token], for `rows` <= kRows rows.
template <Elements kElements, int kRows>
void SumRows(const ValueGroups& groups, const Layout& layout, int rows, const float* decay, float* acc) {
  SumColumns<kElements, kRows, AtMost(8, kAccumulatorVecs / kRows)>(groups, layout, 0, rows, decay, acc);
}

template <Elements kElements, Extent kExtent>
HG_INLINE void AddTokens(const char* v, const Layout& layout, const float* p, int lo, int hi, float* acc) {
  Vec sum = Load(acc);
  for (int t = lo; t < hi; ++t) {
    Vec x;
    if constexpr (kElements == Elements::kBF16Pairs) {
      Vec other;
      if (t % 2 == 0) {
        LoadBF16Pairs(v + t * layout.value.token, x, other);
      } else {
        LoadBF16Pairs(v + (t - 1) * layout.value.token, other, x);
      }
    } else {
      x = LoadElements<kElements, kExtent>(v + t * layout.value.token);
    }
    sum = Fma(x, Set(p[t]), sum);
  }
  Store(acc, sum);
}

// acc += sum over tokens [lo, hi) of one group of p[t] * V[t], for one row. Nothing of the other tokens enters, not
// even times zero: their V may be NaN.
template <Elements kElements>
void SumEdge(const char* v, const Layout& layout, const float* p, int lo, int hi, float* acc) {
  for (int j = 0; j < layout.full_vecs; ++j) {
    AddTokens<kElements, Extent::kFull>(v + j * layout.value.vec, layout, p, lo, hi, acc + 16 * j);
  }
  if constexpr (kElements != Elements::kBF16Pairs) {
    if (layout.half_vecs > 0) {
      const int j = layout.full_vecs;
      AddTokens<kElements, Extent::kHalf>(v + j * layout.value.vec, layout, p, lo, hi, acc + 16 * j);
    }
  }
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_TILE_INL_H_
