// Tests of where the block manager puts host pages: the order in which tiers are taken, and the spread along sequences.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "memory/block_manager.h"
#include "memory/block_manager_driver.h"

namespace hybridgen {
namespace {

// No device tier, so that every write takes host pages at once.
BlockManagerOptions HostOptions(int dram_pages, int cxl_pages, double k_share, double v_share) {
  BlockManagerOptions options;
  options.num_blocks = 400;
  options.block_size = kBlockSize;
  for (const PageRole role : kPageRoles) {
    options.dram_pages[Index(role)] = dram_pages;
    options.cxl_pages[Index(role)] = cxl_pages;
  }
  options.cxl_share[0] = k_share;
  options.cxl_share[1] = v_share;
  return options;
}

Residency Write(Driver& driver, int32_t block, int sequence_block, uint32_t sequence) {
  return driver->PrepareWrite(block, 0, kBlockSize, sequence_block, kLong, sequence).value();
}

TEST(BlockManagerPlacementTest, KeysFillDramBeforeValuesSpillToCxl) {
  Driver driver;  // DRAM holds 8 K and 4 V pages
  driver.NextStep();
  for (int32_t block = 1; block <= 13; ++block) driver.WriteFull(block, block);
  int key_in_dram = 0, value_in_dram = 0;
  for (int32_t block = 4; block <= 13; ++block) {
    key_in_dram += driver->Where(block).k.tier == Tier::kDram;
    value_in_dram += driver->Where(block).v.tier == Tier::kDram;
  }
  EXPECT_EQ(key_in_dram, 8);
  EXPECT_EQ(value_in_dram, 4);
  EXPECT_EQ(driver->Where(13).k.tier, Tier::kCxl) << "the newest K spills";
  EXPECT_EQ(driver->Stats().placement_misses, 2);
  EXPECT_EQ(driver->Stats().resident_pages[Index(Tier::kCxl)][Index(PageRole::kValue)], 6);
}

// Blocks written newest first, as a long prompt's are: still every run of the sequence has its share.
TEST(BlockManagerPlacementTest, EveryRunOfASequenceIsSpread) {
  constexpr double kShare = 0.3;
  constexpr int kBlocks = 60;
  Driver driver(HostOptions(200, 200, 0, kShare));
  driver.NextStep();
  for (const uint32_t sequence : {1u, 7u, 100u}) {
    std::vector<int> on_cxl(kBlocks);
    const int32_t first = 1 + 60 * (sequence % 3);
    for (int b = kBlocks - 1; b >= 0; --b) {
      const Residency at = Write(driver, first + b, b, sequence);
      EXPECT_EQ(at.k.tier, Tier::kDram);
      on_cxl[b] = at.v.tier == Tier::kCxl;
    }
    for (int begin = 0; begin < kBlocks; ++begin) {
      int count = 0;
      for (int end = begin + 1; end <= kBlocks; ++end) {
        count += on_cxl[end - 1];
        ASSERT_LT(std::abs(count - (end - begin) * kShare), 1 + 1e-6) << sequence << ": " << begin << " to " << end;
      }
    }
  }
  EXPECT_EQ(driver->Stats().placement_misses, 0);
}

// Sequences that grow side by side, one block each per step: all of them are spread, not only their sum.
TEST(BlockManagerPlacementTest, SequencesThatGrowTogetherAreSpreadEach) {
  constexpr double kShare = 0.25;
  constexpr int kSequences = 8, kBlocks = 40;
  Driver driver(HostOptions(400, 400, 0, kShare));
  int on_cxl[kSequences] = {};
  for (int b = 0; b < kBlocks; ++b) {
    driver.NextStep();
    for (int s = 0; s < kSequences; ++s) {
      on_cxl[s] += Write(driver, 1 + s * kBlocks + b, b, 1 + s * kBlocks).v.tier == Tier::kCxl;
    }
  }
  for (int s = 0; s < kSequences; ++s) EXPECT_NEAR(on_cxl[s], kShare * kBlocks, 1) << s;
}

// The publish of a block takes the tier of its place in the sequence, although the manager sees it much later.
TEST(BlockManagerPlacementTest, PublishedBlocksAreSpreadByTheirPlace) {
  BlockManagerOptions options = HostOptions(100, 100, 0.5, 0.5);
  options.device_pages = 30;
  options.publish_mode = PublishMode::kMove;
  Driver driver(options);
  driver.NextStep();
  for (int b = 0; b < 20; ++b) Write(driver, 40 - b, b, 0);
  driver.RetireAll();
  const std::vector<CopyTask> tasks = driver->PlanPublish(100);
  ASSERT_EQ(tasks.size(), 20u);
  for (const CopyTask& task : tasks) {
    const Tier expected = (40 - task.block) % 2 == 1 ? Tier::kCxl : Tier::kDram;  // phase 0: the second of each pair
    EXPECT_EQ(task.k.tier, expected) << task.block;
    EXPECT_EQ(task.v.tier, expected) << task.block;
  }
}

TEST(BlockManagerPlacementTest, AFullTierSendsPagesToTheOther) {
  Driver driver(HostOptions(3, 50, 0, 0.5));
  driver.NextStep();
  for (int b = 0; b < 20; ++b) Write(driver, 1 + b, b, 0);
  const BlockManagerStats stats = driver->Stats();
  EXPECT_EQ(stats.resident_pages[Index(Tier::kDram)][0], 3);
  EXPECT_EQ(stats.resident_pages[Index(Tier::kDram)][1], 3);
  EXPECT_EQ(stats.resident_pages[Index(Tier::kCxl)][1], 17);
  EXPECT_EQ(stats.placement_misses, 17) << "K belongs in DRAM; V in CXL is no miss";

  Driver other(HostOptions(50, 3, 0.5, 1));
  other.NextStep();
  for (int b = 0; b < 20; ++b) Write(other, 1 + b, b, 0);
  EXPECT_EQ(other->Stats().resident_pages[Index(Tier::kCxl)][0], 3);
  EXPECT_EQ(other->Stats().resident_pages[Index(Tier::kDram)][1], 17);
  EXPECT_EQ(other->Stats().placement_misses, 0) << "DRAM is better than what was asked for";
}

// As sequences end and others begin, their pages come back to the tiers they are meant for.
TEST(BlockManagerPlacementTest, TheShareHoldsOverManySequences) {
  constexpr uint32_t kSeed = 3;
  constexpr double kShare = 0.18;
  std::mt19937 rng(kSeed);
  Driver driver(HostOptions(300, 100, 0, kShare));
  std::vector<std::vector<int32_t>> live;
  std::vector<int32_t> free_blocks;
  for (int32_t block = 1; block < 300; ++block) free_blocks.push_back(block);
  int64_t pages = 0, on_cxl = 0;
  for (int round = 0; round < 2000; ++round) {
    driver.NextStep();
    const int length = std::uniform_int_distribution<int>(1, 30)(rng);
    while (static_cast<int>(free_blocks.size()) < length) {
      const size_t ended = rng() % live.size();
      for (const int32_t block : live[ended]) {
        driver->Free(block);
        free_blocks.push_back(block);
      }
      live.erase(live.begin() + ended);
    }
    std::shuffle(free_blocks.begin(), free_blocks.end(), rng);
    live.emplace_back(free_blocks.end() - length, free_blocks.end());
    free_blocks.resize(free_blocks.size() - length);
    for (int b = 0; b < length; ++b) {
      on_cxl += Write(driver, live.back()[b], b, live.back()[0]).v.tier == Tier::kCxl;
      ++pages;
    }
  }
  EXPECT_NEAR(static_cast<double>(on_cxl) / pages, kShare, 0.01) << "seed " << kSeed;
}

TEST(BlockManagerPlacementTest, SharesOutsideZeroToOneAreRefused) {
  for (const double share : {-0.01, 1.01, std::nan("")}) {
    const absl::Status status = BlockManager::Create(HostOptions(5, 5, 0, share)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << share;
    EXPECT_NE(std::string(status.message()).find("cxl_share[V]"), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace hybridgen
