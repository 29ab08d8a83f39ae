// Tests of the scalar conversions.
#include "kernels/dtype.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

TEST(DTypeTest, EveryBFloat16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float wide = BFloat16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(wide)))) << bits;
    } else {
      EXPECT_EQ(FloatToBFloat16(wide), bits);
    }
  }
}

TEST(DTypeTest, NarrowingRoundsToNearestEven) {
  // 1 + 2^-8 lies half-way between 1 and the next bfloat16, 1 + 2^-7: ties go to the even mantissa.
  EXPECT_EQ(BFloat16ToFloat(FloatToBFloat16(1.0f + 0x1p-8f)), 1.0f);
  EXPECT_EQ(BFloat16ToFloat(FloatToBFloat16(1.0f + 0x1.8p-7f)), 1.0f + 0x1p-6f);
  EXPECT_EQ(BFloat16ToFloat(FloatToBFloat16(1.0f + 0x1.01p-8f)), 1.0f + 0x1p-7f);
  EXPECT_EQ(BFloat16ToFloat(FloatToBFloat16(std::numeric_limits<float>::max())),
            std::numeric_limits<float>::infinity());
}

// Value of float16 bits by the definition of the format.
double Float16ByDefinition(uint16_t bits) {
  const double sign = bits >> 15 != 0 ? -1 : 1;
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  if (exponent == 31) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(DTypeTest, EveryFloat16WidensExactlyAndSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float wide = Float16ToFloat(static_cast<uint16_t>(bits));
    const double expected = Float16ByDefinition(static_cast<uint16_t>(bits));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(wide)) << bits;
      EXPECT_TRUE(std::isnan(Float16ToFloat(FloatToFloat16(wide)))) << bits;
    } else {
      EXPECT_EQ(wide, expected) << bits;
      EXPECT_EQ(FloatToFloat16(wide), bits);
    }
  }
}

TEST(DTypeTest, Float16NarrowingRoundsToNearestEven) {
  // Between every two neighbours: a little below the middle, the middle (to even), a little above. The step above the
  // largest finite value, 65504, rounds to infinity as if 65536 were its neighbour.
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const double lower = Float16ByDefinition(static_cast<uint16_t>(bits));
    const double upper = bits + 1 == 0x7c00 ? 65536.0 : Float16ByDefinition(static_cast<uint16_t>(bits + 1));
    const float middle = static_cast<float>((lower + upper) / 2);
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    EXPECT_EQ(FloatToFloat16(middle), even);
    EXPECT_EQ(FloatToFloat16(std::nextafter(middle, 0.0f)), bits);
    EXPECT_EQ(FloatToFloat16(std::nextafter(middle, 1e6f)), bits + 1);
    EXPECT_EQ(FloatToFloat16(-middle), even | 0x8000);
  }
  EXPECT_EQ(FloatToFloat16(std::numeric_limits<float>::max()), 0x7c00);
  EXPECT_EQ(FloatToFloat16(std::numeric_limits<float>::denorm_min()), 0);
}

struct Float8 {
  DType dtype;
  int mantissa_bits;
  int bias;
  uint32_t largest;  // finite
  float (*widen)(uint8_t);
  uint8_t (*narrow)(float);
};

constexpr Float8 kFloat8s[] = {{DType::kFloat8E4M3, 3, 7, 0x7e, Float8E4M3ToFloat, FloatToFloat8E4M3},
                               {DType::kFloat8E5M2, 2, 15, 0x7b, Float8E5M2ToFloat, FloatToFloat8E5M2}};

// Value of a magnitude's bits by the definition of the format, as if the exponents above the largest one were ordinary.
double Float8ByDefinition(const Float8& f, uint32_t magnitude) {
  const int exponent = static_cast<int>(magnitude >> f.mantissa_bits);
  const int mantissa = static_cast<int>(magnitude & ((1u << f.mantissa_bits) - 1));
  if (exponent == 0) return std::ldexp(mantissa, 1 - f.bias - f.mantissa_bits);
  return std::ldexp((1 << f.mantissa_bits) + mantissa, exponent - f.bias - f.mantissa_bits);
}

TEST(DTypeTest, EveryFloat8WidensExactlyAndSurvivesTheRoundTrip) {
  for (const Float8& f : kFloat8s) {
    SCOPED_TRACE(DTypeName(f.dtype));
    EXPECT_EQ(Float8ByDefinition(f, f.largest), f.dtype == DType::kFloat8E4M3 ? 448 : 57344);
    for (uint32_t code = 0; code <= 0xff; ++code) {
      const float wide = f.widen(static_cast<uint8_t>(code));
      const uint32_t magnitude = code & 0x7f;
      if (magnitude > f.largest) {
        if (f.dtype == DType::kFloat8E5M2 && magnitude == 0x7c) {
          EXPECT_TRUE(std::isinf(wide)) << code;
          EXPECT_EQ(f.narrow(wide), f.largest | (code & 0x80)) << "infinity saturates";
        } else {
          EXPECT_TRUE(std::isnan(wide)) << code;
          EXPECT_EQ(f.narrow(wide), 0x7f);
        }
        continue;
      }
      EXPECT_EQ(wide, (code >= 0x80 ? -1 : 1) * Float8ByDefinition(f, magnitude)) << code;
      EXPECT_EQ(std::signbit(wide), code >= 0x80) << code;
      EXPECT_EQ(f.narrow(wide), code);
    }
  }
}

TEST(DTypeTest, Float8NarrowingRoundsToNearestEvenAndSaturates) {
  for (const Float8& f : kFloat8s) {
    SCOPED_TRACE(DTypeName(f.dtype));
    // Between every two neighbours, as for float16 above.
    for (uint32_t code = 0; code < f.largest; ++code) {
      const float middle = static_cast<float>((Float8ByDefinition(f, code) + Float8ByDefinition(f, code + 1)) / 2);
      const uint32_t even = code % 2 == 0 ? code : code + 1;
      EXPECT_EQ(f.narrow(middle), even);
      EXPECT_EQ(f.narrow(std::nextafter(middle, 0.0f)), code);
      EXPECT_EQ(f.narrow(std::nextafter(middle, 1e6f)), code + 1);
      EXPECT_EQ(f.narrow(-middle), even | 0x80);
    }
    const float largest = f.widen(static_cast<uint8_t>(f.largest));
    for (float x : {std::nextafter(largest, 1e6f), 1.04f * largest, 1.2f * largest, 2 * largest, 1e30f,
                    std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity()}) {
      EXPECT_EQ(f.narrow(x), f.largest) << x;
      EXPECT_EQ(f.narrow(-x), f.largest | 0x80) << x;
    }
    EXPECT_EQ(f.narrow(std::nextafter(largest, 0.0f)), f.largest);
    EXPECT_EQ(f.narrow(std::numeric_limits<float>::denorm_min()), 0);
    EXPECT_EQ(f.narrow(-std::numeric_limits<float>::denorm_min()), 0x80);
    EXPECT_EQ(f.narrow(-std::nanf("")), 0x7f);
  }
}

TEST(DTypeTest, ElementsAreReadAndWrittenInTheirSize) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    SCOPED_TRACE(DTypeName(dtype));
    unsigned char bytes[1 + 4 * sizeof(float)];
    std::memset(bytes, 0xff, sizeof(bytes));  // NaN in every dtype
    void* elements = bytes + 1;               // not aligned
    WriteElement(dtype, elements, 1, -1.25f);
    WriteElement(dtype, elements, 2, 3.0f);
    EXPECT_TRUE(std::isnan(ReadElement(dtype, elements, 0)));
    EXPECT_EQ(ReadElement(dtype, elements, 1), -1.25f);
    EXPECT_EQ(ReadElement(dtype, elements, 2), 3.0f);
    EXPECT_TRUE(std::isnan(ReadElement(dtype, elements, 3)));
  }
}

}  // namespace
}  // namespace hybridgen
