// Tests of the watchdog: its judgement on an injected clock, and that its thread acts on it.
#include "backend/joint_watchdog.h"

#include <atomic>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

using Kind = JointVerdict::Kind;

struct Fixture {
  void Publish(uint64_t sequence) {
    __atomic_store_n(&memory->table().control->published.value, sequence, __ATOMIC_RELEASE);
  }
  std::shared_ptr<JointMemory> memory = *JointMemory::Create({8, 8, 8}, AllocatePlainJointMemory);
};

TEST(JointDeadlineTest, ACallIsLateOnlyWhenItsOwnTimeIsUp) {
  Fixture f;
  JointDeadline deadline(100);
  EXPECT_EQ(deadline.Look(*f.memory, 1000).kind, Kind::kFine);
  EXPECT_EQ(deadline.Look(*f.memory, 5000).kind, Kind::kFine) << "nothing is published";
  f.Publish(2);
  EXPECT_EQ(deadline.Look(*f.memory, 5100).kind, Kind::kFine) << "time runs from here";
  EXPECT_EQ(deadline.Look(*f.memory, 5199).kind, Kind::kFine);
  ASSERT_TRUE(f.memory->Answer(2));
  f.Publish(4);  // two calls open: each has its own time
  EXPECT_EQ(deadline.Look(*f.memory, 5200).kind, Kind::kFine);
  ASSERT_TRUE(f.memory->Answer(3));
  EXPECT_EQ(deadline.Look(*f.memory, 5300).kind, Kind::kFine) << "the time of call 4 runs from here";
  EXPECT_EQ(deadline.Look(*f.memory, 5399).kind, Kind::kFine);
  const JointVerdict late = deadline.Look(*f.memory, 5400);
  EXPECT_EQ(late.kind, Kind::kWorkerLate);
  EXPECT_EQ(late.sequence, 4u);
}

TEST(JointDeadlineTest, AFailedDeviceIsSeen) {
  Fixture f;
  f.memory->table().control->device_failure.value = JointWord(JointState::kError, 7);
  const JointVerdict verdict = JointDeadline(100).Look(*f.memory, 0);
  EXPECT_EQ(verdict.kind, Kind::kDeviceGaveUp);
  EXPECT_EQ(verdict.sequence, 7u);
}

TEST(JointWatchdogTest, ReportsUntilTheJointIsDead) {
  Fixture f;
  std::atomic<int64_t> now{0};
  std::atomic<int> verdicts{0};
  std::atomic<uint64_t> blamed{0};
  JointWatchdogOptions options;
  options.timeout = absl::Seconds(3);
  options.tick = absl::Microseconds(100);
  options.now_ns = [&] { return now += 1'000'000'000; };  // each look is a second later
  options.on_verdict = [&](const JointVerdict& verdict) {
    blamed = verdict.sequence;
    return ++verdicts == 2;  // the first time the answer "came at the last moment"
  };
  std::unique_ptr<JointWatchdog> watchdog = *JointWatchdog::Create(f.memory, options);
  watchdog->WatchThrough(2);
  f.Publish(2);
  while (verdicts < 2) std::this_thread::yield();
  EXPECT_EQ(blamed, 2u);
  watchdog.reset();
  EXPECT_EQ(verdicts, 2);
}

}  // namespace
}  // namespace hybridgen
