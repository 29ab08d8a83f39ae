// Sixteen floats in one AVX-512 register. See vec_portable.h for what each function means.
#ifndef KERNELS_CPU_VEC_AVX512_H_
#define KERNELS_CPU_VEC_AVX512_H_

#include <immintrin.h>

#include <cstdint>

#define HG_INLINE static inline __attribute__((always_inline))

namespace hybridgen {
namespace {

using Vec = __m512;

constexpr int kRowBlock = 8;          // most query rows that share a load
constexpr int kAccumulatorVecs = 16;  // of the 32 registers; the rest hold K or V, broadcasts and masks
#ifdef __AVX512BF16__
constexpr bool kHasPairDot = true;
#else
constexpr bool kHasPairDot = false;
#endif

HG_INLINE Vec Zero() { return _mm512_setzero_ps(); }
HG_INLINE Vec Set(float x) { return _mm512_set1_ps(x); }
HG_INLINE Vec Load(const float* p) { return _mm512_loadu_ps(p); }
HG_INLINE void Store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
HG_INLINE void StoreStream(float* p, Vec x) { _mm512_stream_ps(p, x); }
HG_INLINE void StreamFence() { _mm_sfence(); }
HG_INLINE Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
HG_INLINE Vec Sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
HG_INLINE Vec Mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
HG_INLINE Vec Div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
HG_INLINE Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
HG_INLINE Vec PairDot(Vec a, Vec b, Vec c) {
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
#else
  return c;
#endif
}
HG_INLINE Vec Max(Vec a, Vec b) { return _mm512_max_ps(a, b); }

HG_INLINE Vec Round(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

HG_INLINE Vec ScaleByPowerOfTwo(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }

HG_INLINE Vec ZeroWhereBelow(Vec x, Vec test, float limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(test, Set(limit), _CMP_NLT_UQ), x);
}

HG_INLINE Vec KeepLanes(Vec x, int lo, int hi, float other) {
  const __mmask16 mask = static_cast<__mmask16>(((1u << hi) - 1u) & ~((1u << lo) - 1u));
  return _mm512_mask_mov_ps(Set(other), mask, x);
}

HG_INLINE Vec CopySign(Vec magnitude, Vec sign) {
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(magnitude), _mm512_castps_si512(sign),
                                                       _mm512_set1_epi32(INT32_MIN), 0xd8));
}

HG_INLINE Vec Abs(Vec x) { return _mm512_abs_ps(x); }

HG_INLINE float HorizontalMax(Vec x) { return _mm512_reduce_max_ps(x); }
HG_INLINE float HorizontalSum(Vec x) { return _mm512_reduce_add_ps(x); }

HG_INLINE Vec LoadF16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
HG_INLINE Vec LoadBF16(const void* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
HG_INLINE Vec LoadHalf(const float* p) { return _mm512_zextps256_ps512(_mm256_loadu_ps(p)); }
HG_INLINE Vec LoadHalfF16(const void* p) {
  return _mm512_cvtph_ps(_mm256_zextsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
HG_INLINE Vec LoadHalfBF16(const void* p) {
  const __m128i bits = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_zextsi128_si256(bits)), 16));
}
// e4m3 as a float16 of 2^-8 times its value: the sign is extended over bits 15 and 14, exponent and mantissa come to
// theirs, and bit 14 is then cleared, or set in NaN, whose seven ones carry into it. e5m2 is a float16's upper half.
HG_INLINE __m512 WidenE4M3(__m128i codes) {
  const __m256i bits = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
  const __m256i carried = _mm256_add_epi16(bits, _mm256_set1_epi16(0x80));
  return _mm512_cvtph_ps(_mm256_ternarylogic_epi32(bits, carried, _mm256_set1_epi16(0x4000), 0x78));  // a ^ (b & c)
}
HG_INLINE __m512 WidenE5M2(__m128i codes) { return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8)); }
HG_INLINE Vec LoadE4M3(const void* p) { return WidenE4M3(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
HG_INLINE Vec LoadE5M2(const void* p) { return WidenE5M2(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
HG_INLINE Vec LoadHalfE4M3(const void* p) { return WidenE4M3(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
HG_INLINE Vec LoadHalfE5M2(const void* p) { return WidenE5M2(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
HG_INLINE void LoadBF16Pairs(const void* p, Vec& even, Vec& odd) {
  __m512i pairs = _mm512_loadu_si512(p);
  asm("" : "+v"(pairs));  // loaded once: the compiler would fold the load into both instructions, and loads are scarcer
  even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
}

HG_INLINE void StoreHalf(float* p, Vec x) { _mm256_storeu_ps(p, _mm512_castps512_ps256(x)); }
HG_INLINE __m256i NarrowF16(Vec x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
HG_INLINE __m256i NarrowBF16(Vec x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
HG_INLINE void StoreF16(void* p, Vec x) { _mm256_storeu_si256(static_cast<__m256i*>(p), NarrowF16(x)); }
HG_INLINE void StoreBF16(void* p, Vec x) { _mm256_storeu_si256(static_cast<__m256i*>(p), NarrowBF16(x)); }
HG_INLINE void StoreHalfF16(void* p, Vec x) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(NarrowF16(x)));
}
HG_INLINE void StoreHalfBF16(void* p, Vec x) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(NarrowBF16(x)));
}

// Four rounds that halve the number of partial sums: 128-bit quarters first, lanes inside the quarters after them.
HG_INLINE void StoreSums(float* p, const Vec (&x)[kAccumulatorVecs]) {
  Vec s[4];  // quarter q of s[i]: four partial sums of x[4 * q + i]
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Vec lower = Add(_mm512_shuffle_f32x4(x[i], x[4 + i], 0x44), _mm512_shuffle_f32x4(x[i], x[4 + i], 0xee));
    const Vec upper =
        Add(_mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0x44), _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0xee));
    s[i] = Add(_mm512_shuffle_f32x4(lower, upper, 0x88), _mm512_shuffle_f32x4(lower, upper, 0xdd));
  }
  const Vec s01 = Add(_mm512_unpacklo_ps(s[0], s[1]), _mm512_unpackhi_ps(s[0], s[1]));
  const Vec s23 = Add(_mm512_unpacklo_ps(s[2], s[3]), _mm512_unpackhi_ps(s[2], s[3]));
  Store(p, Add(_mm512_shuffle_ps(s01, s23, 0x44), _mm512_shuffle_ps(s01, s23, 0xee)));
}

// Rows i and i + 1 interleaved, then pairs of pairs, then 128-bit quarters: four rounds of sixteen shuffles.
HG_INLINE void Transpose16(Vec (&r)[16]) {
  Vec t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
  }
  // Quarter q of r[4 * a + b] now holds column 4 * q + b of rows 4 * a .. 4 * a + 3.
#pragma GCC unroll 4
  for (int b = 0; b < 4; ++b) {
    const Vec lo01 = _mm512_shuffle_f32x4(r[b], r[4 + b], 0x88);
    const Vec hi01 = _mm512_shuffle_f32x4(r[b], r[4 + b], 0xdd);
    const Vec lo23 = _mm512_shuffle_f32x4(r[8 + b], r[12 + b], 0x88);
    const Vec hi23 = _mm512_shuffle_f32x4(r[8 + b], r[12 + b], 0xdd);
    t[b] = _mm512_shuffle_f32x4(lo01, lo23, 0x88);
    t[4 + b] = _mm512_shuffle_f32x4(hi01, hi23, 0x88);
    t[8 + b] = _mm512_shuffle_f32x4(lo01, lo23, 0xdd);
    t[12 + b] = _mm512_shuffle_f32x4(hi01, hi23, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

using Ints = __m512i;

HG_INLINE Ints ZeroInts() { return _mm512_setzero_si512(); }
HG_INLINE Ints SetPair(const float* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return _mm512_set1_epi32(pair);
}
HG_INLINE void LoadQuads(const char* p, Ints& even, Ints& odd) {
  const __m512i bytes = _mm512_loadu_si512(p);
  even = _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8);
  odd = _mm512_srai_epi16(bytes, 8);
}
HG_INLINE Ints AddInts(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
HG_INLINE Ints AddPairs(Ints a, Ints b, Ints c) {
#ifdef __AVX512VNNI__
  return _mm512_dpwssd_epi32(c, a, b);
#else
  return AddInts(_mm512_madd_epi16(a, b), c);
#endif
}
HG_INLINE Vec ToFloat(Ints x) { return _mm512_cvtepi32_ps(x); }
HG_INLINE void StorePairs(float* p, Vec x) {
  const __m512i n = _mm512_cvtps_epi32(x);
  const __m512i upper = _mm512_slli_epi32(_mm512_shuffle_epi32(n, _MM_PERM_DCDC), 16);
  const __m512i pairs = _mm512_mask_blend_epi16(0x55555555u, upper, n);  // in the lower half of each four lanes
  const __m512i packed = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6), pairs);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(packed));
}
HG_INLINE Vec LoadByte(const char* p, int index) {
  const __m512i up = _mm512_sll_epi32(_mm512_loadu_si512(p), _mm_cvtsi32_si128(24 - 8 * index));
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(up, 24));
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_VEC_AVX512_H_
