// Four elements at a time in the compiler's vectors, which every 64-bit CPU has: one copy of the code serves all ISA
// levels.
#include "kernels/float8.h"

#include <cstring>

namespace hybridgen {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));
typedef int32_t Signed __attribute__((vector_size(16)));  // SSE2 compares signed integers only; magnitudes are both

template <typename T>
Bits LoadBits(const void* p) {
  T elements[4];
  std::memcpy(elements, p, sizeof(elements));
  return Bits{elements[0], elements[1], elements[2], elements[3]};
}

// The conversions of dtype.h without branches.
Floats Load(DType dtype, const char* p) {
  if (dtype == DType::kFloat32) return reinterpret_cast<Floats>(LoadBits<uint32_t>(p));
  const Bits bits = LoadBits<uint16_t>(p);
  if (dtype == DType::kBFloat16) return reinterpret_cast<Floats>(bits << 16);
  const Bits magnitude = (bits & 0x7fffu) << 13;
  const Bits finite = reinterpret_cast<Bits>(reinterpret_cast<Floats>(magnitude) * 0x1p112f);
  const Bits wide = reinterpret_cast<Signed>(magnitude) >= 0x0f800000 ? magnitude | 0x7f800000u : finite;
  return reinterpret_cast<Floats>(wide | (bits & 0x8000u) << 16);
}

template <int kMantissaBits, int kBias, uint32_t kLargest>
Bits Narrow(Floats x) {
  constexpr int kShift = 23 - kMantissaBits;
  constexpr uint32_t kExponents = static_cast<uint32_t>(127 - kBias) << 23;
  constexpr uint32_t kRounder = static_cast<uint32_t>(127 + 24 - kBias - kMantissaBits) << 23;
  constexpr int32_t kLimit = (kLargest << kShift) + kExponents;
  const Bits bits = reinterpret_cast<Bits>(x);
  const Signed magnitude = reinterpret_cast<Signed>(bits & 0x7fffffffu);
  const Signed limited = magnitude < kLimit ? magnitude : Signed{kLimit, kLimit, kLimit, kLimit};
  const Bits m = reinterpret_cast<Bits>(limited);
  const Bits normal = (m + ((1u << (kShift - 1)) - 1u - kExponents) + ((m >> kShift) & 1u)) >> kShift;
  const Bits rounder = {kRounder, kRounder, kRounder, kRounder};
  const Bits subnormal =
      reinterpret_cast<Bits>(reinterpret_cast<Floats>(m) + reinterpret_cast<Floats>(rounder)) - kRounder;
  const Bits rounded = limited < static_cast<int32_t>(kExponents + (1u << 23)) ? subnormal : normal;
  const Bits nan = {0x7f, 0x7f, 0x7f, 0x7f};
  return magnitude > 0x7f800000 ? nan : rounded | ((bits >> 24) & 0x80u);
}

template <int kMantissaBits, int kBias, uint32_t kLargest>
void NarrowRow(DType from, const char* source, int count, float scale, uint8_t* out) {
  const int64_t step = 4 * static_cast<int64_t>(DTypeSize(from));
  for (int i = 0; i < count; i += 4, source += step) {
    const Bits codes = Narrow<kMantissaBits, kBias, kLargest>(Load(from, source) / scale);
    for (int j = 0; j < 4; ++j) out[i + j] = static_cast<uint8_t>(codes[j]);
  }
}

}  // namespace

void NarrowToFloat8(DType from, const void* source, int64_t offset, int count, float scale, DType to, uint8_t* out) {
  const char* row = static_cast<const char*>(source) + offset * static_cast<int64_t>(DTypeSize(from));
  to == DType::kFloat8E4M3 ? NarrowRow<3, 7, 0x7e>(from, row, count, scale, out)
                           : NarrowRow<2, 15, 0x7b>(from, row, count, scale, out);
}

}  // namespace hybridgen
