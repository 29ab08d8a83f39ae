// Digests of pages, and the bounds of logits that they give. Textually included once per ISA, after attend-inl.h.
#ifndef KERNELS_CPU_DIGEST_INL_H_
#define KERNELS_CPU_DIGEST_INL_H_

namespace hybridgen {
namespace {

constexpr float kUnitRoundoff = 0x1p-24f;

HG_INLINE uint32_t BitsOf(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// The nearest bfloat16 that is not below x (not above: negate both), as bits. Finite x; beyond the largest: infinity.
HG_INLINE uint16_t RoundUpToBFloat16(float x) {
  const uint32_t bits = BitsOf(x);
  return static_cast<uint16_t>((bits >> 31 ? bits : bits + 0xffffu) >> 16);
}

HG_INLINE float WidenBFloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  __builtin_memcpy(&x, &wide, sizeof(x));
  return x;
}

// Of one dim, by lanes of tokens.
struct Extremes {
  Vec max;
  Vec negated_min;
};

// Takes in the first `tokens` lanes of x; not_finite stays 0 as long as they are finite.
HG_INLINE void Include(Extremes& e, Vec x, int tokens, Vec& not_finite) {
  const Vec negated = Sub(Zero(), x);
  e.max = Max(e.max, KeepLanes(x, 0, tokens, kMinusInfinity));
  e.negated_min = Max(e.negated_min, KeepLanes(negated, 0, tokens, kMinusInfinity));
  not_finite = Add(not_finite, KeepLanes(Sub(x, x), 0, tokens, 0.0f));  // inf - inf is NaN
}

// Stores one dim's bounds; returns the larger of their magnitudes.
HG_INLINE float StoreBounds(const Extremes& e, uint16_t* bounds) {
  const uint16_t negated_min = RoundUpToBFloat16(HorizontalMax(e.negated_min));
  bounds[0] = negated_min ^ 0x8000u;
  bounds[1] = RoundUpToBFloat16(HorizontalMax(e.max));
  const float low = __builtin_fabsf(WidenBFloat16(bounds[0]));
  const float high = __builtin_fabsf(WidenBFloat16(bounds[1]));
  return low > high ? low : high;
}

// The box of one KV head. k: its packed K. Returns the magnitude.
template <Elements kElements>
float BuildBox(const char* k, const PageGeometry& g, int num_tokens, uint16_t* box) {
  constexpr bool kPairs = kElements == Elements::kBF16Pairs;
  constexpr int kDims = kPairs ? 2 : 1;
  const size_t padded = (g.head_size + 15) / 16 * 16;
  const size_t group_bytes = 16 * padded * BytesOf(g.dtype);
  const size_t step_bytes = 16 * kDims * BytesOf(g.dtype);
  __builtin_memset(box, 0, padded * 2 * sizeof(uint16_t));
  Vec not_finite = Zero();
  float magnitude = 0.0f;
  for (int dim = 0; dim < g.head_size; dim += kDims) {
    Extremes e[kDims];
    for (Extremes& x : e) x = {Set(kMinusInfinity), Set(kMinusInfinity)};
    for (int token = 0; token < num_tokens; token += 16) {
      const char* p = k + token / 16 * group_bytes + dim / kDims * step_bytes;
      Vec x[kDims];
      if constexpr (kPairs) {
        LoadBF16Pairs(p, x[0], x[1]);
      } else {
        x[0] = Mul(LoadElements<kElements>(p), Set(UnitOf(g.dtype)));
      }
      for (int i = 0; i < kDims; ++i) Include(e[i], x[i], AtMost(16, num_tokens - token), not_finite);
    }
    for (int i = 0; i < kDims; ++i) {
      const float larger = StoreBounds(e[i], box + 2 * (dim + i));
      magnitude = magnitude > larger ? magnitude : larger;
    }
  }
  if (HorizontalSum(not_finite) == 0.0f && magnitude < -kMinusInfinity) return magnitude;
  __builtin_memset(box, 0, padded * 2 * sizeof(uint16_t));
  return -kMinusInfinity;
}

// Centroid of one KV head's V. Returns the radius.
template <Elements kElements>
float BuildCentroid(const char* v, const PageGeometry& g, int num_tokens, float* centroid) {
  const int vecs = (g.head_size + 15) / 16;
  const int64_t token_bytes = 16 * static_cast<int64_t>(BytesOf(g.dtype));
  const int64_t vec_bytes = g.page_tokens * token_bytes;
  // Padded dims of V may hold anything.
  const auto load = [&](int t, int j) __attribute__((always_inline)) {
    const Vec x = Mul(LoadValues<kElements, Extent::kFull>(v + j * vec_bytes, token_bytes, t), Set(UnitOf(g.dtype)));
    return 16 * (j + 1) <= g.head_size ? x : KeepLanes(x, 0, g.head_size - 16 * j, 0.0f);
  };
  const Vec share = Set(1.0f / static_cast<float>(num_tokens));
  for (int j = 0; j < vecs; ++j) {
    Vec sum = Zero();
    for (int t = 0; t < num_tokens; ++t) sum = Fma(load(t, j), share, sum);
    Store(centroid + 16 * j, sum);
  }
  float largest = 0.0f;
  bool finite = true;
  for (int t = 0; t < num_tokens; ++t) {
    Vec sum = Zero();
    for (int j = 0; j < vecs; ++j) {
      const Vec distance = Sub(load(t, j), Load(centroid + 16 * j));
      sum = Fma(distance, distance, sum);
    }
    const float square = HorizontalSum(sum);
    finite &= square < -kMinusInfinity;
    largest = largest > square ? largest : square;
  }
  if (!finite) {
    for (int j = 0; j < vecs; ++j) Store(centroid + 16 * j, Zero());
    return -kMinusInfinity;
  }
  // The difference and the square of each term round once, the sum at most head_size times, the root and this product
  // once each: relative errors of at most half of the first, as the root halves them. Squares below 2^-126 may vanish:
  // head_size of them are a distance of at most 2^-63 * sqrt(512).
  return __builtin_sqrtf(largest) * (1.0f + (static_cast<float>(g.head_size) + 8.0f) * kUnitRoundoff) + 0x1p-58f;
}

template <Elements kElements>
void BuildDigestOf(const PageGeometry& g, uint64_t k_page, uint64_t v_page, int num_tokens, char* digest) {
  const DigestLayout layout = DigestLayoutOf(g.kv_heads, g.head_size);
  const size_t head_bytes = static_cast<size_t>(g.page_tokens) * layout.centroid_floats * BytesOf(g.dtype);
  for (int head = 0; head < g.kv_heads; ++head) {
    const char* k = reinterpret_cast<const char*>(k_page) + head * head_bytes;
    const char* v = reinterpret_cast<const char*>(v_page) + head * head_bytes;
    reinterpret_cast<float*>(digest + layout.magnitude)[head] = BuildBox<kElements>(
        k, g, num_tokens, reinterpret_cast<uint16_t*>(digest + layout.box + head * layout.box_bytes));
    reinterpret_cast<float*>(digest + layout.radius)[head] = BuildCentroid<kElements>(
        v, g, num_tokens, reinterpret_cast<float*>(digest + layout.centroid) + head * layout.centroid_floats);
  }
}

void BuildDigest(const PageGeometry& geometry, uint64_t k_page, uint64_t v_page, int num_tokens, void* digest) {
  char* out = static_cast<char*>(digest);
  switch (geometry.dtype) {
    case DType::kFloat32:
      return BuildDigestOf<Elements::kF32>(geometry, k_page, v_page, num_tokens, out);
    case DType::kFloat16:
      return BuildDigestOf<Elements::kF16>(geometry, k_page, v_page, num_tokens, out);
    case DType::kBFloat16:
      return BuildDigestOf<Elements::kBF16Pairs>(geometry, k_page, v_page, num_tokens, out);
    case DType::kFloat8E4M3:
      return BuildDigestOf<Elements::kF8E4M3>(geometry, k_page, v_page, num_tokens, out);
    case DType::kFloat8E5M2:
      return BuildDigestOf<Elements::kF8E5M2>(geometry, k_page, v_page, num_tokens, out);
  }
}

// Up to 16 pages that some row of the tile sees.
struct Boxes {
  int count;
  int page[16];            // in the call
  const char* digest[16];  // beyond count that of the last one
};

// out[row][16]: sum over dims of max(q * least K, q * largest K), which is q- * least + q+ * largest, for the boxes at
// `box`; those at `next` are fetched. q is [vec][row][q-, q+][16], for PairDot [vec][row][16] pairs (q-, q+) of
// bfloat16.
template <bool kPairDot, int kRows>
void BoxProducts(const char* const* box, const char* const* next, int count, int vecs, const float* q, float* out) {
  constexpr int kPages = AtMost(16, kAccumulatorVecs / kRows);
  static_assert(kPages * kRows == kAccumulatorVecs && 16 % kPages == 0, "all sums are reduced at once");
  for (int first = 0; first < count; first += kPages) {
    Vec acc[kAccumulatorVecs];
    HG_UNROLL
    for (int a = 0; a < kAccumulatorVecs; ++a) acc[a] = Zero();
    const float* qj = q;
    for (int j = 0; j < vecs; ++j, qj += (kPairDot ? 16 : 32) * kRows) {
      HG_UNROLL
      for (int p = 0; p < kPages; ++p) {
        Prefetch(next[first + p] + j * kLineBytes);
        if constexpr (kPairDot) {
          const Vec pairs = Load(reinterpret_cast<const float*>(box[first + p] + j * kLineBytes));
          HG_UNROLL
          for (int r = 0; r < kRows; ++r) {
            acc[r * kPages + p] = PairDot(pairs, Load(qj + 16 * r), acc[r * kPages + p]);
          }
        } else {
          Vec low, high;
          LoadBF16Pairs(box[first + p] + j * kLineBytes, low, high);
          HG_UNROLL
          for (int r = 0; r < kRows; ++r) {
            Vec& sum = acc[r * kPages + p];
            sum = Fma(high, Load(qj + 32 * r + 16), Fma(low, Load(qj + 32 * r), sum));
          }
        }
      }
    }
    float sums[kAccumulatorVecs];
    StoreSums(sums, acc);
    HG_UNROLL
    for (int r = 0; r < kRows; ++r) __builtin_memcpy(out + 16 * r + first, sums + r * kPages, kPages * sizeof(float));
  }
}

using BoxFn = void (*)(const char* const*, const char* const*, int, int, const float*, float*);

template <bool kPairDot>
BoxFn BoxProductsOf(int rows) {
  if constexpr (kRowBlock > 4) {
    if (rows > 4) return BoxProducts<kPairDot, 8>;
  }
  if constexpr (kRowBlock > 2) {
    if (rows > 2) return BoxProducts<kPairDot, 4>;
  }
  return rows > 1 ? BoxProducts<kPairDot, 2> : BoxProducts<kPairDot, 1>;
}

// The part of a page that a row sees, as distances from the query.
struct SeenPart {
  bool any;
  float first;
  float last;
};

SeenPart PartOf(const QueryTile& tile, int token, const KvPage& page) {
  const int32_t end = page.first_position + page.num_tokens;
  const int32_t first = tile.kv_begin[token] > page.first_position ? tile.kv_begin[token] : page.first_position;
  const int32_t last = (tile.kv_end[token] < end ? tile.kv_end[token] : end) - 1;
  if (first > last) return {false, 0.0f, 0.0f};
  if (tile.alibi_slopes == nullptr) return {true, 0.0f, 0.0f};
  const int32_t query = tile.query_position[token];
  return {true, static_cast<float>(first - query), static_cast<float>(last - query)};
}

// Takes the next pages that some row sees.
void NextBoxes(const QueryTile& tile, const AttendArgs& args, int* page, Boxes& boxes) {
  boxes.count = 0;
  for (; *page < args.num_pages && boxes.count < 16; ++*page) {
    bool seen = false;
    for (int token = 0; token < tile.num_tokens && !seen; ++token) seen = PartOf(tile, token, args.pages[*page]).any;
    if (!seen) continue;
    const char* digest = reinterpret_cast<const char*>(args.k_base + args.pages[*page].k);
    Prefetch(digest);  // the magnitudes
    boxes.page[boxes.count] = *page;
    boxes.digest[boxes.count++] = digest;
  }
  for (int i = boxes.count; i > 0 && i < 16; ++i) boxes.digest[i] = boxes.digest[boxes.count - 1];
}

// Queries as BoxProducts reads them, times the sign of the scale, in blocks of rows filled up with zeros. reach[row]:
// sum of |q|. pairs: as PairDot reads them.
void PackSignedQueries(const QueryTile& tile, bool pairs, float* q, float* reach) {
  const int rows = tile.num_tokens * tile.group;
  const int vecs = (tile.head_size + 15) / 16;
  for (int first = 0; first < rows; first += kRowBlock) {
    const int count = AtMost(kRowBlock, rows - first);
    const int block = 1 << BlockSizeIndex(count);
    float* block_q = q + static_cast<size_t>(first) * 32 * vecs;
    for (int r = 0; r < block; ++r) {
      const int token = (first + r) / tile.group;
      const int head = (first + r) % tile.group;
      const char* from = static_cast<const char*>(tile.q) + (token * tile.token_stride + head * tile.head_stride) *
                                                                static_cast<int64_t>(BytesOf(tile.dtype));
      Vec sum = Zero();
      for (int j = 0; j < vecs; ++j) {
        Vec x = r < count ? LoadRow(from, tile.dtype, 16 * j, tile.head_size) : Zero();
        if (tile.scale < 0.0f) x = Sub(Zero(), x);
        sum = Add(sum, Abs(x));
        const Vec negative = Sub(Zero(), Max(Sub(Zero(), x), Zero()));
        const Vec positive = Max(x, Zero());
        if (!pairs) {
          Store(block_q + 32 * (j * block + r), negative);
          Store(block_q + 32 * (j * block + r) + 16, positive);
          continue;
        }
        uint32_t low[16], high[16];
        __builtin_memcpy(low, &negative, sizeof(low));
        __builtin_memcpy(high, &positive, sizeof(high));
        for (int i = 0; i < 16; ++i) high[i] |= low[i] >> 16;  // the lower halves are zeros
        __builtin_memcpy(block_q + 16 * (j * block + r), high, sizeof(high));
      }
      if (r < count) reach[first + r] = HorizontalSum(sum);
    }
  }
}

// Bounds of one row over 16 pages from their products and magnitudes.
//
// With u = 2^-24, S = reach * magnitude and D dims: a product here is off by at most (D / 8 + 7) u S, a kernel's q.K by
// at most (D + 2) u S, and scale, soft cap and ALiBi round a few times more: together below (4 D + 32) u S. Subnormal
// elements and sums may count as zeros (PairDot): at most D 2^-126 (1 + reach + magnitude), below 2^-116 (...). The
// last term is for a product with the scale that is subnormal. As long as S is below 2^126 no sum overflows; otherwise,
// and for NaN, nothing is known.
Vec BoundsOf(const QueryTile& tile, int row, const SeenPart* parts, Vec products, float reach, Vec magnitudes) {
  const float relative = (4.0f * static_cast<float>(tile.head_size) + 32.0f) * kUnitRoundoff;
  const Vec scale = Set(__builtin_fabsf(tile.scale));
  const Vec size = Mul(Set(reach), magnitudes);
  const Vec absolute = Mul(Set(0x1p-116f), Add(Set(1.0f + reach), magnitudes));
  Vec x = Fma(Add(products, Fma(Set(relative), size, absolute)), scale, Set(0x1p-120f));
  if (tile.soft_cap > 0.0f) {
    // Tanh, here and in a kernel, is off by 3 u; its argument and the product round as well.
    x = Mul(Add(Tanh(Mul(x, Set(1.0f / tile.soft_cap))), Set(24.0f * kUnitRoundoff)), Set(tile.soft_cap));
  }
  if (tile.alibi_slopes != nullptr) {
    float first[16] = {}, last[16] = {};
    for (int i = 0; i < 16; ++i) {
      first[i] = parts[i].first;
      last[i] = parts[i].last;
    }
    const Vec slope = Set(tile.alibi_slopes[row % tile.group]);
    const Vec at_first = Mul(slope, Load(first));
    const Vec at_last = Mul(slope, Load(last));
    x = Add(x, Fma(Set(8.0f * kUnitRoundoff), Max(Abs(at_first), Abs(at_last)), Max(at_first, at_last)));
  }
  constexpr float kLargest = __FLT_MAX__;
  const Vec unknown = ZeroWhereBelow(Set(-kMinusInfinity), Max(size, Mul(size, scale)), 0x1p126f);
  return Max(x, Sub(unknown, Set(kLargest)));  // its second argument where x is NaN
}

void BoundLogits(const QueryTile& tile, const AttendArgs& args, float* bounds, int64_t row_stride, void* scratch) {
  const int rows = tile.num_tokens * tile.group;
  const int vecs = (tile.head_size + 15) / 16;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(scratch) + kScratchAlignment - 1;
  float* const q = reinterpret_cast<float*>(begin / kScratchAlignment * kScratchAlignment);
  float reach[kMaxTileRows];
  const bool pairs = kHasPairDot && tile.dtype == DType::kBFloat16;
  PackSignedQueries(tile, pairs, q, reach);
  for (int row = 0; row < rows; ++row) {
    for (int page = 0; page < args.num_pages; ++page) bounds[row * row_stride + page] = kMinusInfinity;
  }

  const DigestLayout layout = DigestLayoutOf(args.geometry.kv_heads, args.geometry.head_size);
  const auto box_of = [&](int head) { return layout.box + head * layout.box_bytes; };
  Boxes batches[2];
  int page = 0;
  NextBoxes(tile, args, &page, batches[0]);
  const Boxes start = batches[0];
  for (int i = 0; batches[i % 2].count > 0; ++i) {
    const Boxes& boxes = batches[i % 2];
    Boxes& coming = batches[(i + 1) % 2];
    NextBoxes(tile, args, &page, coming);
    // Behind the last boxes come the next head's, or nothing new.
    const Boxes& fetched = coming.count > 0 ? coming : start;
    const int fetched_head = coming.count > 0 || args.next_kv_head < 0 ? args.kv_head : args.next_kv_head;
    const char* box[16];
    const char* next[16];
    float magnitudes[16];
    for (int p = 0; p < 16; ++p) {
      box[p] = boxes.digest[p] + box_of(args.kv_head);
      next[p] = fetched.digest[p] + box_of(fetched_head);
      magnitudes[p] = reinterpret_cast<const float*>(boxes.digest[p] + layout.magnitude)[args.kv_head];
    }
    int token = -1;
    SeenPart parts[16] = {};
    bool in_a_row = false;  // 16 neighbouring pages, all of which the token sees
    for (int first = 0; first < rows; first += kRowBlock) {
      const int count = AtMost(kRowBlock, rows - first);
      float products[kRowBlock * 16];
      const BoxFn box_products = pairs ? BoxProductsOf<kHasPairDot>(count) : BoxProductsOf<false>(count);
      box_products(box, next, boxes.count, vecs, q + static_cast<size_t>(first) * 32 * vecs, products);
      for (int r = 0; r < count; ++r) {
        const int row = first + r;
        if (row / tile.group != token) {
          token = row / tile.group;
          in_a_row = boxes.count == 16 && boxes.page[15] == boxes.page[0] + 15;
          for (int p = 0; p < boxes.count; ++p) {
            parts[p] = PartOf(tile, token, args.pages[boxes.page[p]]);
            in_a_row &= parts[p].any;
          }
        }
        const Vec x = BoundsOf(tile, row, parts, Load(products + 16 * r), reach[row], Load(magnitudes));
        float* out = bounds + row * row_stride;
        if (in_a_row) {
          Store(out + boxes.page[0], x);
          continue;
        }
        float bound[16];
        Store(bound, x);
        for (int p = 0; p < boxes.count; ++p) {
          if (parts[p].any) out[boxes.page[p]] = bound[p];
        }
      }
    }
  }
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_DIGEST_INL_H_
