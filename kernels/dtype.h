// Element types of queries and KV pages, and their exact scalar conversions.
#ifndef KERNELS_DTYPE_H_
#define KERNELS_DTYPE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace hybridgen {

// Values are part of the C ABI (hybridgen.h); never renumber.
// The two float8 types are of KV only; queries, outputs and what is written into KV pages have one of the others.
enum class DType : uint8_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat8E4M3 = 3, kFloat8E5M2 = 4 };

constexpr bool IsFloat8(DType dtype) { return dtype == DType::kFloat8E4M3 || dtype == DType::kFloat8E5M2; }

// Bytes of one element.
constexpr size_t DTypeSize(DType dtype) { return dtype == DType::kFloat32 ? 4 : IsFloat8(dtype) ? 1 : 2; }

constexpr const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat8E4M3:
      return "float8_e4m3";
    case DType::kFloat8E5M2:
      return "float8_e5m2";
  }
  return "unknown";
}

// bfloat16 is the upper half of a float32: widening is exact, narrowing rounds to nearest even.
inline float BFloat16ToFloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline uint16_t FloatToBFloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // quiet NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// float16 has 5 exponent and 10 mantissa bits. Its magnitude shifted to float32's mantissa is too small by 2^112, which
// the multiplication repairs for normal and subnormal values alike.
inline float Float16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  uint32_t wide = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  float value;
  if (wide >= 0x0f800000u) {  // infinity or NaN
    wide |= 0x7f800000u;
  } else {
    std::memcpy(&value, &wide, sizeof(value));
    value *= 0x1p112f;
    std::memcpy(&wide, &value, sizeof(value));
  }
  wide |= sign;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline uint16_t FloatToFloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));  // quiet NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);     // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal: the last place of a float32 near 0.5 is 2^-24, so the addition rounds for us.
    float shifted;
    std::memcpy(&shifted, &magnitude, sizeof(shifted));
    shifted += 0.5f;
    std::memcpy(&magnitude, &shifted, sizeof(magnitude));
    return static_cast<uint16_t>(sign | (magnitude - 0x3f000000u));
  }
  magnitude += 0xc8000fffu + ((magnitude >> 13) & 1u);  // exponent less 112, half a last place, ties to even
  return static_cast<uint16_t>(sign | (magnitude >> 13));
}

// float8_e4m3 has 4 exponent bits (bias 7) and 3 mantissa bits, no infinity: the largest value is 448, and 0x7f and
// 0xff are NaN (the "fn" variant). float8_e5m2 is the upper half of a float16: bias 15, largest finite value 57344,
// with infinities and NaN. Widening is exact.
inline float Float8E4M3ToFloat(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  uint32_t wide = static_cast<uint32_t>(bits & 0x7fu) << 20;
  float value;
  if ((bits & 0x7fu) == 0x7fu) {
    wide = 0x7fc00000u;
  } else {
    std::memcpy(&value, &wide, sizeof(value));  // too small by 2^120, as for float16
    value *= 0x1p120f;
    std::memcpy(&wide, &value, sizeof(wide));
  }
  wide |= sign;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline float Float8E5M2ToFloat(uint8_t bits) { return Float16ToFloat(static_cast<uint16_t>(bits << 8)); }

// To nearest even among the finite values: what is larger, infinities included, becomes the largest finite value of its
// sign (saturation, as vLLM's kernels convert KV). Every NaN becomes 0x7f.
template <int kMantissaBits, int kBias, uint32_t kLargest>
inline uint8_t FloatToFloat8(float value) {
  constexpr int kShift = 23 - kMantissaBits;
  constexpr uint32_t kExponents = static_cast<uint32_t>(127 - kBias) << 23;  // between the biases
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = (bits >> 24) & 0x80u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude >= (kLargest << kShift) + kExponents) return static_cast<uint8_t>(sign | kLargest);
  if (magnitude < kExponents + (1u << 23)) {
    // Subnormal, in units of 2^(1 - bias - mantissa bits): the last place of this float32, so the addition rounds.
    constexpr uint32_t kRounder = static_cast<uint32_t>(127 + 24 - kBias - kMantissaBits) << 23;
    float rounder, shifted;
    std::memcpy(&rounder, &kRounder, sizeof(rounder));
    std::memcpy(&shifted, &magnitude, sizeof(shifted));
    shifted += rounder;
    std::memcpy(&magnitude, &shifted, sizeof(magnitude));
    return static_cast<uint8_t>(sign | (magnitude - kRounder));
  }
  magnitude += (1u << (kShift - 1)) - 1u + ((magnitude >> kShift) & 1u) - kExponents;  // half a place, ties to even
  return static_cast<uint8_t>(sign | (magnitude >> kShift));
}

inline uint8_t FloatToFloat8E4M3(float value) { return FloatToFloat8<3, 7, 0x7e>(value); }
inline uint8_t FloatToFloat8E5M2(float value) { return FloatToFloat8<2, 15, 0x7b>(value); }

// Element `index` of an array of `dtype`, at any alignment.
inline float ReadElement(DType dtype, const void* base, int64_t index) {
  const char* p = static_cast<const char*>(base) + index * static_cast<int64_t>(DTypeSize(dtype));
  float value = 0;
  uint16_t bits = 0;
  std::memcpy(dtype == DType::kFloat32 ? static_cast<void*>(&value) : &bits, p, DTypeSize(dtype));
  switch (dtype) {
    case DType::kFloat32:
      return value;
    case DType::kFloat16:
      return Float16ToFloat(bits);
    case DType::kBFloat16:
      return BFloat16ToFloat(bits);
    case DType::kFloat8E4M3:
      return Float8E4M3ToFloat(static_cast<uint8_t>(bits));
    case DType::kFloat8E5M2:
      return Float8E5M2ToFloat(static_cast<uint8_t>(bits));
  }
  return value;
}

// The same place gets `value`, rounded as the conversions above say.
inline void WriteElement(DType dtype, void* base, int64_t index, float value) {
  uint16_t bits = 0;
  switch (dtype) {
    case DType::kFloat32:
      break;
    case DType::kFloat16:
      bits = FloatToFloat16(value);
      break;
    case DType::kBFloat16:
      bits = FloatToBFloat16(value);
      break;
    case DType::kFloat8E4M3:
      bits = FloatToFloat8E4M3(value);
      break;
    case DType::kFloat8E5M2:
      bits = FloatToFloat8E5M2(value);
      break;
  }
  char* p = static_cast<char*>(base) + index * static_cast<int64_t>(DTypeSize(dtype));
  std::memcpy(p, dtype == DType::kFloat32 ? static_cast<const void*>(&value) : &bits, DTypeSize(dtype));
}

}  // namespace hybridgen

#endif  // KERNELS_DTYPE_H_
