// Tests of the eviction policy.
#include "memory/eviction_order.h"

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

constexpr ProtectionPolicy kPolicy = {/*block_size=*/4, /*sink_blocks=*/1, /*recent_blocks=*/2};

// A block in the middle of a sequence of 10 blocks, used by step `last_used`.
BlockUse Middle(int64_t last_used, int64_t generated) { return {Liveness::kLive, last_used, generated, 5, 40}; }

TEST(EvictionOrderTest, SinksAndRecentBlocksAreProtected) {
  BlockUse use = Middle(1, 1);
  for (int block = 0; block < 10; ++block) {
    use.sequence_block = block;
    EXPECT_EQ(IsProtected(use, kPolicy), block == 0 || block >= 8) << block;
  }
  use.sequence_tokens = 41;  // one token more begins an eleventh block
  use.sequence_block = 8;
  EXPECT_FALSE(IsProtected(use, kPolicy));
  use.sequence_block = 9;
  EXPECT_TRUE(IsProtected(use, kPolicy));
}

TEST(EvictionOrderTest, NothingIsProtectedWithoutSinksAndRecentBlocks) {
  BlockUse use = Middle(1, 1);
  use.sequence_block = 9;
  EXPECT_FALSE(IsProtected(use, {4, 0, 0}));
  use.sequence_block = 0;
  EXPECT_FALSE(IsProtected(use, {4, 0, 0}));
}

TEST(EvictionOrderTest, DeadThenUnusedThenOldThenProtected) {
  constexpr int64_t kStep = 10;
  BlockUse dead = Middle(kStep, 90);
  dead.liveness = Liveness::kDead;
  BlockUse dead_sink = dead;
  dead_sink.sequence_block = 0;
  dead_sink.last_used = kStep - 1;
  BlockUse sink = Middle(kStep, 1);
  sink.sequence_block = 0;
  BlockUse unused_sink = sink;
  unused_sink.last_used = kStep - kRecentPlans - 1;
  const BlockUse order[] = {
      dead_sink,                             // dead, unused for longer than the next
      dead,                                  //
      Middle(kStep - kRecentPlans - 2, 50),  // unused, longest first, whatever its age
      unused_sink,                           // a sequence that does not run needs no sink
      Middle(kStep - kRecentPlans, 20),      // used: oldest generated first
      Middle(kStep, 30),                     //
      sink,                                  // protected, though oldest
  };
  for (size_t i = 0; i + 1 < std::size(order); ++i) {
    EXPECT_LT(EvictionKeyOf(order[i], kStep, kPolicy), EvictionKeyOf(order[i + 1], kStep, kPolicy)) << i;
  }
}

}  // namespace
}  // namespace hybridgen
