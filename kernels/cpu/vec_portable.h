// Sixteen floats in plain C++ on the compiler's four-float vectors, which every 64-bit CPU has. This header also says
// what each function of the three vec_*.h means; they differ only in how.
#ifndef KERNELS_CPU_VEC_PORTABLE_H_
#define KERNELS_CPU_VEC_PORTABLE_H_

#include <cstdint>

#include "kernels/dtype.h"

#define HG_INLINE static inline __attribute__((always_inline))

namespace hybridgen {
namespace {

struct Vec {
  typedef float Quad __attribute__((vector_size(16)));
  Quad q[4];
};

constexpr int kRowBlock = 2;         // most query rows that share a load
constexpr bool kHasPairDot = false;  // whether PairDot computes anything
constexpr int kAccumulatorVecs = 2;  // eight of the 16 registers of baseline x86-64

template <typename F>
HG_INLINE Vec PerQuad(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}

HG_INLINE Vec Set(float x) {
  return PerQuad([&](int) __attribute__((always_inline)) { return Vec::Quad{x, x, x, x}; });
}
HG_INLINE Vec Zero() { return Set(0.0f); }
// Any alignment.
HG_INLINE Vec Load(const float* p) {
  Vec x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}
HG_INLINE void Store(float* p, Vec x) { __builtin_memcpy(p, &x, sizeof(x)); }
// Around the caches where the ISA can; p is aligned to 64. StreamFence orders such stores before every later store.
HG_INLINE void StoreStream(float* p, Vec x) { Store(p, x); }
HG_INLINE void StreamFence() {}
HG_INLINE Vec Add(const Vec& a, const Vec& b) {
  return PerQuad([&](int i) __attribute__((always_inline)) { return a.q[i] + b.q[i]; });
}
HG_INLINE Vec Sub(const Vec& a, const Vec& b) {
  return PerQuad([&](int i) __attribute__((always_inline)) { return a.q[i] - b.q[i]; });
}
HG_INLINE Vec Mul(const Vec& a, const Vec& b) {
  return PerQuad([&](int i) __attribute__((always_inline)) { return a.q[i] * b.q[i]; });
}
HG_INLINE Vec Div(const Vec& a, const Vec& b) {
  return PerQuad([&](int i) __attribute__((always_inline)) { return a.q[i] / b.q[i]; });
}
// a * b + c.
HG_INLINE Vec Fma(const Vec& a, const Vec& b, const Vec& c) {
  return PerQuad([&](int i) __attribute__((always_inline)) { return a.q[i] * b.q[i] + c.q[i]; });
}
// c plus the products of the pairs of bfloat16 that the lanes of a and b hold. Products are exact, sums are rounded as
// float32 once per element; bfloat16 that are subnormal count as 0.
HG_INLINE Vec PairDot(const Vec&, const Vec&, const Vec& c) { return c; }
// b where either is NaN.
HG_INLINE Vec Max(const Vec& a, const Vec& b) {
  return PerQuad([&](int i) __attribute__((always_inline)) { return a.q[i] > b.q[i] ? a.q[i] : b.q[i]; });
}

// To the nearest integer, for |x| < 2^22: adding and taking away 1.5 * 2^23 leaves no fraction bits.
HG_INLINE Vec Round(const Vec& x) {
  return PerQuad([&](int i) __attribute__((always_inline)) { return (x.q[i] + 0x1.8p23f) - 0x1.8p23f; });
}

// x * 2^n for integral n in [-126, 127]; NaN where x is NaN.
HG_INLINE Vec ScaleByPowerOfTwo(const Vec& x, const Vec& n) {
  typedef uint32_t BitsQuad __attribute__((vector_size(16)));
  return PerQuad([&](int i) __attribute__((always_inline)) {
    // The low bits of n + 1.5 * 2^23 are n. Multiplied, not added to x's exponent: garbage bits must not heal a NaN.
    const BitsQuad power = (reinterpret_cast<BitsQuad>(n.q[i] + 0x1.8p23f) + 127u) << 23;
    return x.q[i] * reinterpret_cast<Vec::Quad>(power);
  });
}

// 0 where test < limit, else x (also where test is NaN).
HG_INLINE Vec ZeroWhereBelow(const Vec& x, const Vec& test, float limit) {
  const Vec bound = Set(limit);
  return PerQuad([&](int i) __attribute__((always_inline)) { return test.q[i] < bound.q[i] ? Vec::Quad{} : x.q[i]; });
}

// x in lanes [lo, hi), `other` elsewhere. 0 <= lo, hi <= 16.
HG_INLINE Vec KeepLanes(const Vec& x, int lo, int hi, float other) {
  float lanes[16];
  Store(lanes, x);
  for (int i = 0; i < 16; ++i) lanes[i] = i >= lo && i < hi ? lanes[i] : other;
  return Load(lanes);
}

HG_INLINE Vec Abs(const Vec& x) {
  return PerQuad([&](int i) __attribute__((always_inline)) { return x.q[i] < Vec::Quad{} ? -x.q[i] : x.q[i]; });
}
// |magnitude| with the sign of `sign`; magnitude >= 0.
HG_INLINE Vec CopySign(const Vec& magnitude, const Vec& sign) {
  return PerQuad([&](int i) __attribute__((always_inline)) {
    return sign.q[i] < Vec::Quad{} ? -magnitude.q[i] : magnitude.q[i];
  });
}

HG_INLINE float HorizontalMax(const Vec& x) {
  float lanes[16];
  Store(lanes, x);
  float m = lanes[0];
  for (int i = 1; i < 16; ++i) m = m > lanes[i] ? m : lanes[i];
  return m;
}
HG_INLINE float HorizontalSum(const Vec& x) {
  const Vec::Quad s = (x.q[0] + x.q[2]) + (x.q[1] + x.q[3]);
  return (s[0] + s[2]) + (s[1] + s[3]);
}

// p[i] = sum of the lanes of x[i].
HG_INLINE void StoreSums(float* p, const Vec (&x)[kAccumulatorVecs]) {
  for (int i = 0; i < kAccumulatorVecs; ++i) p[i] = HorizontalSum(x[i]);
}

HG_INLINE uint16_t Bits16(const void* p, int i) {
  uint16_t bits;
  __builtin_memcpy(&bits, static_cast<const char*>(p) + 2 * i, sizeof(bits));
  return bits;
}

template <int n, typename F>
HG_INLINE Vec Gather(F f) {
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i] = f(i);
  return Load(lanes);
}

// 16 consecutive elements, widened.
HG_INLINE Vec LoadF16(const void* p) {
  return Gather<16>([&](int i) { return Float16ToFloat(Bits16(p, i)); });
}
HG_INLINE Vec LoadBF16(const void* p) {
  return Gather<16>([&](int i) { return BFloat16ToFloat(Bits16(p, i)); });
}
// 8 consecutive elements, nothing read beyond them; lanes 8-15 are 0.
HG_INLINE Vec LoadHalf(const float* p) {
  Vec x = Zero();
  __builtin_memcpy(&x, p, sizeof(x) / 2);
  return x;
}
HG_INLINE Vec LoadHalfF16(const void* p) {
  return Gather<8>([&](int i) { return Float16ToFloat(Bits16(p, i)); });
}
HG_INLINE Vec LoadHalfBF16(const void* p) {
  return Gather<8>([&](int i) { return BFloat16ToFloat(Bits16(p, i)); });
}
// 16 or 8 consecutive elements of float8, e4m3 in units of 2^8.
HG_INLINE uint8_t Bits8(const void* p, int i) { return static_cast<const uint8_t*>(p)[i]; }
HG_INLINE Vec LoadE4M3(const void* p) {
  return Gather<16>([&](int i) { return Float8E4M3ToFloat(Bits8(p, i)) * 0x1p-8f; });
}
HG_INLINE Vec LoadHalfE4M3(const void* p) {
  return Gather<8>([&](int i) { return Float8E4M3ToFloat(Bits8(p, i)) * 0x1p-8f; });
}
HG_INLINE Vec LoadE5M2(const void* p) {
  return Gather<16>([&](int i) { return Float8E5M2ToFloat(Bits8(p, i)); });
}
HG_INLINE Vec LoadHalfE5M2(const void* p) {
  return Gather<8>([&](int i) { return Float8E5M2ToFloat(Bits8(p, i)); });
}
// 16 consecutive pairs: their first and their second elements.
HG_INLINE void LoadBF16Pairs(const void* p, Vec& even, Vec& odd) {
  even = Gather<16>([&](int i) { return BFloat16ToFloat(Bits16(p, 2 * i)); });
  odd = Gather<16>([&](int i) { return BFloat16ToFloat(Bits16(p, 2 * i + 1)); });
}

template <int n, typename F>
HG_INLINE void StoreNarrow(void* p, const Vec& x, F f) {
  float lanes[16];
  Store(lanes, x);
  uint16_t bits[n];
  for (int i = 0; i < n; ++i) bits[i] = f(lanes[i]);
  __builtin_memcpy(p, bits, sizeof(bits));
}

// All 16 lanes, or the first 8, narrowed to nearest even. Any alignment.
HG_INLINE void StoreF16(void* p, const Vec& x) {
  StoreNarrow<16>(p, x, [](float f) { return FloatToFloat16(f); });
}
HG_INLINE void StoreBF16(void* p, const Vec& x) {
  StoreNarrow<16>(p, x, [](float f) { return FloatToBFloat16(f); });
}
HG_INLINE void StoreHalf(float* p, const Vec& x) { __builtin_memcpy(p, &x, sizeof(x) / 2); }
HG_INLINE void StoreHalfF16(void* p, const Vec& x) {
  StoreNarrow<8>(p, x, [](float f) { return FloatToFloat16(f); });
}
HG_INLINE void StoreHalfBF16(void* p, const Vec& x) {
  StoreNarrow<8>(p, x, [](float f) { return FloatToBFloat16(f); });
}

// Lane j of row i becomes lane i of row j.
HG_INLINE void Transpose16(Vec (&r)[16]) {
  float rows[16][16];
  float columns[16][16];
  __builtin_memcpy(rows, r, sizeof(rows));
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) columns[j][i] = rows[i][j];
  }
  __builtin_memcpy(r, columns, sizeof(columns));
}

// Sixteen int32, for 8-bit pages. A pair is two int16 in one of them, the first in the lower half.
struct Ints {
  int32_t lane[16];
};

HG_INLINE Ints ZeroInts() { return {}; }
// A pair that was stored as a float's bits, in every lane.
HG_INLINE Ints SetPair(const float* p) {
  Ints x;
  __builtin_memcpy(&x.lane[0], p, sizeof(int32_t));
  for (int i = 1; i < 16; ++i) x.lane[i] = x.lane[0];
  return x;
}
// A line of 16 times four int8: pairs of the elements (0, 2), and of (1, 3).
HG_INLINE void LoadQuads(const char* p, Ints& even, Ints& odd) {
  int8_t bytes[64];
  __builtin_memcpy(bytes, p, sizeof(bytes));
  for (int i = 0; i < 16; ++i) {
    even.lane[i] = (bytes[4 * i] & 0xffff) | bytes[4 * i + 2] * 0x10000;
    odd.lane[i] = (bytes[4 * i + 1] & 0xffff) | bytes[4 * i + 3] * 0x10000;
  }
}
// c plus the products of the pairs of a and b, modulo 2^32 (the bits of queries and weights that nobody meant may add
// up to anything).
HG_INLINE Ints AddPairs(const Ints& a, const Ints& b, const Ints& c) {
  Ints x;
  for (int i = 0; i < 16; ++i) {
    const int32_t lower = static_cast<int16_t>(a.lane[i]) * static_cast<int16_t>(b.lane[i]);
    const int32_t upper = (a.lane[i] >> 16) * (b.lane[i] >> 16);
    x.lane[i] = static_cast<int32_t>(static_cast<uint32_t>(c.lane[i]) + static_cast<uint32_t>(lower) +
                                     static_cast<uint32_t>(upper));
  }
  return x;
}
// Modulo 2^32.
HG_INLINE Ints AddInts(const Ints& a, const Ints& b) {
  Ints x;
  for (int i = 0; i < 16; ++i) {
    x.lane[i] = static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) + static_cast<uint32_t>(b.lane[i]));
  }
  return x;
}
HG_INLINE Vec ToFloat(const Ints& x) {
  return Gather<16>([&](int i) { return static_cast<float>(x.lane[i]); });
}
// x rounded to int16, ties to even, in eight floats' bits: for each four lanes the pairs (0, 2) and (1, 3). |x| <
// 32767.5, or the result is any.
HG_INLINE void StorePairs(float* p, const Vec& x) {
  float lanes[16];
  Store(lanes, x);
  int16_t pairs[16];
  for (int i = 0; i < 16; ++i) {
    int32_t bits;  // whose lower half is the integer
    const float shifted = lanes[i] + 0x1.8p23f;
    __builtin_memcpy(&bits, &shifted, sizeof(bits));
    pairs[i / 4 * 4 + i % 2 * 2 + i / 2 % 2] = static_cast<int16_t>(bits);
  }
  __builtin_memcpy(p, pairs, sizeof(pairs));
}
// Element `index` of each four int8 of a line.
HG_INLINE Vec LoadByte(const char* p, int index) {
  return Gather<16>([&](int i) { return static_cast<float>(static_cast<int8_t>(p[4 * i + index])); });
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_VEC_PORTABLE_H_
