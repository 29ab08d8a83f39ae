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

}  // namespace
}  // namespace hybridgen
