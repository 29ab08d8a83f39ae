// Tests of the block manager's rules; block_manager_table_test.cc walks the state table.
#include "memory/block_manager.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "memory/block_manager_driver.h"

namespace hybridgen {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Writes.

TEST(BlockManagerTest, AWriteTruncates) {
  Driver driver;
  driver.NextStep();
  EXPECT_EQ(driver->PrepareWrite(1, 0, 3, 0, 3)->valid_tokens, 3);
  EXPECT_EQ(driver->PrepareWrite(1, 3, 1, 0, 4)->valid_tokens, 4);
  EXPECT_EQ(driver->PrepareWrite(1, 1, 1, 0, 2)->valid_tokens, 2);
  EXPECT_EQ(driver->Resolve(1, 0, 2)->valid_tokens, 2);
  EXPECT_EQ(driver->PrepareWrite(1, 3, 1, 0, 4).status().code(), absl::StatusCode::kInvalidArgument) << "a hole";
  EXPECT_EQ(driver->Resolve(1, 0, 2)->valid_tokens, 2) << "a refused write changes nothing";
}

TEST(BlockManagerTest, TheNullBlockAndPaddingAreDroppedAndCounted) {
  Driver driver;
  driver.NextStep();
  for (const int32_t block : {0, -1, -1000}) {
    const Residency where = driver->PrepareWrite(block, 0, 1, 0, 1).value();
    EXPECT_EQ(where.device_page, -1);
    EXPECT_EQ(where.k.index, -1);
    EXPECT_EQ(where.v.index, -1);
    EXPECT_EQ(driver->Resolve(block, 0, 1)->valid_tokens, 0);
  }
  EXPECT_EQ(driver->Stats().null_block_writes, 3);
  EXPECT_EQ(driver->Stats().unwritten_reads, 3);
}

TEST(BlockManagerTest, BadArgumentsAreRefusedByName) {
  Driver driver;
  EXPECT_EQ(driver->PrepareWrite(1, 0, 1, 0, 1).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(driver->Resolve(1, 0, 1).status().code(), absl::StatusCode::kFailedPrecondition);
  driver.NextStep();
  const struct {
    int32_t block;
    int offset, count, sequence_block, sequence_tokens;
    const char* named;
  } cases[] = {
      {24, 0, 1, 0, 1, "block 24 is not in [0, 24)"},
      {1, -1, 1, 0, 1, "offset -1"},
      {1, 0, 0, 0, 1, "0 tokens"},
      {1, 0, 5, 0, 5, "5 tokens at offset 0"},
      {1, 4, 1, 0, 5, "offset 4"},
      {1, 2, 1, 0, 3, "leaves a hole"},
      {1, 0, 1, -1, 1, "sequence_block -1"},
      {1, 0, 1, 1, 4, "sequence_block 1"},
      {1, 0, 1, 2147483647, 2147483647, "sequence_block 2147483647"},
  };
  for (const auto& c : cases) {
    const absl::Status status =
        driver->PrepareWrite(c.block, c.offset, c.count, c.sequence_block, c.sequence_tokens).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.named;
    EXPECT_NE(std::string(status.message()).find(c.named), std::string::npos) << status;
  }
  EXPECT_EQ(driver->Resolve(24, 0, 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(driver->Resolve(1, 1, 4).status().code(), absl::StatusCode::kInvalidArgument);
  driver->MarkDead(24);
  driver->Free(-3);
  EXPECT_TRUE(driver->CheckInvariants().ok());
}

TEST(BlockManagerTest, OneStepMayWriteMoreThanTheDeviceHolds) {
  Driver driver;
  driver.NextStep();
  for (int32_t block = 1; block <= 20; ++block) {
    const Residency where = driver.WriteFull(block, block);
    EXPECT_EQ(where.device_page >= 0, block <= 3) << block;
    EXPECT_EQ(where.k.index >= 0 && where.v.index >= 0, block > 3) << block;
  }
  EXPECT_EQ(driver->Stats().host_direct_writes, 17);
  EXPECT_EQ(driver->Stats().evictions, 0) << "no block of the step is evicted by the step";
}

TEST(BlockManagerTest, AFullHouseIsResourceExhaustedAndNamesTheSizes) {
  BlockManagerOptions options = SmallOptions();
  options.dram_pages[0] = 2;
  options.dram_pages[1] = 1;
  options.cxl_pages[0] = 0;
  options.cxl_pages[1] = 5;
  EXPECT_EQ(BlockCapacity(options), 5);
  Driver driver(options);
  driver.NextStep();
  for (int32_t block = 1; block <= 5; ++block) driver.WriteFull(block);
  const absl::Status status = driver->PrepareWrite(6, 0, 1, 0, 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const char* part : {"block 6", "device 3 (0 free", "dram K 2 (0 free", "dram V 1 (0 free", "cxl V 5 (4 free"}) {
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << part << " not in: " << status;
  }
  EXPECT_TRUE(driver->CheckInvariants().ok());
  EXPECT_TRUE(driver->PrepareWrite(5, 2, 2, 5, kLong).ok()) << "a write in place still works";
  driver->Free(5);
  driver.NextStep();
  EXPECT_TRUE(driver->PrepareWrite(6, 0, 1, 0, 1).ok()) << "and so does the refused one, once there is room";
}

// ---------------------------------------------------------------------------------------------------------------------
// Epochs.

TEST(BlockManagerTest, APageThatAStepMayReadIsNotReusedBeforeItRetires) {
  BlockManagerOptions options = SmallOptions();
  options.device_pages = 1;
  options.device_low_watermark = 0;
  Driver driver(options);
  driver.NextStep();
  const int32_t page = driver.WriteFull(1).device_page;
  driver.NextStep();
  EXPECT_EQ(driver->Resolve(1, 5, kLong)->device_page, page);
  const int64_t reader = driver.step();
  driver->BeginStep();  // planned while the reader runs
  EXPECT_LT(driver.WriteFull(1).device_page, 0) << "the reused block gets other pages";
  EXPECT_LT(driver.WriteFull(2).device_page, 0);
  EXPECT_EQ(driver->Stats().quarantined_pages[0][0], 1);
  driver->RetireThrough(reader - 1);
  EXPECT_LT(driver.WriteFull(3).device_page, 0);
  driver->RetireThrough(reader);
  EXPECT_EQ(driver->Stats().quarantined_pages[0][0], 0);
  EXPECT_EQ(driver.WriteFull(4).device_page, page);
}

TEST(BlockManagerTest, HostPagesAreQuarantinedToo) {
  Driver driver;
  driver.NextStep();
  for (int32_t block = 1; block <= 4; ++block) driver.WriteFull(block);
  driver.NextStep();
  const Residency read = driver->Resolve(4, 5, kLong).value();
  driver->Free(4);
  EXPECT_EQ(driver->Stats().quarantined_pages[Index(Tier::kDram)][0], 1);
  EXPECT_EQ(driver->Stats().quarantined_pages[Index(Tier::kDram)][1], 1);
  const Residency other = driver.WriteFull(5);
  EXPECT_NE(other.k.index, read.k.index);
  driver.RetireAll();
  EXPECT_EQ(driver->Stats().quarantined_pages[Index(Tier::kDram)][0], 0);
}

TEST(BlockManagerTest, ACleanBlockThatARunningStepReadsIsNotEvicted) {
  Driver driver;
  driver.NextStep();
  driver.WriteFull(1);
  driver.WriteTail(2);
  driver.Publish(1);
  driver.NextStep();
  const int32_t page = driver->Resolve(1, 5, kLong)->device_page;
  driver->BeginStep();  // the reader still runs
  driver.WriteTail(3);  // the last free page
  EXPECT_LT(driver.WriteTail(4).device_page, 0);
  EXPECT_EQ(driver->state(1), BlockState::kPublished);
  driver.RetireAll();
  EXPECT_EQ(driver.WriteTail(5).device_page, page);
  EXPECT_EQ(driver->state(1), BlockState::kHostOnly);
}

TEST(BlockManagerTest, SourcesAndDestinationsOfCopiesStayAllocated) {
  BlockManagerOptions options = SmallOptions();
  options.dram_pages[0] = options.dram_pages[1] = 1;
  options.cxl_pages[0] = options.cxl_pages[1] = 0;
  options.device_pages = options.device_low_watermark = 1;
  Driver driver(options);
  driver.NextStep();
  driver.WriteFull(1);
  driver.RetireAll();
  const CopyTask copy = driver->PlanPublish(1).at(0);
  driver.NextStep();
  driver->Free(1);
  EXPECT_EQ(driver->Stats().quarantined_pages[0][0], 1) << "the source";
  EXPECT_EQ(driver->Stats().copying_pages[Index(Tier::kDram)][0], 1) << "the destination";
  EXPECT_EQ(driver->PrepareWrite(2, 0, 1, 0, 1).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(driver->FinishCopy(copy).ok());
  EXPECT_EQ(driver->Stats().publishes_dropped, 1);
  EXPECT_GE(driver.WriteTail(2).device_page, 0);
  EXPECT_GE(driver.WriteTail(3).k.index, 0);
}

TEST(BlockManagerTest, RetirementNeverRunsAheadOfPlanningOrBack) {
  Driver driver;
  driver.NextStep();
  driver->RetireThrough(1000);
  driver->RetireThrough(0);
  driver.WriteFull(1);
  driver->Free(1);
  EXPECT_EQ(driver->Stats().quarantined_pages[0][0], 0) << "step 1 had retired";
  driver->BeginStep();
  driver.WriteFull(1);
  driver->Free(1);
  EXPECT_EQ(driver->Stats().quarantined_pages[0][0], 1) << "step 2 had not";
}

// ---------------------------------------------------------------------------------------------------------------------
// Publishing.

TEST(BlockManagerTest, OnlyFinalAndRetiredBlocksArePublished) {
  BlockManagerOptions options = SmallOptions();
  options.publish_lag_tokens = 3;
  options.device_low_watermark = 3;
  Driver driver(options);
  driver.NextStep();
  ASSERT_TRUE(driver->PrepareWrite(1, 0, kBlockSize, 0, 6).ok());  // 2 tokens behind the head
  EXPECT_TRUE(driver->PlanPublish(9).empty()) << "its step runs";
  driver.RetireAll();
  EXPECT_TRUE(driver->PlanPublish(9).empty()) << "the head is too near";
  driver.NextStep();
  ASSERT_TRUE(driver->Resolve(1, 0, 7).ok());
  EXPECT_EQ(driver->PlanPublish(9).size(), 1u) << "a reader does not matter";
  driver.NextStep();
  ASSERT_TRUE(driver->PrepareWrite(2, 0, kBlockSize - 1, 0, kLong).ok());
  driver.RetireAll();
  EXPECT_TRUE(driver->PlanPublish(9).empty()) << "not full";
  driver->MarkDead(2);
  const std::vector<CopyTask> dead = driver->PlanPublish(9);
  ASSERT_EQ(dead.size(), 1u) << "nobody can write it any more";
  EXPECT_EQ(dead[0].num_tokens, kBlockSize - 1);
}

TEST(BlockManagerTest, PublishingKeepsTheWatermarkOldestFirstProtectedLast) {
  BlockManagerOptions options = SmallOptions();
  options.device_pages = 8;
  options.device_low_watermark = 4;
  Driver driver(options);
  driver.NextStep();
  driver.WriteFull(1, /*sequence_block=*/0);  // a sink
  for (int32_t block = 2; block <= 6; ++block) driver.WriteFull(block, block);
  driver.RetireAll();
  std::vector<CopyTask> tasks = driver->PlanPublish(9);  // 2 free pages: 2 more are wanted
  ASSERT_EQ(tasks.size(), 2u);
  EXPECT_EQ(tasks[0].block, 2);
  EXPECT_EQ(tasks[1].block, 3);
  EXPECT_TRUE(driver->PlanPublish(9).empty()) << "copies in flight count";
  for (const CopyTask& task : tasks) ASSERT_TRUE(driver->FinishCopy(task).ok());
  EXPECT_TRUE(driver->PlanPublish(9).empty()) << "clean pages count";
  driver.NextStep();
  driver.WriteTail(7);
  driver.WriteTail(8);
  driver.RetireAll();
  tasks = driver->PlanPublish(1);
  ASSERT_EQ(tasks.size(), 1u) << "max_blocks";
  EXPECT_EQ(tasks[0].block, 4);
  EXPECT_EQ(driver->PlanPublish(9).at(0).block, 5);
  EXPECT_TRUE(driver->PlanPublish(0).empty());
  EXPECT_TRUE(driver->PlanPublish(-1).empty());
}

TEST(BlockManagerTest, AMovePublishReleasesTheDevicePage) {
  BlockManagerOptions options = SmallOptions();
  options.publish_mode = PublishMode::kMove;
  options.device_low_watermark = 0;
  Driver driver(options);
  driver.NextStep();
  driver.WriteFull(1);
  driver.WriteTail(2);
  driver.RetireAll();
  const std::vector<CopyTask> tasks = driver->PlanPublish(9);  // every final block, whatever the room
  ASSERT_EQ(tasks.size(), 1u);
  driver.NextStep();
  ASSERT_TRUE(driver->Resolve(1, 5, kLong).ok());
  ASSERT_TRUE(driver->FinishCopy(tasks[0]).ok());
  EXPECT_EQ(driver->state(1), BlockState::kHostOnly);
  EXPECT_EQ(driver->Stats().quarantined_pages[0][0], 1) << "the step that reads it has not retired";
  driver.RetireAll();
  EXPECT_EQ(driver->Stats().free_pages[0][0], 2);

  const CopyTask recall = driver->PlanRecall({1}, 1).at(0);
  ASSERT_TRUE(driver->FinishCopy(recall).ok());
  EXPECT_EQ(driver->state(1), BlockState::kDeviceDirty) << "one place only";
  EXPECT_EQ(driver->Stats().resident_pages[Index(Tier::kDram)][0], 0);
  driver.ExpectNothingLeaks();
}

TEST(BlockManagerTest, APublishStopsWhereTheHostIsFull) {
  BlockManagerOptions options = SmallOptions();
  options.dram_pages[0] = 1;
  options.dram_pages[1] = 3;
  options.cxl_pages[0] = options.cxl_pages[1] = 0;
  options.device_low_watermark = 3;
  Driver driver(options);
  driver.NextStep();
  for (int32_t block = 1; block <= 3; ++block) driver.WriteFull(block);
  driver.RetireAll();
  EXPECT_EQ(driver->PlanPublish(9).size(), 1u);
  EXPECT_EQ(driver->state(2), BlockState::kDeviceDirty);
  EXPECT_TRUE(driver->CheckInvariants().ok());
}

TEST(BlockManagerTest, AnOutdatedPublishDoesNotDisturbTheNextOne) {
  Driver driver;
  driver.NextStep();
  driver.WriteFull(1);
  driver.WriteTail(2);
  driver.RetireAll();
  const CopyTask first = driver->PlanPublish(1).at(0);
  driver.NextStep();
  ASSERT_TRUE(driver->PrepareWrite(1, 2, 2, 5, kLong).ok());
  driver.RetireAll();
  const CopyTask second = driver->PlanPublish(1).at(0);  // both copies read the same device page
  EXPECT_NE(first.id, second.id);
  EXPECT_EQ(first.device_page, second.device_page);
  EXPECT_NE(first.k.index, second.k.index);
  ASSERT_TRUE(driver->FinishCopy(first).ok());
  EXPECT_EQ(driver->state(1), BlockState::kPublishing);
  ASSERT_TRUE(driver->FinishCopy(second).ok());
  EXPECT_EQ(driver->state(1), BlockState::kPublished);
  EXPECT_EQ(driver->Where(1).k.index, second.k.index);
  EXPECT_EQ(driver->FinishCopy(first).code(), absl::StatusCode::kInvalidArgument) << "twice";
  driver.ExpectNothingLeaks();
}

// ---------------------------------------------------------------------------------------------------------------------
// Eviction, recall, migration.

// Publishes blocks 1 to `count` of a device that they fill; sequence positions as given.
void FillWithCleanBlocks(Driver& driver, const std::vector<int>& sequence_blocks) {
  driver.NextStep();
  for (size_t i = 0; i < sequence_blocks.size(); ++i) driver.WriteFull(1 + i, sequence_blocks[i]);
  driver.RetireAll();
  for (const CopyTask& task : driver->PlanPublish(100)) ASSERT_TRUE(driver->FinishCopy(task).ok());
  for (size_t i = 0; i < sequence_blocks.size(); ++i) ASSERT_EQ(driver->state(1 + i), BlockState::kPublished);
}

TEST(BlockManagerTest, EvictionFollowsTheOrder) {
  BlockManagerOptions options = SmallOptions();
  options.device_pages = options.device_low_watermark = 6;
  Driver driver(options);
  // 1: sink, 2 and 3: middle, 4: will be unused, 5: dead, 6: middle. Used by every step except 4.
  FillWithCleanBlocks(driver, {0, 2, 3, 4, 5, 6});
  for (int i = 0; i <= kRecentPlans; ++i) {
    driver.NextStep();
    for (const int32_t block : {1, 2, 3, 5, 6}) {
      const int sequence_block = block == 1 ? 0 : block;
      ASSERT_TRUE(driver->Resolve(block, sequence_block, kLong).ok());
    }
  }
  driver->MarkDead(5);
  driver.NextStep();
  int32_t next = 10;
  for (const int32_t victim : {5, 4, 2, 3, 6, 1}) {
    EXPECT_EQ(driver->state(victim), BlockState::kPublished) << victim;
    EXPECT_GE(driver.WriteTail(next++).device_page, 0);
    EXPECT_EQ(driver->state(victim), BlockState::kHostOnly) << victim;
  }
  EXPECT_LT(driver.WriteTail(next).device_page, 0);
  EXPECT_EQ(driver->Stats().evictions, 6);
}

TEST(BlockManagerTest, AReadMakesADeadBlockLiveAgain) {
  BlockManagerOptions options = SmallOptions();
  options.device_low_watermark = 3;
  Driver driver(options);
  FillWithCleanBlocks(driver, {2, 3, 4});
  driver->MarkDead(3);
  driver.NextStep();
  ASSERT_EQ(driver->Resolve(3, 4, kLong)->valid_tokens, kBlockSize) << "the content is kept";
  driver.NextStep();
  driver.WriteTail(10);
  EXPECT_EQ(driver->state(1), BlockState::kHostOnly) << "the oldest goes";
  EXPECT_EQ(driver->state(3), BlockState::kPublished);
}

TEST(BlockManagerTest, HostCopiesOfCleanBlocksMakeRoomWhenTheirDevicePagesCannot) {
  BlockManagerOptions options = SmallOptions();
  options.device_pages = options.device_low_watermark = 1;
  options.dram_pages[0] = options.dram_pages[1] = 1;
  options.cxl_pages[0] = options.cxl_pages[1] = 0;
  Driver driver(options);
  driver.NextStep();
  driver.WriteFull(1);
  driver.Publish(1);
  driver.NextStep();
  ASSERT_TRUE(driver->Resolve(1, 5, kLong).ok());
  driver->BeginStep();  // the reader still runs: the device page must stay, its copy need not
  EXPECT_GE(driver.WriteFull(2).k.index, 0);
  EXPECT_EQ(driver->state(1), BlockState::kDeviceDirty);
  EXPECT_EQ(driver->Stats().host_copies_dropped, 1);
  EXPECT_EQ(driver->PrepareWrite(3, 0, 1, 0, 1).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(BlockManagerTest, RecallsLeaveTheWatermarkFreeAndMayReplaceOnlyUnusedBlocks) {
  BlockManagerOptions options = SmallOptions();
  options.device_pages = 4;
  options.device_low_watermark = 2;
  Driver driver(options);
  driver.NextStep();
  for (const int32_t block : {20, 21, 22, 23}) driver.WriteTail(block);
  for (int32_t block = 1; block <= 4; ++block) driver.WriteFull(block);  // on the host
  EXPECT_TRUE(driver->PlanRecall({1, 2}, 9).empty()) << "the step that writes them runs";
  driver.NextStep();
  for (const int32_t block : {20, 21, 22}) driver->Free(block);
  EXPECT_TRUE(driver->PlanRecall({1, 2}, 0).empty());
  const std::vector<CopyTask> tasks = driver->PlanRecall({-1, 0, 99, 23, 19, 2, 2, 1}, 9);
  ASSERT_EQ(tasks.size(), 1u) << "3 free pages, 2 stay free";
  EXPECT_EQ(tasks[0].block, 2) << "the most wanted of those that can be recalled";
  ASSERT_TRUE(driver->FinishCopy(tasks[0]).ok());
  EXPECT_EQ(driver->state(2), BlockState::kPublished);
  EXPECT_GE(driver->Resolve(2, 5, kLong)->device_page, 0);

  driver.NextStep();
  EXPECT_TRUE(driver->PlanRecall({1}, 9).empty()) << "block 2 is in use";
  driver->MarkDead(2);
  const std::vector<CopyTask> more = driver->PlanRecall({2, 1, 3}, 9);
  ASSERT_EQ(more.size(), 1u);
  EXPECT_EQ(more[0].block, 1);
  EXPECT_EQ(driver->state(2), BlockState::kHostOnly) << "the dead block made room";
  EXPECT_TRUE(driver->CheckInvariants().ok());
}

TEST(BlockManagerTest, MigrationMovesOneRole) {
  Driver driver;
  driver.NextStep();
  for (int32_t block = 1; block <= 4; ++block) driver.WriteFull(block);
  EXPECT_EQ(driver->PlanMigrate(4, PageRole::kValue, Tier::kCxl).status().code(), absl::StatusCode::kFailedPrecondition)
      << "the step that writes it runs";
  driver.NextStep();
  const Residency before = driver->Resolve(4, 5, kLong).value();
  const CopyTask copy = driver->PlanMigrate(4, PageRole::kValue, Tier::kCxl).value();
  EXPECT_EQ(copy.k.index, -1);
  EXPECT_EQ(copy.from_v.index, before.v.index);
  EXPECT_EQ(driver->Resolve(4, 5, kLong)->v.tier, Tier::kDram) << "the old page serves until the copy is done";
  ASSERT_TRUE(driver->FinishCopy(copy).ok());
  EXPECT_EQ(driver->Where(4).v.tier, Tier::kCxl);
  EXPECT_EQ(driver->Where(4).v.index, copy.v.index);
  EXPECT_EQ(driver->Where(4).k.index, before.k.index);
  EXPECT_EQ(driver->Stats().quarantined_pages[Index(Tier::kDram)][1], 1) << "this step reads the old page";
  EXPECT_EQ(driver->Stats().quarantined_pages[Index(Tier::kDram)][0], 0);
  driver.ExpectNothingLeaks();
}

TEST(BlockManagerTest, MigrationIsRefusedWithAReason) {
  BlockManagerOptions options = SmallOptions();
  options.cxl_pages[0] = 0;
  Driver driver(options);
  driver.NextStep();
  for (int32_t block = 1; block <= 4; ++block) driver.WriteFull(block);
  driver.NextStep();
  const auto code = [&driver](int32_t block, PageRole role, Tier to) {
    return driver->PlanMigrate(block, role, to).status().code();
  };
  EXPECT_EQ(code(0, PageRole::kKey, Tier::kCxl), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(24, PageRole::kKey, Tier::kCxl), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(4, PageRole::kKey, Tier::kDevice), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(1, PageRole::kKey, Tier::kCxl), absl::StatusCode::kFailedPrecondition) << "on the device";
  EXPECT_EQ(code(4, PageRole::kKey, Tier::kDram), absl::StatusCode::kFailedPrecondition) << "already there";
  EXPECT_EQ(code(4, PageRole::kKey, Tier::kCxl), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(driver->state(4), BlockState::kHostOnly);
}

// ---------------------------------------------------------------------------------------------------------------------
// Creation.

TEST(BlockManagerTest, CreateRefusesImpossibleOptions) {
  const auto message = [](void (*change)(BlockManagerOptions&)) {
    BlockManagerOptions options = SmallOptions();
    change(options);
    const absl::Status status = BlockManager::Create(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_NE(message([](auto& o) { o.num_blocks = 0; }).find("num_blocks = 0"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.block_size = 0; }).find("block_size = 0"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.device_pages = -1; }).find("device_pages = -1"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.cxl_pages[1] = -2; }).find("cxl_pages[value] = -2"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.device_low_watermark = 4; }).find("device_low_watermark = 4"), std::string::npos);
  EXPECT_NE(message([](auto& o) {
              o.device_pages = o.device_low_watermark = 0;
              o.dram_pages[0] = o.cxl_pages[0] = 0;  // V pages alone hold no block
            }).find("no tier holds a block"),
            std::string::npos);
}

TEST(BlockManagerTest, TheScarcerRoleLimitsTheCapacity) {
  BlockManagerOptions options = SmallOptions();
  EXPECT_EQ(BlockCapacity(options), 3 + 20);
  options.cxl_pages[0] = 1;
  EXPECT_EQ(BlockCapacity(options), 3 + 9);
  options.dram_pages[1] = options.cxl_pages[1] = 0;
  EXPECT_EQ(BlockCapacity(options), 3);
}

}  // namespace
}  // namespace hybridgen
