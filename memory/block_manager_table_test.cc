// Test of every cell of the state table in docs/block_manager.md.
#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/block_manager.h"
#include "memory/block_manager_driver.h"

namespace hybridgen {
namespace {

// Block 1 is brought into a state, one operation follows.

constexpr int32_t kBlock = 1;

enum class Op {
  kReuse,  // write at offset 0
  kWrite,  // write at an offset > 0
  kRead,
  kMarkDead,
  kFree,
  kPressure,  // more new blocks than free device pages
  kPlanPublish,
  kPlanRecall,
  kPlanMigrate,
  kFinish,   // the copy in flight is done
  kAbandon,  // the copy in flight is given up
  kRetire,
};
constexpr const char* kOpNames[] = {"Reuse",       "Write",      "Read",        "MarkDead", "Free",    "Pressure",
                                    "PlanPublish", "PlanRecall", "PlanMigrate", "Finish",   "Abandon", "Retire"};

enum class Generation { kSame, kRises };
enum class Copy { kNone, kApplied, kDropped };  // what becomes of the copy in flight

struct Cell {
  BlockState from;
  Op op;
  BlockState to;
  Generation generation;
  Copy copy;
};

constexpr BlockState kFree = BlockState::kFree, kDirty = BlockState::kDeviceDirty,
                     kPublishing = BlockState::kPublishing, kPublished = BlockState::kPublished,
                     kHost = BlockState::kHostOnly, kRecalling = BlockState::kRecalling,
                     kMigrating = BlockState::kMigrating;
constexpr Generation kSame = Generation::kSame, kRises = Generation::kRises;

const Cell kCells[] = {
    {kFree, Op::kReuse, kDirty, kRises, Copy::kNone},
    {kFree, Op::kRead, kFree, kSame, Copy::kNone},
    {kFree, Op::kMarkDead, kFree, kSame, Copy::kNone},
    {kFree, Op::kFree, kFree, kRises, Copy::kNone},
    {kFree, Op::kPressure, kFree, kSame, Copy::kNone},
    {kFree, Op::kPlanPublish, kFree, kSame, Copy::kNone},
    {kFree, Op::kPlanRecall, kFree, kSame, Copy::kNone},
    {kFree, Op::kPlanMigrate, kFree, kSame, Copy::kNone},
    {kFree, Op::kRetire, kFree, kSame, Copy::kNone},

    {kDirty, Op::kReuse, kDirty, kRises, Copy::kNone},
    {kDirty, Op::kWrite, kDirty, kRises, Copy::kNone},
    {kDirty, Op::kRead, kDirty, kSame, Copy::kNone},
    {kDirty, Op::kMarkDead, kDirty, kSame, Copy::kNone},
    {kDirty, Op::kFree, kFree, kRises, Copy::kNone},
    {kDirty, Op::kPressure, kDirty, kSame, Copy::kNone},
    {kDirty, Op::kPlanPublish, kPublishing, kSame, Copy::kApplied},
    {kDirty, Op::kPlanRecall, kDirty, kSame, Copy::kNone},
    {kDirty, Op::kPlanMigrate, kDirty, kSame, Copy::kNone},
    {kDirty, Op::kRetire, kDirty, kSame, Copy::kNone},

    {kPublishing, Op::kReuse, kDirty, kRises, Copy::kDropped},
    {kPublishing, Op::kWrite, kDirty, kRises, Copy::kDropped},
    {kPublishing, Op::kRead, kPublishing, kSame, Copy::kApplied},
    {kPublishing, Op::kMarkDead, kPublishing, kSame, Copy::kApplied},
    {kPublishing, Op::kFree, kFree, kRises, Copy::kDropped},
    {kPublishing, Op::kPressure, kPublishing, kSame, Copy::kApplied},
    {kPublishing, Op::kPlanPublish, kPublishing, kSame, Copy::kApplied},
    {kPublishing, Op::kPlanRecall, kPublishing, kSame, Copy::kApplied},
    {kPublishing, Op::kPlanMigrate, kPublishing, kSame, Copy::kApplied},
    {kPublishing, Op::kFinish, kPublished, kSame, Copy::kApplied},
    {kPublishing, Op::kAbandon, kDirty, kSame, Copy::kDropped},
    {kPublishing, Op::kRetire, kPublishing, kSame, Copy::kApplied},

    {kPublished, Op::kReuse, kDirty, kRises, Copy::kNone},
    {kPublished, Op::kWrite, kDirty, kRises, Copy::kNone},
    {kPublished, Op::kRead, kPublished, kSame, Copy::kNone},
    {kPublished, Op::kMarkDead, kPublished, kSame, Copy::kNone},
    {kPublished, Op::kFree, kFree, kRises, Copy::kNone},
    {kPublished, Op::kPressure, kHost, kSame, Copy::kNone},
    {kPublished, Op::kPlanPublish, kPublished, kSame, Copy::kNone},
    {kPublished, Op::kPlanRecall, kPublished, kSame, Copy::kNone},
    {kPublished, Op::kPlanMigrate, kPublished, kSame, Copy::kNone},
    {kPublished, Op::kRetire, kPublished, kSame, Copy::kNone},

    {kHost, Op::kReuse, kDirty, kRises, Copy::kNone},
    {kHost, Op::kWrite, kHost, kRises, Copy::kNone},
    {kHost, Op::kRead, kHost, kSame, Copy::kNone},
    {kHost, Op::kMarkDead, kHost, kSame, Copy::kNone},
    {kHost, Op::kFree, kFree, kRises, Copy::kNone},
    {kHost, Op::kPressure, kHost, kSame, Copy::kNone},
    {kHost, Op::kPlanPublish, kHost, kSame, Copy::kNone},
    {kHost, Op::kPlanRecall, kRecalling, kSame, Copy::kApplied},
    {kHost, Op::kPlanMigrate, kMigrating, kSame, Copy::kApplied},
    {kHost, Op::kRetire, kHost, kSame, Copy::kNone},

    {kRecalling, Op::kReuse, kDirty, kRises, Copy::kDropped},
    {kRecalling, Op::kWrite, kHost, kRises, Copy::kDropped},
    {kRecalling, Op::kRead, kRecalling, kSame, Copy::kApplied},
    {kRecalling, Op::kMarkDead, kRecalling, kSame, Copy::kApplied},
    {kRecalling, Op::kFree, kFree, kRises, Copy::kDropped},
    {kRecalling, Op::kPressure, kRecalling, kSame, Copy::kApplied},
    {kRecalling, Op::kPlanPublish, kRecalling, kSame, Copy::kApplied},
    {kRecalling, Op::kPlanRecall, kRecalling, kSame, Copy::kApplied},
    {kRecalling, Op::kPlanMigrate, kRecalling, kSame, Copy::kApplied},
    {kRecalling, Op::kFinish, kPublished, kSame, Copy::kApplied},
    {kRecalling, Op::kAbandon, kHost, kSame, Copy::kDropped},
    {kRecalling, Op::kRetire, kRecalling, kSame, Copy::kApplied},

    {kMigrating, Op::kReuse, kDirty, kRises, Copy::kDropped},
    {kMigrating, Op::kWrite, kHost, kRises, Copy::kDropped},
    {kMigrating, Op::kRead, kMigrating, kSame, Copy::kApplied},
    {kMigrating, Op::kMarkDead, kMigrating, kSame, Copy::kApplied},
    {kMigrating, Op::kFree, kFree, kRises, Copy::kDropped},
    {kMigrating, Op::kPressure, kMigrating, kSame, Copy::kApplied},
    {kMigrating, Op::kPlanPublish, kMigrating, kSame, Copy::kApplied},
    {kMigrating, Op::kPlanRecall, kMigrating, kSame, Copy::kApplied},
    {kMigrating, Op::kPlanMigrate, kMigrating, kSame, Copy::kApplied},
    {kMigrating, Op::kFinish, kHost, kSame, Copy::kApplied},
    {kMigrating, Op::kAbandon, kHost, kSame, Copy::kDropped},
    {kMigrating, Op::kRetire, kMigrating, kSame, Copy::kApplied},
};

class StateTableTest : public ::testing::TestWithParam<Cell> {
 protected:
  // Leaves block 1 in `state`, all steps retired, and the copy that the state implies in copy_.
  void Enter(BlockState state) {
    driver_.NextStep();
    switch (state) {
      case kFree:
        break;
      case kDirty:
        driver_.WriteFull(kBlock);
        driver_.WriteTail(20);  // leaves one free page: below the watermark
        break;
      case kPublishing:
        Enter(kDirty);
        copy_ = driver_->PlanPublish(1).at(0);
        break;
      case kPublished:
        Enter(kPublishing);
        ASSERT_TRUE(driver_->FinishCopy(copy_).ok());
        copy_ = CopyTask();
        break;
      case kHost:
        for (const int32_t block : {20, 21, 22}) driver_.WriteTail(block);
        driver_.WriteFull(kBlock);
        for (const int32_t block : {20, 21, 22}) driver_->Free(block);
        break;
      case kRecalling:
        Enter(kHost);
        copy_ = driver_->PlanRecall({kBlock}, 1).at(0);
        break;
      case kMigrating:
        Enter(kHost);
        copy_ = driver_->PlanMigrate(kBlock, PageRole::kKey, Tier::kCxl).value();
        break;
    }
    driver_.RetireAll();
    ASSERT_EQ(BlockStateName(driver_->state(kBlock)), BlockStateName(state));
  }

  void Apply(Op op) {
    driver_.NextStep();
    switch (op) {
      case Op::kReuse:
        driver_.WriteFull(kBlock);
        break;
      case Op::kWrite: {
        const Residency before = driver_->Where(kBlock);
        const Residency where = driver_->PrepareWrite(kBlock, 2, 1, 5, kLong).value();
        EXPECT_EQ(where.valid_tokens, 3);
        EXPECT_EQ(where.device_page, before.device_page) << "a write at an offset > 0 happens in place";
        if (before.device_page < 0) {
          EXPECT_EQ(where.k.index, before.k.index);
          EXPECT_EQ(where.v.index, before.v.index);
        }
        break;
      }
      case Op::kRead: {
        const Residency where = driver_->Resolve(kBlock, 5, kLong).value();
        const bool device =
            GetParam().from == kDirty || GetParam().from == kPublishing || GetParam().from == kPublished;
        const bool host = !device && GetParam().from != kFree;
        EXPECT_EQ(where.device_page >= 0, device);
        EXPECT_EQ(where.k.index >= 0, host);
        EXPECT_EQ(where.v.index >= 0, host);
        EXPECT_EQ(where.valid_tokens, GetParam().from == kFree ? 0 : kBlockSize);
        break;
      }
      case Op::kMarkDead:
        driver_->MarkDead(kBlock);
        break;
      case Op::kFree:
        driver_->Free(kBlock);
        break;
      case Op::kPressure:
        for (const int32_t block : {10, 11, 12, 13}) driver_.WriteTail(block);
        break;
      case Op::kPlanPublish:
        for (const CopyTask& task : driver_->PlanPublish(1)) copy_ = task;
        break;
      case Op::kPlanRecall:
        for (const CopyTask& task : driver_->PlanRecall({kBlock}, 1)) copy_ = task;
        break;
      case Op::kPlanMigrate: {
        const absl::StatusOr<CopyTask> task = driver_->PlanMigrate(kBlock, PageRole::kValue, Tier::kCxl);
        if (task.ok()) copy_ = *task;
        if (!task.ok()) {
          EXPECT_EQ(task.status().code(), absl::StatusCode::kFailedPrecondition);
        }
        break;
      }
      case Op::kFinish:
        Finish();
        break;
      case Op::kAbandon:
        copy_.outcome = CopyOutcome::kAbandoned;
        Finish();
        break;
      case Op::kRetire:
        driver_.RetireAll();
        break;
    }
  }

  void Finish() {
    if (copy_.id == 0) return;
    EXPECT_TRUE(driver_->FinishCopy(copy_).ok());
    copy_ = CopyTask();
  }

  Driver driver_;
  CopyTask copy_;  // id 0: none in flight
};

TEST_P(StateTableTest, FollowsTheTable) {
  const Cell& cell = GetParam();
  Enter(cell.from);
  ASSERT_FALSE(HasFatalFailure());
  const uint32_t generation = driver_->generation(kBlock);
  Apply(cell.op);
  EXPECT_EQ(BlockStateName(driver_->state(kBlock)), BlockStateName(cell.to));
  EXPECT_EQ(driver_->generation(kBlock) != generation, cell.generation == kRises);
  EXPECT_TRUE(driver_->CheckInvariants().ok()) << driver_->CheckInvariants();

  const BlockState before_finish = driver_->state(kBlock);
  const Residency pages = driver_->Where(kBlock);
  Finish();
  const BlockManagerStats stats = driver_->Stats();
  const int64_t applied = stats.publishes + stats.recalls + stats.migrations;
  const int64_t dropped = stats.publishes_dropped + stats.recalls_dropped + stats.migrations_dropped;
  EXPECT_EQ(dropped, cell.copy == Copy::kDropped ? 1 : 0);
  EXPECT_EQ(applied, (cell.copy == Copy::kApplied ? 1 : 0) + (cell.from == kPublished ? 1 : 0));
  if (cell.copy == Copy::kDropped) {  // the block does not notice
    EXPECT_EQ(BlockStateName(driver_->state(kBlock)), BlockStateName(before_finish));
    EXPECT_EQ(driver_->Where(kBlock).device_page, pages.device_page);
    EXPECT_EQ(driver_->Where(kBlock).k.index, pages.k.index);
  }
  EXPECT_TRUE(driver_->CheckInvariants().ok()) << driver_->CheckInvariants();
  driver_.ExpectNothingLeaks();
}

INSTANTIATE_TEST_SUITE_P(AllCells, StateTableTest, ::testing::ValuesIn(kCells), [](const auto& info) {
  std::string name = absl::StrCat(BlockStateName(info.param.from), "_", kOpNames[static_cast<int>(info.param.op)]);
  name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
  return name;
});

TEST(StateTableCoverageTest, EveryCellThatCanHappenIsListedOnce) {
  std::map<std::pair<BlockState, Op>, int> listed;
  for (const Cell& cell : kCells) ++listed[{cell.from, cell.op}];
  for (int state = 0; state < kNumBlockStates; ++state) {
    for (int op = 0; op <= static_cast<int>(Op::kRetire); ++op) {
      const BlockState from = static_cast<BlockState>(state);
      const bool in_flight = from == kPublishing || from == kRecalling || from == kMigrating;
      int expected = 1;
      const bool ends_copy = op == static_cast<int>(Op::kFinish) || op == static_cast<int>(Op::kAbandon);
      if (ends_copy && !in_flight) expected = 0;                              // nothing to finish
      if (op == static_cast<int>(Op::kWrite) && from == kFree) expected = 0;  // a hole: refused, see below
      EXPECT_EQ((listed[{from, static_cast<Op>(op)}]), expected) << BlockStateName(from) << " " << kOpNames[op];
    }
  }
}

}  // namespace
}  // namespace hybridgen
