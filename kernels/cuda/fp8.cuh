// K and V in fp8: to the element type of a product and back, by the instructions of sm_89 and later or, before it and
// in tests on the host, by arithmetic on bits.
#ifndef KERNELS_CUDA_FP8_CUH_
#define KERNELS_CUDA_FP8_CUH_

#include "kernels/cuda/arch.h"

namespace hybridgen::cuda {

template <typename Kv>
constexpr bool kIsFp8 = sizeof(Kv) == 1;

// Two elements in the lower half of `pair` as two of T. Exact: float16 and bfloat16 hold every value of both formats,
// e5m2 being a float16's upper byte.
template <typename T, typename Kv>
HG_DEVICE uint32_t WidenPair(uint32_t pair) {
  uint32_t half2;
  if constexpr (Kv::kDType == DType::kFloat8E5M2) {
    half2 = arch::BytePermute(pair, 0, 0x1404);
  } else if constexpr (arch::kHasFp8Conversions) {
    half2 = arch::WidenE4M3(pair);
  } else {
    // Each byte with its sign extended above it, exponent and mantissa moved to those of a float16, whose bias is 8
    // more. Bit 14, the sign's copy, is then cleared, but set in NaN, whose seven ones carry into it.
    const uint32_t bits = arch::BytePermute(pair, 0, 0x9180) << 7 & 0xff80ff80u;
    half2 = arch::MultiplyHalf2(bits ^ ((bits + 0x00800080u) & 0x40004000u), 0x5c005c00u);  // 2^8
  }
  if constexpr (T::kDType == DType::kFloat16) return half2;
  return arch::Pack2<T>(arch::Low<arch::Float16>(half2), arch::High<arch::Float16>(half2));
}

// One code, by arithmetic on bits; the contract is that of arch::NarrowToFp8.
template <typename Kv>
HG_DEVICE uint32_t NarrowByBits(float x) {
  constexpr bool kE4M3 = Kv::kDType == DType::kFloat8E4M3;
  constexpr int kShift = 23 - (kE4M3 ? 3 : 2);  // between the mantissas
  constexpr int kBias = kE4M3 ? 7 : 15;
  constexpr uint32_t kLargest = kE4M3 ? 0x7e : 0x7b;
  constexpr uint32_t kExponents = static_cast<uint32_t>(127 - kBias) << 23;
  const uint32_t sign = arch::FloatBits(x) >> 24 & 0x80u;
  const uint32_t magnitude = arch::FloatBits(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  uint32_t code;
  if (magnitude < kExponents + (1u << 23)) {
    // Denormal: in a float whose last place is that of the format the addition rounds.
    constexpr uint32_t kRounder = static_cast<uint32_t>(127 + 1 - kBias + kShift) << 23;
    code = arch::FloatBits(arch::FloatOfBits(magnitude) + arch::FloatOfBits(kRounder)) - kRounder;
  } else {
    code = (magnitude - kExponents + (1u << (kShift - 1)) - 1 + (magnitude >> kShift & 1u)) >> kShift;
  }
  return sign | (code < kLargest ? code : kLargest);
}

// Two elements in the lower half of the result; see arch::NarrowToFp8.
template <typename Kv>
HG_DEVICE uint32_t NarrowPair(float low, float high) {
  if constexpr (arch::kHasFp8Conversions) return arch::NarrowToFp8<Kv>(low, high);
  return NarrowByBits<Kv>(low) | NarrowByBits<Kv>(high) << 8;
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_FP8_CUH_
