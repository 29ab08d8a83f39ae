// Tests of the merge of two partials.
#include "kernels/partial.h"

#include <cmath>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

TEST(MergePairTest, BothEmptyIsEmpty) {
  const MergeWeights w = MergePair(kEmptyLse, kEmptyLse);
  EXPECT_EQ(w.wa, 0.0f);
  EXPECT_EQ(w.wb, 0.0f);
  EXPECT_EQ(w.lse, kEmptyLse);
}

TEST(MergePairTest, OneEmptyKeepsTheOtherExactly) {
  for (float lse : {-1000.0f, -1.5f, 0.0f, 3.25f, 80000.0f}) {
    const MergeWeights a = MergePair(lse, kEmptyLse);
    EXPECT_EQ(a.wa, 1.0f);
    EXPECT_EQ(a.wb, 0.0f);
    EXPECT_EQ(a.lse, lse);
    const MergeWeights b = MergePair(kEmptyLse, lse);
    EXPECT_EQ(b.wa, 0.0f);
    EXPECT_EQ(b.wb, 1.0f);
    EXPECT_EQ(b.lse, lse);
  }
}

TEST(MergePairTest, EqualWeighHalf) {
  const MergeWeights w = MergePair(-7.0f, -7.0f);
  EXPECT_EQ(w.wa, 0.5f);
  EXPECT_EQ(w.wb, 0.5f);
  EXPECT_FLOAT_EQ(w.lse, -7.0f + std::log(2.0f));
}

TEST(MergePairTest, FarApartDoesNotOverflow) {
  const MergeWeights w = MergePair(-30000.0f, 30000.0f);
  EXPECT_EQ(w.wa, 0.0f);
  EXPECT_EQ(w.wb, 1.0f);
  EXPECT_EQ(w.lse, 30000.0f);
}

TEST(MergePairTest, WeightsAndLseMatchTheDefinitionInEitherOrder) {
  for (double a = -5; a <= 5; a += 0.37) {
    for (double b = -5; b <= 5; b += 0.41) {
      const float la = static_cast<float>(a);
      const float lb = static_cast<float>(b);
      const double sum = std::exp(static_cast<double>(la)) + std::exp(static_cast<double>(lb));
      const MergeWeights w = MergePair(la, lb);
      const MergeWeights v = MergePair(lb, la);
      EXPECT_NEAR(w.wa, std::exp(static_cast<double>(la)) / sum, 4 * 0x1p-24);
      EXPECT_NEAR(w.wb, std::exp(static_cast<double>(lb)) / sum, 4 * 0x1p-24);
      EXPECT_NEAR(w.lse, std::log(sum), 16 * 0x1p-24);
      EXPECT_EQ(w.wa, v.wb);
      EXPECT_EQ(w.wb, v.wa);
      EXPECT_EQ(w.lse, v.lse);
    }
  }
}

}  // namespace
}  // namespace hybridgen
