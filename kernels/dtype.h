// Element types of queries and KV pages, and their exact scalar conversions.
#ifndef KERNELS_DTYPE_H_
#define KERNELS_DTYPE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace hybridgen {

// Values are part of the C ABI (hybridgen.h); never renumber.
enum class DType : uint8_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// Bytes of one element.
constexpr size_t DTypeSize(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

constexpr const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
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

}  // namespace hybridgen

#endif  // KERNELS_DTYPE_H_
