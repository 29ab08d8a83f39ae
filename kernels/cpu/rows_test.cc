// Tests of starting, finishing and merging rows, for every ISA level that this CPU has.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/kernel_set_test.h"
#include "kernels/testing/red_zone.h"

namespace hybridgen {
namespace {

constexpr double kUnit = 0x1p-24;

class RowsTest : public KernelSetTest {};

INSTANTIATE_TEST_SUITE_P(Isa, RowsTest, testing::ValuesIn(RunnableKernelSets()), KernelSetName);

QueryTile Tile(int num_tokens, int group, int head_size) {
  QueryTile tile;
  tile.num_tokens = num_tokens;
  tile.group = group;
  tile.head_size = head_size;
  return tile;
}

TEST_P(RowsTest, InitialRowsAreEmptyOrHoldTheSink) {
  for (int head_size : {8, 64, 72, 512}) {
    const size_t padded = PaddedHeadSize(head_size);
    RedZoned<float> max(6, 4), sum(6, 4), acc(6 * padded, 4);
    const QueryTile tile = Tile(2, 3, head_size);
    kernels().init_rows(tile, nullptr, {max.data(), sum.data(), acc.data()});
    ASSERT_TRUE(max.Intact() && sum.Intact() && acc.Intact());
    for (int row = 0; row < 6; ++row) {
      EXPECT_EQ(max[row], -kInf);
      EXPECT_EQ(sum[row], 0.0f);
    }
    const float sinks[] = {1.5f, -kInf, -3.0f};
    kernels().init_rows(tile, sinks, {max.data(), sum.data(), acc.data()});
    for (int row = 0; row < 6; ++row) {
      EXPECT_EQ(max[row], sinks[row % 3]);
      EXPECT_EQ(sum[row], row % 3 == 1 ? 0.0f : 1.0f);
    }
    for (size_t i = 0; i < acc.size(); ++i) ASSERT_EQ(acc[i], 0.0f);
  }
}

// Values whose narrowing is hard: ties, subnormals, overflow, NaN; and random bits.
std::vector<float> HardValues(size_t n, uint32_t seed) {
  std::vector<float> values = {0.0f,
                               -0.0f,
                               1.0f,
                               1.0f + 0x1p-8f,
                               1.0f + 0x1.8p-7f,
                               1.0f + 0x1p-11f,
                               65504.f,
                               65519.99f,
                               65520.0f,
                               -65536.0f,
                               0x1p-24f,
                               0x1p-25f,
                               0x1.8p-25f,
                               0x1p-14f,
                               0x1.ffcp-15f,
                               kInf,
                               -kInf,
                               kNaN,
                               std::numeric_limits<float>::max()};
  std::mt19937 random(seed);
  while (values.size() < n) {
    const uint32_t bits = random() & ~0x00400000u;  // clears the quiet bit of NaNs too
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    values.push_back(x);
  }
  return values;
}

TEST_P(RowsTest, OutputIsNarrowedLikeTheScalarConversion) {
  for (DType dtype : kDTypes) {
    for (int head_size : {8, 24, 64, 512}) {
      const int rows = 4;
      const int padded = PaddedHeadSize(head_size);
      std::vector<float> max(rows, 0.0f), sum(rows, 1.0f), acc = HardValues(rows * padded, head_size);
      RedZoned<uint8_t> o(rows * head_size * DTypeSize(dtype), DTypeSize(dtype));
      RowOutput out;
      out.o = o.data();
      out.dtype = dtype;
      out.token_stride = 2 * head_size;
      out.head_stride = head_size;
      kernels().finalize_rows(Tile(2, 2, head_size), {max.data(), sum.data(), acc.data()}, out);
      ASSERT_TRUE(o.Intact());
      for (int row = 0; row < rows; ++row) {
        for (int dim = 0; dim < head_size; ++dim) {
          const float expected = RoundTo(dtype, acc[row * padded + dim]);
          const float actual = ReadElement(dtype, o.data(), row * head_size + dim);
          if (std::isnan(expected)) {
            EXPECT_TRUE(std::isnan(actual));
          } else {
            EXPECT_EQ(actual, expected) << acc[row * padded + dim];
            EXPECT_EQ(std::signbit(actual), std::signbit(expected));
          }
        }
      }
    }
  }
}

TEST_P(RowsTest, FinalRowsFollowTheStridesAndLeaveTheRestAlone) {
  const int head_size = 24;
  std::vector<float> max = {1, 2, -kInf, 4, 5, 6}, sum = {1, 2, 0, 4, 8, 16}, acc(6 * 32);
  for (size_t i = 0; i < acc.size(); ++i) acc[i] = static_cast<float>(i);
  const int64_t head_stride = 24 + 5, token_stride = 3 * head_stride + 2;
  RedZoned<float> o(token_stride + 2 * head_stride + head_size), lse(1 * 11 + 2 * 4 + 1, 4);
  RowOutput out;
  out.o = o.data();
  out.token_stride = token_stride;
  out.head_stride = head_stride;
  out.lse = lse.data();
  out.lse_token_stride = 11;
  out.lse_head_stride = 4;
  kernels().finalize_rows(Tile(2, 3, head_size), {max.data(), sum.data(), acc.data()}, out);
  ASSERT_TRUE(o.Intact() && lse.Intact());
  std::vector<bool> o_written(o.size()), lse_written(lse.size());
  for (int row = 0; row < 6; ++row) {
    const size_t at = row / 3 * 11 + row % 3 * 4;
    lse_written[at] = true;
    if (row == 2) {
      EXPECT_EQ(lse[at], -kInf);
    } else {
      EXPECT_NEAR(lse[at], max[row] + std::log(static_cast<double>(sum[row])), 4 * kUnit * 10);
    }
    for (int dim = 0; dim < head_size; ++dim) {
      const size_t index = row / 3 * token_stride + row % 3 * head_stride + dim;
      o_written[index] = true;
      EXPECT_EQ(o[index], row == 2 ? 0.0f : acc[row * 32 + dim] / sum[row]);
    }
  }
  for (size_t i = 0; i < o.size(); ++i) EXPECT_EQ(o_written[i], !std::isnan(o[i])) << i;
  for (size_t i = 0; i < lse.size(); ++i) EXPECT_EQ(lse_written[i], !std::isnan(lse[i])) << i;
}

// Merge by the definition in double.
double MergeOracle(const std::vector<std::vector<float>>& o, const std::vector<float>& lse,
                   std::vector<double>* merged) {
  double max = -kInf;
  for (float l : lse) max = std::max<double>(max, l);
  merged->assign(o[0].size(), 0.0);
  if (max == -kInf) return max;
  double sum = 0;
  for (size_t p = 0; p < o.size(); ++p) {
    const double weight = std::exp(lse[p] - max);
    sum += weight;
    for (size_t d = 0; d < merged->size(); ++d) {
      if (weight > 0) (*merged)[d] += weight * o[p][d];
    }
  }
  for (double& x : *merged) x /= sum;
  return max + std::log(sum);
}

TEST_P(RowsTest, MergeMatchesTheDefinition) {
  std::mt19937 random(TestSeed("//kernels/cpu:rows_test", 4));
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (DType dtype : kDTypes) {
    for (int head_size : {8, 24, 64, 128, 512}) {
      for (int count : {1, 2, 3, 7, 33}) {
        for (float spread : {0.0f, 1.0f, 200.0f}) {
          std::vector<std::vector<float>> o(count, std::vector<float>(head_size));
          std::vector<float> lse(count);
          std::vector<const float*> pointers;
          for (int p = 0; p < count; ++p) {
            lse[p] = spread * uniform(random);
            for (float& x : o[p]) x = uniform(random);
            // Every third is empty; its o must not be read.
            if (p % 3 == 2) {
              lse[p] = -kInf;
              std::fill(o[p].begin(), o[p].end(), kNaN);
            }
            pointers.push_back(o[p].data());
          }
          std::vector<double> expected;
          const double expected_lse = MergeOracle(o, lse, &expected);
          RedZoned<uint8_t> out(head_size * DTypeSize(dtype), DTypeSize(dtype));
          const float merged = kernels().merge_rows(pointers.data(), lse.data(), count, head_size, out.data(), dtype);
          ASSERT_TRUE(out.Intact());
          // Each weight: one rounding of the difference (up to 2 * spread), two of exp; sums of `count` terms;
          // division.
          const double weight_error = kUnit * (2 * spread + 4 + 2 * count);
          EXPECT_NEAR(merged, expected_lse, weight_error + 3 * kUnit * (std::abs(expected_lse) + 1));
          const double unit = dtype == DType::kFloat32 ? 0x1p-24 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
          for (int dim = 0; dim < head_size; ++dim) {
            ASSERT_NEAR(ReadElement(dtype, out.data(), dim), expected[dim], 2 * weight_error + unit);
          }
        }
      }
    }
  }
}

TEST_P(RowsTest, MergeOfNothingIsEmpty) {
  const std::vector<float> garbage(64, kNaN);
  const float* o[] = {garbage.data(), garbage.data()};
  const float lse[] = {-kInf, -kInf};
  for (int count : {0, 1, 2}) {
    std::vector<float> out(64, 7.0f);
    EXPECT_EQ(kernels().merge_rows(o, lse, count, 64, out.data(), DType::kFloat32), -kInf);
    for (float x : out) EXPECT_EQ(x, 0.0f);
  }
}

TEST_P(RowsTest, MergeOfOneIsTheSameBits) {
  std::vector<float> o(128), out(128);
  for (int i = 0; i < 128; ++i) o[i] = std::sin(static_cast<float>(i));
  const float* pointers[] = {o.data()};
  const float lse = -3.25f;
  EXPECT_EQ(kernels().merge_rows(pointers, &lse, 1, 128, out.data(), DType::kFloat32), lse);
  EXPECT_EQ(o, out);
}

}  // namespace
}  // namespace hybridgen
