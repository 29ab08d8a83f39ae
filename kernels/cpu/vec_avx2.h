// Sixteen floats in two AVX2 registers. See vec_portable.h for what each function means.
#ifndef KERNELS_CPU_VEC_AVX2_H_
#define KERNELS_CPU_VEC_AVX2_H_

#include <immintrin.h>

#include <cstdint>

#define HG_INLINE static inline __attribute__((always_inline))

namespace hybridgen {
namespace {

struct Vec {
  __m256 a;  // lanes 0-7
  __m256 b;  // lanes 8-15
};

constexpr int kRowBlock = 4;  // most query rows that share a load
constexpr bool kHasPairDot = false;
constexpr int kAccumulatorVecs = 4;  // eight of the 16 registers; the rest hold K or V and broadcasts

HG_INLINE Vec Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
HG_INLINE Vec Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
HG_INLINE Vec Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
HG_INLINE void Store(float* p, Vec x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
HG_INLINE void StoreStream(float* p, Vec x) {
  _mm256_stream_ps(p, x.a);
  _mm256_stream_ps(p + 8, x.b);
}
HG_INLINE void StreamFence() { _mm_sfence(); }
HG_INLINE Vec Add(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
HG_INLINE Vec Sub(Vec x, Vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
HG_INLINE Vec Mul(Vec x, Vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
HG_INLINE Vec Div(Vec x, Vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
HG_INLINE Vec Fma(Vec x, Vec y, Vec z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
HG_INLINE Vec PairDot(Vec, Vec, Vec z) { return z; }
HG_INLINE Vec Max(Vec x, Vec y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }

HG_INLINE Vec Round(Vec x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, kNearest), _mm256_round_ps(x.b, kNearest)};
}

HG_INLINE __m256 ScaleByPowerOfTwo(__m256 x, __m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
}
HG_INLINE Vec ScaleByPowerOfTwo(Vec x, Vec n) { return {ScaleByPowerOfTwo(x.a, n.a), ScaleByPowerOfTwo(x.b, n.b)}; }

HG_INLINE Vec ZeroWhereBelow(Vec x, Vec test, float limit) {
  const __m256 bound = _mm256_set1_ps(limit);
  return {_mm256_and_ps(x.a, _mm256_cmp_ps(test.a, bound, _CMP_NLT_UQ)),
          _mm256_and_ps(x.b, _mm256_cmp_ps(test.b, bound, _CMP_NLT_UQ))};
}

HG_INLINE __m256 KeepLanes(__m256 x, __m256i lane, int lo, int hi, float other) {
  const __m256i keep = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), lane),
                                           _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), lane));
  return _mm256_blendv_ps(_mm256_set1_ps(other), x, _mm256_castsi256_ps(keep));
}
HG_INLINE Vec KeepLanes(Vec x, int lo, int hi, float other) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {KeepLanes(x.a, lane, lo, hi, other), KeepLanes(x.b, lane, lo - 8, hi - 8, other)};
}

HG_INLINE Vec CopySign(Vec magnitude, Vec sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_andnot_ps(bit, magnitude.a), _mm256_and_ps(bit, sign.a)),
          _mm256_or_ps(_mm256_andnot_ps(bit, magnitude.b), _mm256_and_ps(bit, sign.b))};
}

HG_INLINE Vec Abs(Vec x) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(bit, x.a), _mm256_andnot_ps(bit, x.b)};
}

HG_INLINE float HorizontalMax(Vec x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  m = _mm_max_ss(m, _mm_movehdup_ps(m));
  return _mm_cvtss_f32(m);
}
HG_INLINE float HorizontalSum(Vec x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

HG_INLINE __m256 WidenF16(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
HG_INLINE __m256 WidenBF16(const void* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
HG_INLINE Vec LoadF16(const void* p) { return {WidenF16(p), WidenF16(static_cast<const char*>(p) + 16)}; }
HG_INLINE Vec LoadBF16(const void* p) { return {WidenBF16(p), WidenBF16(static_cast<const char*>(p) + 16)}; }
HG_INLINE Vec LoadHalf(const float* p) { return {_mm256_loadu_ps(p), _mm256_setzero_ps()}; }
HG_INLINE Vec LoadHalfF16(const void* p) { return {WidenF16(p), _mm256_setzero_ps()}; }
HG_INLINE Vec LoadHalfBF16(const void* p) { return {WidenBF16(p), _mm256_setzero_ps()}; }
// As in vec_avx512.h.
HG_INLINE Vec WidenF16Bits(__m256i bits) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1))};
}
HG_INLINE Vec WidenE4M3(__m128i codes) {
  const __m256i bits = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
  const __m256i carried = _mm256_add_epi16(bits, _mm256_set1_epi16(0x80));
  return WidenF16Bits(_mm256_xor_si256(bits, _mm256_and_si256(carried, _mm256_set1_epi16(0x4000))));
}
HG_INLINE Vec WidenE5M2(__m128i codes) { return WidenF16Bits(_mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8)); }
HG_INLINE Vec LoadE4M3(const void* p) { return WidenE4M3(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
HG_INLINE Vec LoadE5M2(const void* p) { return WidenE5M2(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
HG_INLINE Vec LoadHalfE4M3(const void* p) { return WidenE4M3(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
HG_INLINE Vec LoadHalfE5M2(const void* p) { return WidenE5M2(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
HG_INLINE void LoadBF16Pairs(const void* p, Vec& even, Vec& odd) {
  const __m256i lo = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(static_cast<const __m256i*>(p) + 1);
  const __m256i upper = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(lo, upper)), _mm256_castsi256_ps(_mm256_and_si256(hi, upper))};
}

HG_INLINE __m128i NarrowF16(__m256 x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
HG_INLINE __m128i NarrowBF16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan);
  const __m256i upper = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}
HG_INLINE void StoreHalf(float* p, Vec x) { _mm256_storeu_ps(p, x.a); }
HG_INLINE void StoreHalfF16(void* p, Vec x) { _mm_storeu_si128(static_cast<__m128i*>(p), NarrowF16(x.a)); }
HG_INLINE void StoreHalfBF16(void* p, Vec x) { _mm_storeu_si128(static_cast<__m128i*>(p), NarrowBF16(x.a)); }
HG_INLINE void StoreF16(void* p, Vec x) {
  StoreHalfF16(p, x);
  _mm_storeu_si128(static_cast<__m128i*>(p) + 1, NarrowF16(x.b));
}
HG_INLINE void StoreBF16(void* p, Vec x) {
  StoreHalfBF16(p, x);
  _mm_storeu_si128(static_cast<__m128i*>(p) + 1, NarrowBF16(x.b));
}

HG_INLINE void StoreSums(float* p, const Vec (&x)[kAccumulatorVecs]) {
  const __m256 s01 = _mm256_hadd_ps(_mm256_add_ps(x[0].a, x[0].b), _mm256_add_ps(x[1].a, x[1].b));
  const __m256 s23 = _mm256_hadd_ps(_mm256_add_ps(x[2].a, x[2].b), _mm256_add_ps(x[3].a, x[3].b));
  const __m256 s = _mm256_hadd_ps(s01, s23);
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

// Interleave, pair up, then swap 128-bit halves.
HG_INLINE void Transpose8(__m256 (&r)[8]) {
  __m256 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}
HG_INLINE void Transpose16(Vec (&r)[16]) {
  __m256 block[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) block[i] = r[i].a;
  Transpose8(block);
  __m256 lower[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) lower[i] = r[i].b;
  Transpose8(lower);
  __m256 upper[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) upper[i] = r[8 + i].a;
  Transpose8(upper);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = {block[i], upper[i]};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) block[i] = r[8 + i].b;
  Transpose8(block);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[8 + i] = {lower[i], block[i]};
}

struct Ints {
  __m256i a;
  __m256i b;
};

HG_INLINE Ints ZeroInts() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
HG_INLINE Ints SetPair(const float* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return {_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)};
}
HG_INLINE void LoadQuads(const char* p, Ints& even, Ints& odd) {
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + 1);
  even = {_mm256_srai_epi16(_mm256_slli_epi16(lo, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(hi, 8), 8)};
  odd = {_mm256_srai_epi16(lo, 8), _mm256_srai_epi16(hi, 8)};
}
HG_INLINE Ints AddInts(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
HG_INLINE Ints AddPairs(Ints x, Ints y, Ints z) {
  return AddInts({_mm256_madd_epi16(x.a, y.a), _mm256_madd_epi16(x.b, y.b)}, z);
}
HG_INLINE Vec ToFloat(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
HG_INLINE void StorePairs(float* p, __m256 x) {
  const __m256i n = _mm256_cvtps_epi32(x);
  const __m256i upper = _mm256_slli_epi32(_mm256_shuffle_epi32(n, _MM_SHUFFLE(3, 2, 3, 2)), 16);
  const __m256i pairs = _mm256_blend_epi16(upper, n, 0x55);  // in the lower half of each four lanes
  const __m256i packed = _mm256_permute4x64_epi64(pairs, _MM_SHUFFLE(2, 0, 2, 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
HG_INLINE void StorePairs(float* p, Vec x) {
  StorePairs(p, x.a);
  StorePairs(p + 4, x.b);
}
HG_INLINE __m256 LoadByte8(const char* p, int index) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sll_epi32(bytes, _mm_cvtsi32_si128(24 - 8 * index)), 24));
}
HG_INLINE Vec LoadByte(const char* p, int index) { return {LoadByte8(p, index), LoadByte8(p + 32, index)}; }

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_VEC_AVX2_H_
