// Tests of the scalar conversions.
#include "kernels/dtype.h"

#include <cmath>
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

}  // namespace
}  // namespace hybridgen
