// Tests of the spread: its bound for every run of blocks, and the share over many sequences.
#include "memory/spread.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

std::vector<int> OnCxl(double share, uint32_t sequence, int blocks) {
  const Spread spread(share);
  std::vector<int> on_cxl;
  for (int block = 0; block < blocks; ++block) on_cxl.push_back(spread.OnCxl(block, sequence) ? 1 : 0);
  return on_cxl;
}

TEST(SpreadTest, NothingAndEverything) {
  for (const uint32_t sequence : {0u, 1u, 77u, ~0u}) {
    for (const double share : {0.0, -3.0}) EXPECT_EQ(OnCxl(share, sequence, 100), std::vector<int>(100, 0));
    for (const double share : {1.0, 2.0}) EXPECT_EQ(OnCxl(share, sequence, 100), std::vector<int>(100, 1));
  }
}

TEST(SpreadTest, SimpleSharesAlternate) {
  EXPECT_EQ(OnCxl(0.5, 0, 6), (std::vector<int>{0, 1, 0, 1, 0, 1}));
  EXPECT_EQ(OnCxl(0.25, 0, 9), (std::vector<int>{0, 0, 0, 1, 0, 0, 0, 1, 0}));
  EXPECT_EQ(OnCxl(0.75, 0, 8), (std::vector<int>{0, 1, 1, 1, 0, 1, 1, 1}));
}

// Every run, not only prefixes, has its share rounded down or up.
TEST(SpreadTest, NoRunIsAPageOff) {
  constexpr uint32_t kSeed = 11;
  constexpr int kBlocks = 120;
  std::mt19937 rng(kSeed);
  for (int round = 0; round < 200; ++round) {
    const double share = std::uniform_real_distribution<double>(0, 1)(rng);
    const std::vector<int> on_cxl = OnCxl(share, rng(), kBlocks);
    for (int begin = 0; begin < kBlocks; ++begin) {
      int count = 0;
      for (int end = begin + 1; end <= kBlocks; ++end) {
        count += on_cxl[end - 1];
        // The share is kept to 2^-32, so a run of 120 blocks may miss an exact integer by 2^-25.
        ASSERT_LT(std::abs(count - (end - begin) * share), 1 + 1e-7)
            << "seed " << kSeed << " round " << round << " share " << share << " run " << begin << " to " << end;
      }
    }
  }
}

// Far positions: the wrapping arithmetic keeps its exactness over 2^31 blocks.
TEST(SpreadTest, FarPositionsAreSpreadAlike) {
  const Spread spread(0.3);
  for (const int32_t begin : {1 << 20, 1 << 30, INT32_MAX - 1000}) {
    int count = 0;
    for (int32_t block = begin; block < begin + 1000; ++block) count += spread.OnCxl(block, 5) ? 1 : 0;
    EXPECT_NEAR(count, 300, 1) << begin;
  }
}

// Sequences too short to hold one page on CXL: the phases give the share over all of them.
TEST(SpreadTest, ShortSequencesHaveTheShareTogether) {
  constexpr double kShare = 0.18;
  for (const int length : {1, 2, 3, 5, 8}) {
    const Spread spread(kShare);
    int count = 0, blocks = 0;
    for (uint32_t sequence = 0; sequence < 500; ++sequence) {
      for (int block = 0; block < length; ++block, ++blocks) {
        count += spread.OnCxl(block, 1 + sequence * length) ? 1 : 0;  // named by their first block id
      }
    }
    EXPECT_NEAR(static_cast<double>(count) / blocks, kShare, 0.01) << length;
  }
}

}  // namespace
}  // namespace hybridgen
