// The two inner products of attention on matrix tiles of 16 rows x 64 bytes, for packed bfloat16 pages and, split into
// two bfloat16 per number, packed float16 pages. Textually included after attend-inl.h and either tile_amx.h or
// tile_emulated.h, by sources with the AVX-512 vector type.
//
// Tiles 0 to 3 are sums (16 query rows x 16 tokens or dims), 4 and 5 hold queries or weights, 5 to 7 K or V. A block is
// one row tile (decode) or two. A group's K is a tile per 32 dims as the page has it; a tile of V is 32 tokens of 16
// dims, from two groups.
//
// Sums are as exact as with multiply-adds: products of two bfloat16 fit into float32. A float16 is the sum of two
// bfloat16 (11 = 8 + 3 bits), a weight of three (24 = 8 + 8 + 8), both without error, and all products of terms are
// summed but those below 2^-24 of the whole (the last term of a weight times the second one of V).
#ifndef KERNELS_CPU_ATTEND_TILES_INL_H_
#define KERNELS_CPU_ATTEND_TILES_INL_H_

namespace hybridgen {
namespace {

constexpr int kDimsPerTile = 32;       // of K
constexpr int kGroupValueBytes = 512;  // 16 dims of a group's V: half a tile
constexpr int kMinTileRowsBF16 = 4;    // fewer rows are as fast with vectors
constexpr int kMinTileRowsF16 = kRowBlock + 1;

// The upper halves of 16 and 16 floats, in order: truncated to bfloat16.
HG_INLINE __m512i UpperHalves(Vec a, Vec b) {
  alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(_mm512_castps_si512(a), _mm512_load_si512(kOdd), _mm512_castps_si512(b));
}

HG_INLINE __m512i UpperMask() { return _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u)); }

// What is left of x without its upper half; exact.
HG_INLINE Vec Rest(Vec x) { return Sub(x, _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), UpperMask()))); }

// The upper halves of a and b, in turn.
HG_INLINE __m512i UpperPairs(Vec a, Vec b) {
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(a), 16),
                         _mm512_and_si512(_mm512_castps_si512(b), UpperMask()));
}

// Lanes below `count` that are infinite or NaN.
HG_INLINE bool AnyNotFinite(Vec x, int count) {
  return _mm512_mask_cmp_ps_mask(static_cast<__mmask16>((1u << count) - 1u), Abs(x), Set(-kMinusInfinity),
                                 _CMP_NLT_UQ) != 0;
}

// Adds A * B for two row tiles and two tiles of K or V, or for one and four.
template <int kRowTiles>
HG_INLINE void DotFour(const char* a, int64_t row_tile, int64_t a_stride, const char* const (&b)[4 / kRowTiles]) {
  TileLoad<4>(a, a_stride);
  if constexpr (kRowTiles == 1) {
    TileLoad<5>(b[0], kTileRowBytes);
    TileLoad<6>(b[1], kTileRowBytes);
    TileLoad<7>(b[2], kTileRowBytes);
    TileDot<0, 4, 5>();
    TileLoad<5>(b[3], kTileRowBytes);
    TileDot<1, 4, 6>();
    TileDot<2, 4, 7>();
    TileDot<3, 4, 5>();
  } else {
    TileLoad<5>(a + row_tile, a_stride);
    TileLoad<6>(b[0], kTileRowBytes);
    TileLoad<7>(b[1], kTileRowBytes);
    TileDot<0, 4, 6>();
    TileDot<1, 4, 7>();
    TileDot<2, 5, 6>();
    TileDot<3, 5, 7>();
  }
}

HG_INLINE void ZeroSums() {
  TileZero<0>();
  TileZero<1>();
  TileZero<2>();
  TileZero<3>();
}

// The scores of ScoreRows. q is [row tile][head_size / 32][kTerms][16 rows][32], K of a group [head_size / 32][kTerms]
// tiles. Four groups are read side by side, neighbours of a run one after the other.
template <int kRowTiles, int kTerms>
void ScoreTiles(const KeyGroups& groups, const Layout&, int head_size, const float* q, float* scores) {
  constexpr int kGroups = 4 / kRowTiles;
  constexpr int64_t kStride = kScoreStride * sizeof(float);
  const int blocks = head_size / kDimsPerTile;
  const int64_t row_tile = static_cast<int64_t>(blocks) * kTerms * kTileBytes;
  for (int first = 0; first < groups.count; first += 2 * kGroups) {
    for (int half = 0; half < AtMost(2, groups.count - first); ++half) {
      const char* k[kGroups];
      const char* next[kGroups];
      for (int i = 0; i < kGroups; ++i) {
        const int group = AtMost(groups.count - 1, first + half + 2 * i);
        k[i] = groups.k[group];
        next[i] = groups.next[group];
      }
      ZeroSums();
      for (int block = 0; block < blocks; ++block) {
        if constexpr (kTerms == 1) {
          for (int i = 0; i < kGroups; ++i) {
            for (int line = 0; line < kTileRows; ++line) Prefetch(next[i] + block * kTileBytes + line * kLineBytes);
          }
        }
        const char* a = reinterpret_cast<const char*>(q) + static_cast<int64_t>(block) * kTerms * kTileBytes;
        for (int k_term = 0; k_term < kTerms; ++k_term) {
          const char* b[kGroups];
          for (int i = 0; i < kGroups; ++i) b[i] = k[i] + (block * kTerms + k_term) * kTileBytes;
          for (int q_term = 0; q_term < kTerms; ++q_term) {
            DotFour<kRowTiles>(a + q_term * kTileBytes, row_tile, kTileRowBytes, b);
          }
        }
      }
      float* out = scores + 16 * (first + half);
      float* others = kRowTiles == 1 ? out + 64 : out + kTileRows * kScoreStride;
      TileStore<0>(out, kStride);
      TileStore<1>(out + 32, kStride);
      TileStore<2>(others, kStride);
      TileStore<3>(others + 32, kStride);
    }
  }
}

// Weights of the groups, two groups at a time, as their terms: [term][row][pair of groups][32 tokens].
template <int kRowTiles>
void SplitWeights(const ValueGroups& groups, int rows, float* weights) {
  constexpr int kRowFloats = WeightRowFloats(kRowTiles * kTileRows);
  constexpr int kTermFloats = kRowTiles * kTileRows * kRowFloats;
  for (int row = 0; row < rows; ++row) {
    float* out = weights + row * kRowFloats;
    for (int i = 0; i < groups.count; i += 2, out += 16) {
      Vec a = Load(groups.p[i] + row * kScoreStride);
      Vec b = i + 1 < groups.count ? Load(groups.p[i + 1] + row * kScoreStride) : Zero();
      HG_UNROLL
      for (int term = 0; term < kWeightTerms; ++term) {
        _mm512_storeu_si512(out + term * kTermFloats, UpperHalves(a, b));
        a = Rest(a);
        b = Rest(b);
      }
    }
  }
}

// The tile of V of groups i and i + 1 at `offset`, where the two lie one behind the other; else put together in
// `joined`. Without a second group its half is zeros.
HG_INLINE const char* ValueTile(const ValueGroups& groups, int i, int64_t offset, char* joined) {
  const char* v = groups.v[i] + offset;
  const bool two = i + 1 < groups.count;
  if (two && groups.v[i + 1] == groups.v[i] + kGroupValueBytes) return v;
  for (int byte = 0; byte < kGroupValueBytes; byte += kLineBytes) {
    _mm512_store_si512(joined + byte, _mm512_loadu_si512(v + byte));
    _mm512_store_si512(joined + kGroupValueBytes + byte,
                       two ? _mm512_loadu_si512(groups.v[i + 1] + offset + byte) : _mm512_setzero_si512());
  }
  return joined;
}

// Fetches what comes vecs_ahead vectors after vector j of V of a group, as AddGroups does.
HG_INLINE void PrefetchValues(const ValueGroups& groups, int i, const Layout& layout, int j) {
  const int beyond = j + layout.vecs_ahead - layout.full_vecs;
  const char* next = beyond < 0 ? groups.v[i] + (j + layout.vecs_ahead) * layout.value.vec
                                : groups.next[i] + beyond * layout.ahead.vec;
  for (int byte = 0; byte < kGroupValueBytes; byte += kLineBytes) Prefetch(next + byte);
}

// Adds the weights of groups i and i + 1 times vector j of their V to sum kSum.
template <int kSum, int kTerms>
HG_INLINE void AddPair(const ValueGroups& groups, int i, const Layout& layout, int64_t offset, const float* weights,
                       char* joined) {
  constexpr int kRowFloats = WeightRowFloats(kTileRows);
  constexpr int64_t kStride = kRowFloats * sizeof(float);
  if (i >= groups.count) return;
  constexpr int kB = 5 + kSum % 3;
  HG_UNROLL
  for (int v_term = 0; v_term < kTerms; ++v_term) {
    TileLoad<kB>(ValueTile(groups, i, offset + v_term * kTileBytes, joined), kTileRowBytes);
    HG_UNROLL
    for (int term = 0; term < kWeightTerms - v_term; ++term) {
      TileLoad<4>(weights + term * kTileRows * kRowFloats + i / 2 * 16, kStride);
      TileDot<kSum, 4, kB>();
    }
  }
}

// acc of SumRows, for packed pages (kTerms 1) or what SplitChunk wrote (kTerms 2). One row tile sums one vector of V at
// a time, over four pairs of groups side by side; two row tiles sum two vectors.
template <int kRowTiles, int kTerms>
void SumTiles(const ValueGroups& groups, const Layout& layout, int rows, const float* decay, float* acc) {
  constexpr int kVecs = kRowTiles;  // at a time
  constexpr int kRowFloats = WeightRowFloats(kRowTiles * kTileRows);
  const int64_t vec_bytes = kTerms == 1 ? layout.value.vec : kTerms * kTileBytes;
  const int vecs = layout.full_vecs;
  alignas(64) float sums[4][kTileRows][16];
  alignas(64) char joined[4][kTileBytes];
  SplitWeights<kRowTiles>(groups, rows, layout.weights);
  for (int j = 0; j < vecs; j += kVecs) {
    const int64_t offset = j * vec_bytes;
    ZeroSums();
    for (int i = 0; i < groups.count; i += kRowTiles == 1 ? 8 : 2) {
      if constexpr (kTerms == 1) {
        for (int group = i; group < AtMost(groups.count, i + (kRowTiles == 1 ? 8 : 2)); ++group) {
          for (int vec = 0; vec < kVecs; ++vec) PrefetchValues(groups, group, layout, j + vec);
        }
      }
      if constexpr (kRowTiles == 1) {
        AddPair<0, kTerms>(groups, i, layout, offset, layout.weights, joined[0]);
        AddPair<1, kTerms>(groups, i + 2, layout, offset, layout.weights, joined[1]);
        AddPair<2, kTerms>(groups, i + 4, layout, offset, layout.weights, joined[2]);
        AddPair<3, kTerms>(groups, i + 6, layout, offset, layout.weights, joined[3]);
      } else {
        for (int v_term = 0; v_term < kTerms; ++v_term) {
          const char* b[2];
          for (int vec = 0; vec < kVecs; ++vec) {
            b[vec] = ValueTile(groups, i, offset + vec * vec_bytes + v_term * kTileBytes, joined[vec]);
          }
          for (int term = 0; term < kWeightTerms - v_term; ++term) {
            const float* a = layout.weights + term * 2 * kTileRows * kRowFloats + i / 2 * 16;
            DotFour<kRowTiles>(reinterpret_cast<const char*>(a), kTileRows * kRowFloats * sizeof(float),
                               kRowFloats * sizeof(float), b);
          }
        }
      }
    }
    TileStore<0>(sums[0], kTileRowBytes);
    TileStore<1>(sums[1], kTileRowBytes);
    TileStore<2>(sums[2], kTileRowBytes);
    TileStore<3>(sums[3], kTileRowBytes);
    for (int row = 0; row < rows; ++row) {
      float* a = acc + (static_cast<size_t>(row) * vecs + j) * 16;
      if constexpr (kRowTiles == 1) {
        const Vec total = Add(Add(Load(sums[0][row]), Load(sums[1][row])), Add(Load(sums[2][row]), Load(sums[3][row])));
        Store(a, Fma(Load(a), Set(decay[row]), total));
      } else {
        for (int vec = 0; vec < kVecs; ++vec) {
          const Vec total = Load(sums[row / kTileRows * 2 + vec][row % kTileRows]);
          Store(a + 16 * vec, Fma(Load(a + 16 * vec), Set(decay[row]), total));
        }
      }
    }
  }
}

// Queries as tiles, rows behind the last one zero. Returns whether all are finite, where it matters (kTerms 2).
template <int kTerms>
bool PackTileQueries(const Call& call) {
  const QueryTile& tile = call.tile;
  const int64_t element = static_cast<int64_t>(BytesOf(tile.dtype));
  const int blocks = tile.head_size / kDimsPerTile;
  const int row_tiles = (call.rows + kTileRows - 1) / kTileRows;
  const int packed_rows = row_tiles * kTileRows;
  bool finite = true;
  for (int row = 0; row < packed_rows; ++row) {
    const char* in = static_cast<const char*>(tile.q) +
                     (row / tile.group * tile.token_stride + row % tile.group * tile.head_stride) * element;
    char* out = reinterpret_cast<char*>(call.q) + static_cast<int64_t>(row / kTileRows) * blocks * kTerms * kTileBytes +
                row % kTileRows * kTileRowBytes;
    for (int block = 0; block < blocks; ++block, in += kDimsPerTile * element, out += kTerms * kTileBytes) {
      if (row >= call.rows) {
        for (int term = 0; term < kTerms; ++term) _mm512_store_si512(out + term * kTileBytes, _mm512_setzero_si512());
      } else if constexpr (kTerms == 1) {
        _mm512_store_si512(out, _mm512_loadu_si512(in));
      } else {
        const Vec a = LoadF16(in);
        const Vec b = LoadF16(in + 32);
        finite &= !AnyNotFinite(a, 16) && !AnyNotFinite(b, 16);
        _mm512_store_si512(out, UpperHalves(a, b));
        _mm512_store_si512(out + kTileBytes, UpperHalves(Rest(a), Rest(b)));
      }
    }
  }
  return finite;
}

// Lines of 16 pairs, one of each term.
HG_INLINE void StoreTermPairs(char* out, Vec a, Vec b) {
  _mm512_store_si512(out, UpperPairs(a, b));
  _mm512_store_si512(out + kTileBytes, UpperPairs(Rest(a), Rest(b)));
}

// float16 K and V of a chunk as tiles of two terms: K [group][head_size / 32][term], V [pair of groups][head_size / 16]
// [term]. False, with the chunk as it was: a K is not finite.
bool SplitChunk(const Call& call, Group* chunk, int num_groups) {
  constexpr int kVecBytes = 32;  // 16 tokens of one dim of K, 16 dims of one token of V
  const int head_size = call.tile.head_size;
  char* keys = reinterpret_cast<char*>(call.keys);
  char* values = reinterpret_cast<char*>(call.values);
  const int64_t key_bytes = static_cast<int64_t>(head_size) / kDimsPerTile * 2 * kTileBytes;
  const int64_t pair_bytes = static_cast<int64_t>(call.vecs) * 2 * kTileBytes;
  for (int i = 0; i < num_groups; ++i) {
    for (int dim = 0; dim < head_size; dim += 2) {
      const char* in = chunk[i].k + dim * kVecBytes;
      const Vec a = LoadF16(in);
      const Vec b = LoadF16(in + kVecBytes);
      if (AnyNotFinite(a, chunk[i].valid) || AnyNotFinite(b, chunk[i].valid)) return false;
      StoreTermPairs(
          keys + i * key_bytes + dim / kDimsPerTile * 2 * kTileBytes + dim % kDimsPerTile / 2 * kTileRowBytes, a, b);
    }
  }
  for (int i = 0; i < num_groups; ++i) {
    char* out = values + i / 2 * pair_bytes + i % 2 * kGroupValueBytes;
    for (int j = 0; j < call.vecs; ++j) {
      for (int token = 0; token < 16; token += 2) {
        const char* in = chunk[i].v + j * call.layout.value.vec + token * kVecBytes;
        StoreTermPairs(out + j * 2 * kTileBytes + token / 2 * kTileRowBytes, LoadF16(in), LoadF16(in + kVecBytes));
      }
    }
    chunk[i].k = keys + i * key_bytes;
    chunk[i].v = out;
  }
  return true;
}

// All rows over one chunk of float16. A product with an infinite K would be NaN in the other terms of q, so a chunk
// that holds one is left to the vectors.
bool AttendSplit(const Call& call, Group* chunk, const char* const* next_keys, int num_groups) {
  if (SplitChunk(call, chunk, num_groups)) return AttendBlocks(call, chunk, next_keys, num_groups);
  Call vectors = call;
  UseVectors(vectors, KeyOrderOf(call.tile, *call.args));
  PackQueries(vectors);
  const bool ok = AttendBlocks(vectors, chunk, next_keys, num_groups);
  PackTileQueries<2>(call);
  return ok;
}

template <int kTerms>
bool UseTiles(Call& call) {
  call.row_block = call.rows <= kTileRows ? kTileRows : 2 * kTileRows;
  call.smallest_block = kTileRows;
  call.max_groups = kTerms == 1 && call.rows <= kTileRows ? kChunkGroups : kSharedChunkGroups;
  call.groups_in_turn = 2;
  call.q_floats = call.tile.head_size / 2 * kTerms;
  call.attend_chunk = kTerms == 1 ? AttendBlocks : AttendSplit;
  call.score[0] = ScoreTiles<1, kTerms>;
  call.score[1] = ScoreTiles<2, kTerms>;
  call.sum[0] = SumTiles<1, kTerms>;
  call.sum[1] = SumTiles<2, kTerms>;
  return PackTileQueries<kTerms>(call);
}

// Configured for one call: 16 rows of 64 bytes, and as few rows as there are queries in sums and first operands.
void ConfigureTiles(int rows) {
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < kNumTiles; ++tile) {
    config.row_bytes[tile] = kTileRowBytes;
    config.rows[tile] = static_cast<uint8_t>(tile < 5 ? AtMost(kTileRows, rows) : kTileRows);
  }
  TileConfigure(config);
}

// Fills in how blocks are attended by tiles, if they are faster; edges and softmax are those of the vectors.
bool UseTilesIfFaster(Call& call) {
  const DType dtype = call.args->geometry.dtype;
  if (call.tile.dtype != dtype) return false;
  UseVectors(call, KeyOrderOf(call.tile, *call.args));
  if (dtype == DType::kBFloat16 && call.rows >= kMinTileRowsBF16) return UseTiles<1>(call);
  if (dtype == DType::kFloat16 && call.rows >= kMinTileRowsF16) return UseTiles<2>(call);
  return false;
}

// For packed float16 and bfloat16 pages of head sizes that are multiples of 32.
KernelResult AttendWithTiles(const QueryTile& tile, const AttendArgs& args, RowState state, void* scratch) {
  Call call;
  call.state = state;
  StartCall(tile, args, scratch, call);
  if (!UseTilesIfFaster(call)) return Attend(tile, args, state, scratch);
  ConfigureTiles(call.rows);
  const KernelResult result = AttendPages(call);
  TileRelease();
  return result;
}

// The rows of the kernel table, the same for real and for emulated tiles.
constexpr KernelRow kTileKernelRows[] = {
    {Isa::kAmxBf16,
     {BitOf(DType::kBFloat16) | BitOf(DType::kFloat16), BitOf(PageFormat::kPackedV1), HeadClass::kMultipleOf32},
     AttendWithTiles},
};

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_ATTEND_TILES_INL_H_
