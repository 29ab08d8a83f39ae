// Tests of the dispatcher: order, refusals, and every way in which it can die. The test plays the device, one flag at a
// time; tests/joint has a device with a write buffer.
#include "backend/joint_dispatcher.h"

#include <atomic>
#include <future>
#include <vector>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

JointOptions Options() {
  JointOptions options;
  options.bytes = {8, 8, 8};
  options.worker_timeout = absl::Minutes(10);
  options.device_timeout = absl::Minutes(20);
  return options;
}

absl::Status Nothing(const JointCall&) { return absl::OkStatus(); }

void Publish(const JointDispatcher& joint, uint64_t sequence) {
  __atomic_store_n(&joint.memory().table().control->published.value, sequence, __ATOMIC_RELEASE);
}

uint64_t AnswerWord(const JointDispatcher& joint, uint64_t sequence) {
  return __atomic_load_n(&joint.memory().table().control->answer[sequence & 1].value, __ATOMIC_ACQUIRE);
}

void AwaitAnswer(const JointDispatcher& joint, uint64_t sequence) {
  while (joint.memory().Answered() < sequence) std::this_thread::yield();
}

void AwaitDeath(const JointDispatcher& joint) {
  while (joint.status().ok()) std::this_thread::yield();
}

TEST(JointDispatcherTest, OptionsAreChecked) {
  JointOptions options = Options();
  options.bytes.o = 0;
  EXPECT_EQ(JointDispatcher::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  options = Options();
  options.device_timeout = options.worker_timeout;
  EXPECT_EQ(JointDispatcher::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  options = Options();
  options.worker_timeout = absl::ZeroDuration();
  EXPECT_EQ(JointDispatcher::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  options = Options();
  options.spin = absl::Seconds(1);
  EXPECT_EQ(JointDispatcher::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  options = Options();
  options.cpu = -2;
  EXPECT_EQ(JointDispatcher::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(JointDispatcherTest, AnswersEachCallOnceInOrder) {
  for (absl::Duration spin : {absl::ZeroDuration(), absl::Microseconds(50)}) {
    JointOptions options = Options();
    options.spin = spin;
    options.cpu = spin == absl::ZeroDuration() ? -1 : 0;
    std::unique_ptr<JointDispatcher> joint = *JointDispatcher::Create(options);
    std::vector<std::pair<uint64_t, int>> seen;  // plain: the answers order it
    uint64_t next = kJointFirstSequence;
    for (int step = 0; step < 200; ++step) {
      const int calls = 1 + step % 3;
      absl::StatusOr<const JointPlan*> plan = joint->BeginStep(calls, [&](const JointCall& call) {
        seen.push_back({call.sequence, call.index});
        *call.o = static_cast<float>(*static_cast<const uint64_t*>(call.query));
        return absl::OkStatus();
      });
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_EQ((*plan)->first_sequence, next);
      for (int i = 0; i < calls; ++i, ++next) {
        *static_cast<uint64_t*>(const_cast<void*>(joint->memory().Query(next))) = next * 3;
        Publish(*joint, next);
        AwaitAnswer(*joint, next);
        ASSERT_EQ(seen.size(), next - 1);
        EXPECT_EQ(seen.back(), std::make_pair(next, i));
        EXPECT_EQ(*joint->memory().PartialO(next), static_cast<float>(next * 3));
      }
      // The answer is visible before the step is off the list: at most one step lingers, which is within the limit.
    }
    EXPECT_TRUE(joint->status().ok());
  }
}

TEST(JointDispatcherTest, TwoStepsMayBeInFlight) {
  std::unique_ptr<JointDispatcher> joint = *JointDispatcher::Create(Options());
  EXPECT_EQ(joint->BeginStep(0, Nothing).status().code(), absl::StatusCode::kInvalidArgument);
  const JointPlan* first = *joint->BeginStep(2, Nothing);
  const JointPlan* second = *joint->BeginStep(1, Nothing);
  EXPECT_NE(first, second);
  EXPECT_EQ(first->first_sequence, 2u);
  EXPECT_EQ(second->first_sequence, 4u);
  EXPECT_EQ(joint->BeginStep(1, Nothing).status().code(), absl::StatusCode::kFailedPrecondition);
  Publish(*joint, 3);  // both calls of the first step
  AwaitAnswer(*joint, 3);
  absl::StatusOr<const JointPlan*> third = joint->BeginStep(1, Nothing);
  while (!third.ok()) third = joint->BeginStep(1, Nothing);  // until the thread has taken the step off its list
  EXPECT_EQ(*third, first);
  EXPECT_EQ((*third)->first_sequence, 5u);
  Publish(*joint, 5);
  AwaitAnswer(*joint, 5);
}

TEST(JointDispatcherTest, AFailedWorkerEndsTheJoint) {
  std::unique_ptr<JointDispatcher> joint = *JointDispatcher::Create(Options());
  ASSERT_TRUE(joint
                  ->BeginStep(3,
                              [](const JointCall& call) {
                                return call.index < 1 ? absl::OkStatus()
                                                      : absl::InvalidArgumentError("a logit is +inf");
                              })
                  .ok());
  Publish(*joint, 2);
  AwaitAnswer(*joint, 2);
  Publish(*joint, 3);
  AwaitDeath(*joint);
  EXPECT_EQ(joint->status().code(), absl::StatusCode::kInvalidArgument) << joint->status();
  EXPECT_EQ(AnswerWord(*joint, 3), JointWord(JointState::kError, 3));
  EXPECT_EQ(AnswerWord(*joint, 4), JointWord(JointState::kError, 3));
  const absl::Status refused = joint->BeginStep(1, Nothing).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(refused.message().find("+inf"), std::string::npos) << refused;
}

TEST(JointDispatcherTest, ADeviceOutOfOrderEndsTheJoint) {
  std::unique_ptr<JointDispatcher> joint = *JointDispatcher::Create(Options());
  ASSERT_TRUE(joint->BeginStep(8, Nothing).ok());
  Publish(*joint, 4);  // calls 2 and 3 are not answered
  AwaitDeath(*joint);
  EXPECT_EQ(joint->status().code(), absl::StatusCode::kInternal) << joint->status();
}

TEST(JointDispatcherTest, AFailedDeviceIsReportedByTheNextStep) {
  std::unique_ptr<JointDispatcher> joint = *JointDispatcher::Create(Options());
  joint->memory().table().control->device_failure.value = JointWord(JointState::kError, 2);
  EXPECT_EQ(joint->BeginStep(1, Nothing).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(joint->status().code(), absl::StatusCode::kDeadlineExceeded) << joint->status();
  EXPECT_EQ(JointWordState(AnswerWord(*joint, 2)), JointState::kError);
}

TEST(JointDispatcherTest, AStuckWorkerEndsTheJointAndIsAbandoned) {
  // Outlives the joint: the stuck worker is abandoned, not joined.
  static std::promise<void>* const release = new std::promise<void>();
  static std::shared_future<void>* const released = new std::shared_future<void>(release->get_future());
  static std::atomic<int64_t>* const now = new std::atomic<int64_t>(0);
  static std::atomic<int>* const place = new std::atomic<int>(0);
  JointOptions options = Options();
  options.now_ns = [] { return now->load(); };
  options.worker_timeout = absl::Milliseconds(20);  // of the injected clock; the watchdog looks every 1.25 real ms
  std::weak_ptr<void> memory;
  options.allocate = [&](size_t bytes) {
    auto region = AllocatePlainJointMemory(bytes);
    memory = *region;
    return region;
  };
  // The store fence is the moment between data and flag.
  options.publish_stores = [] { *place = 2; };
  {
    std::unique_ptr<JointDispatcher> joint = *JointDispatcher::Create(options);
    ASSERT_TRUE(joint
                    ->BeginStep(1,
                                [](const JointCall& call) {
                                  *place = 1;
                                  released->wait();
                                  *call.o = 7;  // a late writer
                                  return absl::OkStatus();
                                })
                    .ok());
    Publish(*joint, 2);
    while (*place != 1) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // looks that must not find it late
    EXPECT_TRUE(joint->status().ok());
    while (joint->status().ok()) {
      *now += 10'000'000;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    EXPECT_EQ(joint->status().code(), absl::StatusCode::kDeadlineExceeded) << joint->status();
    EXPECT_EQ(AnswerWord(*joint, 2), JointWord(JointState::kError, 2));
  }
  EXPECT_FALSE(memory.expired()) << "the late writer still needs it";
  release->set_value();
  while (!memory.expired()) std::this_thread::yield();
  EXPECT_EQ(*place, 2);
}

TEST(JointDispatcherTest, AStepInFlightIsCancelledByTheEnd) {
  std::shared_ptr<void> memory;
  JointOptions options = Options();
  options.allocate = [&](size_t bytes) {
    memory = *AllocatePlainJointMemory(bytes);
    return absl::StatusOr<std::shared_ptr<void>>(memory);
  };
  std::unique_ptr<JointDispatcher> joint = *JointDispatcher::Create(options);
  ASSERT_TRUE(joint->BeginStep(2, Nothing).ok());
  joint.reset();
  for (const JointFlag& flag : static_cast<JointControl*>(memory.get())->answer) {
    EXPECT_EQ(flag.value, JointWord(JointState::kError, 2));
  }
}

}  // namespace
}  // namespace hybridgen
