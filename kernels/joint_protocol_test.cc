// Tests of the device's steps of the joint against scripted memory: what they do in which order, and how a wait ends.
#include "kernels/joint_protocol.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

// Follows a script: the words that polls see, each 10 ns after the one before; the last one for ever.
struct ScriptedOps {
  std::vector<uint64_t> words;
  std::string trace;
  std::vector<uint64_t*> stored;
  uint64_t polls = 0;
  uint64_t time_ns = 1000;

  void store(uint64_t* p, uint64_t v) {
    *p = v;
    stored.push_back(p);
    trace += 's';
  }
  uint64_t load_acquire_sys(const uint64_t*) { return words[polls++ < words.size() ? polls - 1 : words.size() - 1]; }
  void store_release_sys(uint64_t* p, uint64_t v) {
    *p = v;
    trace += 'R';
  }
  void fence_sys() { trace += 'F'; }
  uint64_t now_ns() { return time_ns; }
  void pause() { time_ns += 10; }
};

constexpr uint64_t kUntouched = 0xabcdef;

// A joint of two slots of 8 words; the step's first call is 10.
struct Fixture {
  Fixture() {
    control.published.value = kUntouched;
    table.control = &control;
    table.plan = &plan;
    table.slots = reinterpret_cast<unsigned char*>(slots);
    table.slot_bytes = sizeof(slots) / 2;
  }
  JointOutcome Wait(uint32_t call, std::vector<uint64_t> words) {
    ops.words = std::move(words);
    return JointWait(ops, table, call);
  }

  JointControl control = {};
  JointPlan plan = {10, 100, 1};
  uint64_t slots[16] = {};
  JointTable table = {};
  ScriptedOps ops;
};

uint64_t Answered(uint64_t sequence) { return JointWord(JointState::kAnswered, sequence); }

TEST(JointProtocolTest, AWordHoldsStateAndSequence) {
  for (uint64_t sequence : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, (uint64_t{1} << 56) - 1}) {
    for (JointState state : {JointState::kAnswered, JointState::kError}) {
      EXPECT_EQ(JointWordSequence(JointWord(state, sequence)), sequence);
      EXPECT_EQ(JointWordState(JointWord(state, sequence)), state);
    }
  }
}

TEST(JointProtocolTest, EveryThreadFencesItsPartOfTheQueryAndOneStoresTheSequence) {
  Fixture f;
  f.plan.runs = 0;
  const uint64_t query[] = {1, 2, 3, 4, 5};
  for (uint32_t thread = 0; thread < 3; ++thread) JointStoreQuery(f.ops, f.table, 0, query, 5, thread, 3);
  EXPECT_EQ(f.ops.trace, "ssFssFsF");
  EXPECT_EQ(f.control.published.value, kUntouched);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(f.slots[i], query[i]);
  JointPublish(f.ops, f.table, 0);
  EXPECT_EQ(f.ops.trace, "ssFssFsFR");
  EXPECT_EQ(f.control.published.value, 10u);
  // The next call has the other parity, hence the other slot.
  JointStoreQuery(f.ops, f.table, 1, query, 1, 0, 1);
  EXPECT_EQ(f.ops.stored.back(), f.slots + 8);
  JointPublish(f.ops, f.table, 1);
  EXPECT_EQ(f.control.published.value, 11u);
}

TEST(JointProtocolTest, AWaitEndsWithTheAnswerOfItsOwnCall) {
  Fixture f;
  EXPECT_EQ(f.Wait(3, {Answered(11), Answered(11), Answered(13)}), JointOutcome::kAnswered);
  EXPECT_EQ(f.ops.polls, 3u);
  EXPECT_EQ(f.control.device_failure.value, 0u);
}

TEST(JointProtocolTest, AnyErrorEndsAWaitAndIsReported) {
  for (uint64_t sequence : {9, 12, 13, 14}) {
    Fixture f;
    EXPECT_EQ(f.Wait(3, {Answered(11), JointWord(JointState::kError, sequence)}), JointOutcome::kWorkerFailed);
    EXPECT_EQ(f.control.device_failure.value, JointWord(JointState::kError, 13));
  }
}

TEST(JointProtocolTest, AWaitEndsAtItsDeadline) {
  Fixture f;
  EXPECT_EQ(f.Wait(3, {Answered(11)}), JointOutcome::kDeadline);
  EXPECT_EQ(f.ops.time_ns, 1100u);  // 100 ns after its start, neither earlier nor later
  EXPECT_EQ(f.control.device_failure.value, JointWord(JointState::kError, 13));
  // An answer at the last poll still counts.
  Fixture late;
  std::vector<uint64_t> words(10, Answered(11));
  words.push_back(Answered(13));
  EXPECT_EQ(late.Wait(3, words), JointOutcome::kAnswered);
}

TEST(JointProtocolTest, ALaterCallInTheSlotIsAnError) {
  Fixture f;
  EXPECT_EQ(f.Wait(3, {Answered(15)}), JointOutcome::kOutOfOrder);
  EXPECT_EQ(f.control.device_failure.value, JointWord(JointState::kError, 13));
}

TEST(JointProtocolTest, AnIdlePlanNeitherPublishesNorWaits) {
  Fixture f;
  f.plan = {kJointIdle, 0, 0};
  const uint64_t query[] = {1};
  for (int run = 0; run < 2; ++run) {
    JointStoreQuery(f.ops, f.table, 0, query, 1, 0, 1);
    JointPublish(f.ops, f.table, 0);
    EXPECT_EQ(f.Wait(0, {}), JointOutcome::kAnswered);
  }
  EXPECT_EQ(f.ops.trace, "");
  EXPECT_EQ(f.control.published.value, kUntouched);
}

TEST(JointProtocolTest, WithoutAPlanNothingIsPublishedAndAWaitIsAnError) {
  Fixture f;
  f.plan = {};
  JointPublish(f.ops, f.table, 0);
  EXPECT_EQ(f.control.published.value, kUntouched);
  EXPECT_EQ(f.Wait(0, {Answered(0)}), JointOutcome::kOutOfOrder);
}

TEST(JointProtocolTest, APlanIsGoodForOneRun) {
  Fixture f;
  f.plan.runs = 0;
  JointPublish(f.ops, f.table, 0);
  EXPECT_EQ(f.Wait(0, {Answered(10)}), JointOutcome::kAnswered);
  // The graph is replayed without a copy of the next plan: the slot still holds the answer of the first run.
  f.control.published.value = kUntouched;
  JointPublish(f.ops, f.table, 0);
  EXPECT_EQ(f.control.published.value, kUntouched);
  EXPECT_EQ(f.Wait(0, {Answered(10)}), JointOutcome::kOutOfOrder);
}

}  // namespace
}  // namespace hybridgen
