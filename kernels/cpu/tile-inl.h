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
//   K  packed, or strided and transposed: read in order, [head_size][16 tokens] elements, pairs [head_size / 2][16][2].
//      Strided: dims [16 j, 16 j + 16) of token t at k + j * key.vec + t * key.token.
//   V  dims [16 j, 16 j + 16) of token t at v + j * value.vec + t * value.token; pairs: of tokens t and t + 1, t even.
struct Layout {
  Strides key;
  Strides value;
  int full_vecs;  // vectors of 16 dims in V, and in K by strides
  int half_vecs;  // 0 or 1: vectors of 8 dims behind them
  // While V's vector j is summed, vector j + vecs_ahead is fetched; behind the last one follows K of the next chunk, by
  // the strides `ahead`. 0: nothing of a run is fetched by instruction.
  int vecs_ahead;
  Strides ahead;
  float* weights = nullptr;  // scratch of matrix tiles
};

// Groups that some row of a block sees. Neighbours in the list belong to different runs where there are several.
struct KeyGroups {
  int count;
  const char* k[kChunkGroups];
  const char* next[kChunkGroups];  // read after this K: the run's next K, or its V
  int valid[kChunkGroups];         // tokens that exist, 1 to 16
};

template <int kRows>
struct BlockOf {
  static constexpr int rows = kRows;
};

// Calls f(BlockOf<rows>()) for every size of a row block.
template <typename F>
void ForEachBlockSize(F f) {
  f(BlockOf<1>());
  f(BlockOf<2>());
  if constexpr (kRowBlock > 2) f(BlockOf<4>());
  if constexpr (kRowBlock > 4) f(BlockOf<8>());
}

constexpr int kLineBytes = 64;

template <Elements kElements>
constexpr int kElementsPerLine = kElements == Elements::kF32                                        ? 16
                                 : kElements == Elements::kF8E4M3 || kElements == Elements::kF8E5M2 ? 64
                                                                                                    : 32;
// Vectors that a cache line is loaded as. For PairDot a vector holds pairs.
template <Elements kElements>
constexpr int kVecsPerLine = kElements == Elements::kBF16Dots ? 1 : kElementsPerLine<kElements> / 16;
// Of these, what one step of a packed loop reads: no more at once, as they take the registers of accumulators.
template <Elements kElements>
constexpr int kVecsPerStep = AtMost(2, kVecsPerLine<kElements>);
template <Elements kElements>
constexpr int kStepsPerLine = kVecsPerLine<kElements> / kVecsPerStep<kElements>;

template <Elements kElements>
HG_INLINE void LoadStep(const char* line, int step, Vec (&x)[kVecsPerStep<kElements>]) {
  if constexpr (kElements == Elements::kBF16Pairs) {
    LoadBF16Pairs(line, x[0], x[1]);
  } else if constexpr (kElements == Elements::kBF16Dots) {
    x[0] = Load(reinterpret_cast<const float*>(line));
  } else {
    constexpr int kBytes = kLineBytes / kVecsPerLine<kElements>;
    HG_UNROLL
    for (int i = 0; i < kVecsPerStep<kElements>; ++i) {
      x[i] = LoadElements<kElements>(line + kBytes * (step * kVecsPerStep<kElements> + i));
    }
  }
}

// scores[row * kScoreStride + 16 * i + t] = q[row] . K[token t of group i]. q is [head_size][kRows], for PairDot pairs
// [head_size / 2][kRows][2] of bfloat16. Writes up to kChunkGroups groups, the number rounded up.
template <Elements kElements, int kRows>
void ScoreRows(const KeyGroups& groups, const Layout&, int head_size, const float* q, float* scores) {
  constexpr int kGroups = AtMost(4, kAccumulatorVecs / kRows);
  static_assert(kChunkGroups % kGroups == 0, "a short last block writes whole blocks of groups");
  constexpr int kStep = kVecsPerStep<kElements>;
  for (int first = 0; first < groups.count; first += kGroups) {
    const char* p[kGroups];
    const char* next[kGroups];
    HG_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      p[i] = groups.k[AtMost(groups.count - 1, first + i)];
      next[i] = groups.next[AtMost(groups.count - 1, first + i)];
    }
    Vec acc[kGroups][kRows];
    HG_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) acc[i][r] = Zero();
    }
    const float* qd = q;
    const size_t bytes = static_cast<size_t>(head_size) * 16 / kElementsPerLine<kElements> * kLineBytes;
    for (size_t offset = 0; offset < bytes; offset += kLineBytes) {
      HG_UNROLL
      for (int step = 0; step < kStepsPerLine<kElements>; ++step, qd += kStep * kRows) {
        Vec x[kGroups][kStep];
        HG_UNROLL
        for (int i = 0; i < kGroups; ++i) {
          if (step == 0) Prefetch(next[i] + offset);
          LoadStep<kElements>(p[i] + offset, step, x[i]);
        }
        HG_UNROLL
        for (int s = 0; s < kStep; ++s) {
          HG_UNROLL
          for (int r = 0; r < kRows; ++r) {
            const Vec qr = Set(qd[s * kRows + r]);
            HG_UNROLL
            for (int i = 0; i < kGroups; ++i) {
              acc[i][r] =
                  kElements == Elements::kBF16Dots ? PairDot(x[i][s], qr, acc[i][r]) : Fma(x[i][s], qr, acc[i][r]);
            }
          }
        }
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
  constexpr int kStreams = AtMost(4, kTokens);  // groups side by side
  constexpr int kSteps = kTokens / kStreams;    // tokens of each
  static_assert(kTokens * kRows == kAccumulatorVecs && 16 % kSteps == 0, "all sums are reduced at once");
  for (int group = 0; group < groups.count; group += kStreams) {
    for (int first = 0; first < 16; first += kSteps) {
      const char* k[kTokens];
      const char* next[kTokens];
      HG_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const int i = AtMost(groups.count - 1, group + t / kSteps);
        const int token = first + t % kSteps;
        k[t] = groups.k[i] + AtMost(groups.valid[i] - 1, token) * layout.key.token;
        next[t] = groups.next[i] + token * layout.value.token;
      }
      Vec acc[kRows * kTokens];
      HG_UNROLL
      for (int a = 0; a < kRows * kTokens; ++a) acc[a] = Zero();
      const float* qj = q;
      for (int j = 0; j < layout.full_vecs; ++j, qj += 16 * kRows) {
        if (j % kVecsPerLine<kElements> == 0) {
          HG_UNROLL
          for (int t = 0; t < kTokens; ++t) Prefetch(next[t] + j * layout.value.vec);
        }
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
        HG_UNROLL
        for (int c = 0; c < kStreams; ++c) {
          __builtin_memcpy(scores + r * kScoreStride + 16 * (group + c) + first, sums + r * kTokens + c * kSteps,
                           kSteps * sizeof(float));
        }
      }
    }
  }
}

// Groups that every row of a block sees in full, in the order of KeyGroups.
struct ValueGroups {
  int count;
  const char* v[kChunkGroups];
  const char* next[kChunkGroups];  // K that is read after this V
  const float* p[kChunkGroups];    // weights of row 0; those of row r lie kScoreStride floats further each
  float step = 0;                  // of 8-bit pages: what a step of the weights is worth
};

// Vectors [j, j + kVecs) of kStreams groups, token by token in turn: sum[c % kSets] takes those of group first + c.
template <Elements kElements, PageFormat kFormat, Extent kExtent, int kRows, int kVecs, int kStreams, int kSets>
HG_INLINE void AddGroups(const ValueGroups& groups, int first, const Layout& layout, int j,
                         Vec (&sum)[kSets][kVecs][kRows]) {
  constexpr bool kPacked = kFormat == PageFormat::kPackedV1;
  constexpr int kStep = kPacked ? kVecsPerStep<kElements> : 1;  // tokens
  constexpr int kSteps = kPacked ? kStepsPerLine<kElements> : 1;
  static_assert(!kPacked || kVecs == 1, "a packed line is several tokens of one vector");
  const int beyond = j + layout.vecs_ahead - layout.full_vecs - layout.half_vecs;
  const int64_t line = kPacked ? kLineBytes : layout.value.token;
  const int64_t next_line = kPacked ? kLineBytes : layout.ahead.token;
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
  int64_t offset = 0;
  int64_t next_offset = 0;
  for (int first_token = 0; first_token < 16; first_token += kStep * kSteps) {
    HG_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const int t = first_token + step * kStep;
      HG_UNROLL
      for (int c = 0; c < kStreams; ++c) {
        Vec x[kVecs * kStep];
        if constexpr (kPacked) {
          if (step == 0) Prefetch(next[c] + next_offset);
          LoadStep<kElements>(v[c] + offset, step, x);
        } else {
          HG_UNROLL
          for (int i = 0; i < kVecs; ++i) {
            if (i % kVecsPerLine<kElements> == 0) Prefetch(next[c] + next_offset + i * layout.ahead.vec);
            x[i] = LoadElements<kElements, kExtent>(v[c] + offset + i * layout.value.vec);
          }
        }
        HG_UNROLL
        for (int s = 0; s < kStep; ++s) {
          HG_UNROLL
          for (int r = 0; r < kRows; ++r) {
            const Vec pr = Set(p[c][r * kScoreStride + t + s]);
            HG_UNROLL
            for (int i = 0; i < kVecs; ++i) {
              Vec& total = sum[c % kSets][i][r];
              total = Fma(x[kPacked ? s : i], pr, total);
            }
          }
        }
      }
    }
    offset += line;
    next_offset += next_line;
  }
}

template <Elements kElements, PageFormat kFormat, Extent kExtent, int kRows, int kVecs, int kStreams>
void SumBlock(const ValueGroups& groups, const Layout& layout, int j, int rows, const float* decay, float* acc) {
  constexpr int kSets = AtMost(kStreams, kAccumulatorVecs / (kRows * kVecs));
  Vec sum[kSets][kVecs][kRows];
  HG_UNROLL
  for (int set = 0; set < kSets; ++set) {
    HG_UNROLL
    for (int i = 0; i < kVecs; ++i) {
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) sum[set][i][r] = Zero();
    }
  }
  int first = 0;
  for (; first + kStreams <= groups.count; first += kStreams) {
    AddGroups<kElements, kFormat, kExtent, kRows, kVecs, kStreams>(groups, first, layout, j, sum);
  }
  if constexpr (kStreams > 1) {
    for (; first < groups.count; ++first) {
      AddGroups<kElements, kFormat, kExtent, kRows, kVecs, 1>(groups, first, layout, j, sum);
    }
  }
  const int vecs = layout.full_vecs + layout.half_vecs;
  HG_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    float* a = acc + (static_cast<size_t>(r) * vecs + j) * 16;
    HG_UNROLL
    for (int i = 0; i < kVecs; ++i) {
      Vec total = sum[0][i][r];
      HG_UNROLL
      for (int set = 1; set < kSets; ++set) total = Add(total, sum[set][i][r]);
      Store(a + 16 * i, Fma(Load(a + 16 * i), Set(decay[r]), total));
    }
  }
}

template <Elements kElements, PageFormat kFormat, int kRows, int kVecs, int kStreams>
void SumColumns(const ValueGroups& groups, const Layout& layout, int j, int rows, const float* decay, float* acc) {
  for (; j + kVecs <= layout.full_vecs; j += kVecs) {
    SumBlock<kElements, kFormat, Extent::kFull, kRows, kVecs, kStreams>(groups, layout, j, rows, decay, acc);
  }
  if constexpr (kVecs > 1) {
    SumColumns<kElements, kFormat, kRows, kVecs / 2, kStreams>(groups, layout, j, rows, decay, acc);
  } else if constexpr (kFormat == PageFormat::kStrided) {
    if (layout.half_vecs > 0) {
      SumBlock<kElements, kFormat, Extent::kHalf, kRows, 1, kStreams>(groups, layout, j, rows, decay, acc);
    }
  }
}

// acc[row] = acc[row] * decay[row] + sum over the groups' tokens of p[row][token] * V[token], for `rows` <= kRows rows.
// Packed V is one run per page in the order (vector, token), strided V one row per token: so as memory has it, packed V
// is read one vector at a time from several pages in turn, strided V whole rows at a time.
template <Elements kElements, PageFormat kFormat, int kRows>
void SumRows(const ValueGroups& groups, const Layout& layout, int rows, const float* decay, float* acc) {
  constexpr bool kPacked = kFormat == PageFormat::kPackedV1;
  constexpr int kVecs = kPacked ? 1 : AtMost(8, kAccumulatorVecs / kRows);
  SumColumns<kElements, kFormat, kRows, kVecs, 4>(groups, layout, 0, rows, decay, acc);
}

// A vector of V of token t; v: the vector's begin in a group or page.
template <Elements kElements, Extent kExtent>
HG_INLINE Vec LoadValues(const char* v, int64_t token_bytes, int t) {
  if constexpr (kElements == Elements::kBF16Pairs) {
    Vec even, odd;
    LoadBF16Pairs(v + t / 2 * 2 * token_bytes, even, odd);
    return t % 2 == 0 ? even : odd;
  } else {
    return LoadElements<kElements, kExtent>(v + t * token_bytes);
  }
}

template <Elements kElements, Extent kExtent>
HG_INLINE void AddTokens(const char* v, const Layout& layout, const float* p, int lo, int hi, float* acc) {
  Vec sum = Load(acc);
  for (int t = lo; t < hi; ++t) {
    sum = Fma(LoadValues<kElements, kExtent>(v, layout.value.token, t), Set(p[t]), sum);
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
