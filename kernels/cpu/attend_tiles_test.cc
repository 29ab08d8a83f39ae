// Attention by matrix tiles against the oracle: with emulated tiles, and with the CPU's where it has them.
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cpu/kernels_amx_emulated.h"
#include "kernels/cpu/tile_amx.h"
#include "kernels/testing/kernel_set_test.h"

namespace hybridgen {
namespace {

constexpr DType kTileDTypes[] = {DType::kBFloat16, DType::kFloat16};

std::vector<KernelSet> TileKernelSets() {
  std::vector<KernelSet> sets = EmulatedKernelSets();
  for (const KernelSet& set : RunnableKernelSets()) {
    if (set.isa == Isa::kAmxBf16) sets.push_back(set);
  }
  return sets;
}

class AttendTilesTest : public KernelSetTest {};

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(AttendTilesTest);
INSTANTIATE_TEST_SUITE_P(Isa, AttendTilesTest, testing::ValuesIn(TileKernelSets()), KernelSetName);

AttendCase Case(DType dtype, int num_tokens, int group, int head_size, int length) {
  AttendCase c;
  c.dtype = dtype;
  c.kv_heads = 1;
  c.num_tokens = num_tokens;
  c.group = group;
  c.head_size = head_size;
  c.length = length;
  c.seed = num_tokens * 1000 + group * 100 + head_size + length;
  return c;
}

// One row tile, two, two blocks, and a last tile that is full, nearly full or nearly empty.
TEST_P(AttendTilesTest, EveryNumberOfRowTiles) {
  for (DType dtype : kTileDTypes) {
    for (int rows : {3, 4, 5, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 65, 128}) {
      AttendCase c = Case(dtype, 1, rows, 32, 75);
      c.page_tokens = 32;
      CheckCase(kernels(), c);
    }
  }
}

// Pages of one group have no two groups of V in a row; lengths end in groups, pairs of groups, runs and chunks.
TEST_P(AttendTilesTest, LengthsRoundPairsRunsAndChunks) {
  for (DType dtype : kTileDTypes) {
    for (int page_tokens : {16, 48, 256}) {
      for (int length : {1, 15, 16, 17, 32, 33, 48, 63, 128, 129, 145, 512, 513, 545}) {
        AttendCase c = Case(dtype, 1, length < 100 ? 12 : 9, 32, length);
        c.page_tokens = page_tokens;
        CheckCase(kernels(), c);
      }
    }
  }
}

TEST_P(AttendTilesTest, HeadSizes) {
  for (DType dtype : kTileDTypes) {
    for (int head_size : {32, 64, 96, 128, 160, 224, 256, 512, 48, 40}) {
      CheckCase(kernels(), Case(dtype, 1, 10, head_size, 70));
      CheckCase(kernels(), Case(dtype, 6, 3, head_size, 70));
    }
  }
}

// Causal and window edges cut through pairs of groups: pairs then come from groups that are no neighbours.
TEST_P(AttendTilesTest, EdgesOfTilesOfTokens) {
  for (DType dtype : kTileDTypes) {
    for (const auto& [num_tokens, group] : {std::pair{4, 4}, {21, 3}, {64, 1}, {8, 8}}) {
      for (int window : {0, 1, 17, 40, 150}) {
        for (int page_tokens : {16, 64}) {
          AttendCase c = Case(dtype, num_tokens, group, 32, 170);
          c.window = window;
          c.page_tokens = page_tokens;
          CheckCase(kernels(), c);
        }
      }
    }
  }
}

TEST_P(AttendTilesTest, SoftCapAlibiSinksAndNarrowOutput) {
  for (DType dtype : kTileDTypes) {
    for (int variant = 0; variant < 8; ++variant) {
      AttendCase c = Case(dtype, 3, 6, 64, 150);
      c.kv_heads = 2;
      c.soft_cap = variant & 1 ? 1.5f : 0.0f;
      c.alibi = variant & 2;
      c.sinks = variant & 4;
      c.window = 50;
      c.scale = 1.0f;
      if (variant % 3 == 0) c.output = dtype;
      CheckCase(kernels(), c);
    }
  }
}

// V of ones, and weights a little below 1 whose lower bits are random: two terms of each, truncated, would make the
// mean 2^-17 too small, which is more than the tolerance of few tokens with small logits.
TEST_P(AttendTilesTest, TheThirdTermOfAWeightCounts) {
  for (DType dtype : kTileDTypes) {
    for (int rows : {16, 32}) {
      AttendCase c = Case(dtype, 1, rows, 32, 32);
      c.scale = 0x1p-10f;
      AttendData data(c);
      for (int position = 0; position < c.length; ++position) {
        for (int dim = 0; dim < c.head_size; ++dim) data.value(position, 0, dim) = 1.0f;
      }
      data.BuildPages(c.format);
      ExpectMatchesOracle(data, 0, RunCase(kernels(), data, 0));
    }
  }
}

// The largest and the smallest float16, whose parts are furthest apart.
TEST_P(AttendTilesTest, ExtremesOfFloat16) {
  AttendCase c = Case(DType::kFloat16, 1, 9, 32, 40);
  c.scale = 0x1p-20f;
  AttendData data(c);
  const float extremes[] = {65504.0f, -65504.0f, 0x1p-24f, -0x1.ffcp-15f, 2047.0f, 0x1.004p+0f, -0x1.ffcp+0f, 0.0f};
  for (int position = 0; position < c.length; ++position) {
    for (int dim = 0; dim < c.head_size; ++dim) {
      data.key(position, 0, dim) = extremes[(position + 3 * dim) % 8];
      data.value(position, 0, dim) = extremes[(5 * position + dim) % 8];
    }
  }
  data.BuildPages(c.format);
  ExpectMatchesOracle(data, 0, RunCase(kernels(), data, 0));
}

TEST_P(AttendTilesTest, RepeatedRunsGiveTheSameBits) {
  for (DType dtype : kTileDTypes) {
    for (int num_tokens : {1, 9}) {
      AttendData data(Case(dtype, num_tokens, 7, 64, 333));
      const AttendResult first = RunCase(kernels(), data, 0);
      for (int i = 0; i < 3; ++i) {
        const AttendResult again = RunCase(kernels(), data, 0);
        EXPECT_TRUE(SameBits(first.o, again.o) && SameBits(first.lse, again.lse));
      }
    }
  }
}

TEST_P(AttendTilesTest, CallsContinueOneState) {
  for (DType dtype : kTileDTypes) {
    AttendCase c = Case(dtype, 2, 8, 32, 200);
    AttendData data(c);
    const std::vector<KvPage>& pages = data.pages();
    for (size_t cut : {0, 1, 7, 12, 13}) {
      const std::vector<AttendStep> steps = {{&data, {pages.begin(), pages.begin() + cut}},
                                             {&data, {pages.begin() + cut, pages.end()}}};
      ExpectMatchesOracle(data, 0, RunSteps(kernels(), steps, 0, nullptr, DType::kFloat32), 2);
    }
  }
}

TEST_P(AttendTilesTest, ANaNStaysWithTheRowsThatSeeIt) {
  for (DType dtype : kTileDTypes) {
    for (int position : {60, 64, 67, 79}) {
      for (bool in_key : {true, false}) {
        AttendCase c = Case(dtype, 21, 3, 32, 81);
        c.page_tokens = 32;
        AttendData data(c);
        (in_key ? data.key(position, 0, 5) : data.value(position, 0, 5)) = kNaN;
        data.BuildPages(c.format);
        const AttendResult result = RunCase(kernels(), data, 0);
        for (int row = 0; row < 63; ++row) {
          const bool seen = position <= 60 + row / 3;
          for (int dim = 0; dim < c.head_size; ++dim) {
            ASSERT_EQ(std::isnan(result.o[row * c.head_size + dim]), seen && (in_key || dim == 5))
                << "row " << row << " dim " << dim << " NaN at " << position << " " << c.ToString();
          }
          ASSERT_EQ(std::isnan(result.lse[row]), seen && in_key);
        }
      }
    }
    AttendData data(Case(dtype, 1, 16, 32, 40));
    data.query(0, 3, 7) = kNaN;
    data.BuildPages(PageFormat::kPackedV1);
    const AttendResult result = RunCase(kernels(), data, 0);
    for (int row = 0; row < 16; ++row) EXPECT_EQ(std::isnan(result.lse[row]), row == 3);
  }
}

// Infinite keys, which as float16 in two terms would make NaN of products with the second one. The chunk behind theirs
// is attended by tiles again.
TEST_P(AttendTilesTest, InfiniteLogits) {
  for (DType dtype : kTileDTypes) {
    for (int num_tokens : {1, 4}) {
      const AttendCase c = Case(dtype, num_tokens, 12, 32, 200);
      AttendData data(c);
      for (int token = 0; token < num_tokens; ++token) {
        for (int head = 0; head < 12; ++head) data.query(token, head, 9) = RoundTo(dtype, 0.7f);
      }
      // The oracle does without infinities: a logit below -1000 weighs nothing either.
      const auto set = [&](float key) {
        for (int position : {10, 11, 60}) data.key(position, 0, 9) = RoundTo(dtype, key);
        data.BuildPages(c.format);
      };
      set(-8192.0f);
      const std::vector<OracleRow> expected = AttendOracle(data.oracle(0));
      set(0.0f);  // for the tolerances, which would count the -1000
      const std::vector<OracleRow> plain = AttendOracle(data.oracle(0));
      set(-kInf);
      const AttendResult result = RunCase(kernels(), data, 0);
      ASSERT_EQ(result.status, KernelResult::kOk);
      for (size_t row = 0; row < expected.size(); ++row) {
        ASSERT_NEAR(result.lse[row], expected[row].lse, LseTolerance(plain[row]));
        for (int dim = 0; dim < c.head_size; ++dim) {
          ASSERT_NEAR(result.o[row * c.head_size + dim], expected[row].o[dim],
                      OutputTolerance(plain[row], DType::kFloat32));
        }
      }
      data.key(61, 0, 9) = kInf;
      data.BuildPages(c.format);
      EXPECT_EQ(RunCase(kernels(), data, 0).status, KernelResult::kInfiniteLogit);
    }
    // An infinite query, of one row.
    AttendData data(Case(dtype, 1, 12, 32, 40));
    data.query(0, 5, 2) = kInf;
    for (int position = 0; position < 40; ++position) data.key(position, 0, 2) = -0.5f;
    data.BuildPages(PageFormat::kPackedV1);
    const AttendResult result = RunCase(kernels(), data, 0);
    ASSERT_EQ(result.status, KernelResult::kOk);
    for (int row = 0; row < 12; ++row) EXPECT_EQ(result.lse[row] == -kInf, row == 5);
  }
}

// Tiles in their initial state are nothing that the operating system has to save.
TEST_P(AttendTilesTest, TilesAreReleased) {
  CheckCase(kernels(), Case(DType::kBFloat16, 1, 8, 32, 40));
  AttendData data(Case(DType::kBFloat16, 1, 8, 32, 40));
  for (int head = 0; head < 8; ++head) data.query(0, head, 0) = 1.0f;
  data.key(3, 0, 0) = kInf;
  data.BuildPages(PageFormat::kPackedV1);
  EXPECT_EQ(RunCase(kernels(), data, 0).status, KernelResult::kInfiniteLogit);
  if (kernels().isa != Isa::kAmxBf16) {  // emulated
    EXPECT_FALSE(EmulatedTilesConfigured());
  } else {
    EXPECT_EQ(TileConfiguration().palette, 0);
  }
}

// How many products of tiles a call takes (docs/kernels.md), and which calls take none.
TEST(AttendTilesCostTest, ProductsOfTiles) {
  if (EmulatedKernelSets().empty()) GTEST_SKIP() << "this CPU lacks AVX-512 with bfloat16";
  const auto products = [](DType dtype, PageFormat format, int rows, int head_size) {
    AttendCase c = Case(dtype, 1, rows, head_size, 128);
    c.page_tokens = 128;
    c.format = format;
    const int64_t before = EmulatedTileDots();
    CheckCase(EmulatedKernelSets()[0], c);
    return EmulatedTileDots() - before;
  };
  constexpr PageFormat kPacked = PageFormat::kPackedV1;
  // 8 groups of K in 4 blocks of 32 dims; 4 pairs of groups of V in 8 blocks of 16 dims, times 3 terms of a weight.
  EXPECT_EQ(products(DType::kBFloat16, kPacked, 8, 128), 8 * 4 + 4 * 8 * 3);
  EXPECT_EQ(products(DType::kBFloat16, kPacked, 64, 128), 4 * (8 * 4 + 4 * 8 * 3));
  // All four products of two terms each; of V's second term only those with two terms of a weight.
  EXPECT_EQ(products(DType::kFloat16, kPacked, 16, 128), 8 * 4 * 4 + 4 * 8 * (3 + 2));
  EXPECT_EQ(products(DType::kBFloat16, kPacked, 3, 128), 0) << "few rows";
  EXPECT_EQ(products(DType::kFloat16, kPacked, 8, 128), 0);
  EXPECT_EQ(products(DType::kBFloat16, kPacked, 8, 48), 0) << "half a tile of dims";
  EXPECT_EQ(products(DType::kBFloat16, PageFormat::kStrided, 8, 128), 0);
  EXPECT_EQ(products(DType::kFloat32, kPacked, 16, 128), 0);
}

}  // namespace
}  // namespace hybridgen
