// Tests of the vector exp and tanh over their whole domain, for every ISA level that this CPU has.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/cpu/math_probe.h"
#include "kernels/cpu_features.h"

namespace hybridgen {
namespace {

constexpr double kUnit = 0x1p-24;
constexpr const MathProbe* kProbes[] = {&kPortableMath, &kAvx2Math, &kAvx512Math};

class MathTest : public testing::TestWithParam<const MathProbe*> {
 protected:
  void SetUp() override {
    const std::string missing = MissingFeatures(DetectCpuFeatures(), GetParam()->isa);
    if (!missing.empty()) GTEST_SKIP() << "this CPU lacks " << missing;
  }
  static float One(void (*f)(const float*, float*), float x) {
    float in[16], out[16];
    for (float& e : in) e = x;
    f(in, out);
    for (int i = 1; i < 16; ++i) EXPECT_EQ(std::memcmp(&out[i], &out[0], 4), 0) << "lanes differ for " << x;
    return out[0];
  }
};

INSTANTIATE_TEST_SUITE_P(Isa, MathTest, testing::ValuesIn(kProbes),
                         [](const auto& info) { return std::string(IsaName(info.param->isa)); });

// Every 61st float of the negative ones (a prime, so that all mantissa patterns come up): 35 million values.
TEST_P(MathTest, ExpIsWithinTwoRoundingsEverywhere) {
  double worst = 0;
  float worst_at = 0;
  float in[16], out[16];
  int filled = 0;
  for (uint64_t bits = 0x80000000u; bits <= 0xff800000u; bits += 61) {
    const uint32_t b = static_cast<uint32_t>(bits);
    std::memcpy(&in[filled], &b, sizeof(b));
    if (++filled < 16) continue;
    filled = 0;
    GetParam()->exp(in, out);
    for (int i = 0; i < 16; ++i) {
      if (in[i] < -87.33f) {
        ASSERT_EQ(out[i], 0.0f) << in[i];
        continue;
      }
      const double exact = std::exp(static_cast<double>(in[i]));
      const double error = std::abs(out[i] - exact) / exact;
      if (error > worst) {
        worst = error;
        worst_at = in[i];
      }
    }
  }
  std::printf("exp %s: worst relative error %.3f * 2^-24 at %a\n", IsaName(GetParam()->isa), worst / kUnit, worst_at);
  EXPECT_LE(worst, 2 * kUnit) << worst_at;
}

TEST_P(MathTest, ExpOfSpecialValues) {
  const auto exp = GetParam()->exp;
  EXPECT_EQ(One(exp, 0.0f), 1.0f);
  EXPECT_EQ(One(exp, -0.0f), 1.0f);
  EXPECT_EQ(One(exp, -std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_EQ(One(exp, std::numeric_limits<float>::lowest()), 0.0f);
  for (uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7fc12345u, 0x7f800001u, 0xffffffffu}) {
    float nan;
    std::memcpy(&nan, &bits, sizeof(nan));
    EXPECT_TRUE(std::isnan(One(exp, nan))) << bits;
  }
}

TEST_P(MathTest, TanhIsWithinThreeRoundingsOfOne) {
  const auto tanh = GetParam()->tanh;
  double worst = 0;
  for (uint64_t bits = 0; bits <= 0x7f800000u; bits += 10007) {
    const uint32_t b = static_cast<uint32_t>(bits);
    float x;
    std::memcpy(&x, &b, sizeof(x));
    const float y = One(tanh, x);
    worst = std::max(worst, std::abs(y - std::tanh(static_cast<double>(x))));
    ASSERT_EQ(One(tanh, -x), -y) << x;
  }
  EXPECT_LE(worst, 3 * kUnit);
  EXPECT_EQ(One(tanh, std::numeric_limits<float>::infinity()), 1.0f);
  EXPECT_TRUE(std::isnan(One(tanh, std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace
}  // namespace hybridgen
