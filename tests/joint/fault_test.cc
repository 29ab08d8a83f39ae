// The joint when something dies: a worker that is stuck or killed at each place of a call, a host that is gone, a
// device that stops. Always: the error within the limit of an injected clock, and no token of the failed step or a
// later one.
#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"
#include "tests/joint/hybrid_model.h"

namespace hybridgen {
namespace {

// A worker that stops for good at one place of one call; "killed" is the same without the end.
struct Trouble {
  int step = 0;
  int layer = 0;
  Place place = Place::kBeforeWork;
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::atomic<bool> stuck{false};
  std::atomic<bool> ended{false};  // it came back, too late

  void At(int at_step, int at_layer, Place at) {
    if (at_step != step || at_layer != layer) return;
    if (at == place) {
      stuck = true;
      released.wait();
    }
    if (at == Place::kBeforeAnswer) ended = true;
  }
};

struct Fault {
  HybridCase c;
  std::shared_ptr<Trouble> trouble = std::make_shared<Trouble>();
  std::shared_ptr<std::atomic<int64_t>> host_ns = std::make_shared<std::atomic<int64_t>>(0);
  HybridOptions options;

  explicit Fault(uint64_t seed) : c(RandomCase(seed)) {
    std::mt19937_64 rng(seed);
    c.executor = false;
    trouble->step = static_cast<int>(rng() % c.steps.size());
    trouble->layer = static_cast<int>(rng() % c.layers);
    trouble->place = static_cast<Place>(rng() % 4);
    c.steps[trouble->step] = true;
    options.at = [t = trouble](int step, int layer, Place place) { t->At(step, layer, place); };
    options.host_now_ns = [ns = host_ns] { return ns->load(); };
    // The device's clock stands: only the watchdog's word can end its wait.
    options.device_now_ns = [] { return uint64_t{0}; };
    options.worker_timeout = absl::Milliseconds(20);
    options.device_timeout = absl::Milliseconds(40);
  }
  std::string ToString() const {
    return absl::StrCat(c.ToString(), "; stuck in step ", trouble->step, " layer ", trouble->layer, " place ",
                        static_cast<int>(trouble->place));
  }
  // Advances the host's clock, which began at 0, until the joint is dead; returns it.
  int64_t AdvanceUntilDead(const HybridRun& run) const {
    while (run.status().ok()) {
      *host_ns += 1'000'000;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return *host_ns;
  }
  std::vector<uint64_t> TokensBefore() const {
    std::vector<uint64_t> tokens = OracleTokens(c);
    tokens.resize(trouble->step);
    return tokens;
  }
};

TEST(JointFaultTest, AStuckOrKilledWorkerIsAnErrorAndNoTokenLeaves) {
  const uint64_t first = TestSeed("//tests/joint:fault_test", 1);
  for (uint64_t seed = first; seed < first + 100; ++seed) {
    Fault f(seed);
    SCOPED_TRACE(f.ToString());
    HybridRun run(f.c, f.options);
    // Launches while steps are in flight: by itself, since it may wait for the stuck step until the joint is dead.
    std::thread launcher([&] { run.LaunchAll(); });
    while (!f.trouble->stuck) std::this_thread::yield();
    ASSERT_TRUE(run.status().ok()) << run.status();
    EXPECT_GE(f.AdvanceUntilDead(run), absl::ToInt64Nanoseconds(f.options.worker_timeout));
    launcher.join();
    EXPECT_FALSE(run.Synchronize());
    EXPECT_EQ(run.last_outcome(), JointOutcome::kWorkerFailed);
    EXPECT_EQ(run.status().code(), absl::StatusCode::kDeadlineExceeded) << run.status();
    EXPECT_NE(run.status().message().find("did not answer call"), std::string::npos) << run.status();
    EXPECT_EQ(run.tokens(), f.TokensBefore());

    // The late writer: its data go to the slot of a call that nobody waits for, its answer nowhere.
    f.trouble->release.set_value();
    while (!f.trouble->ended) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    for (const JointFlag& flag : run.memory().table().control->answer) {
      EXPECT_EQ(JointWordState(__atomic_load_n(&flag.value, __ATOMIC_ACQUIRE)), JointState::kError);
    }
    EXPECT_EQ(run.tokens(), f.TokensBefore());
  }
}

TEST(JointFaultTest, AStuckWorkerOutlivesTheJoint) {
  const uint64_t first = TestSeed("//tests/joint:fault_test", 1);
  for (uint64_t seed = first; seed < first + 20; ++seed) {
    Fault f(seed);
    SCOPED_TRACE(f.ToString());
    {
      HybridRun run(f.c, f.options);
      std::thread launcher([&] { run.LaunchAll(); });
      while (!f.trouble->stuck) std::this_thread::yield();
      f.AdvanceUntilDead(run);
      launcher.join();
    }
    f.trouble->release.set_value();  // it writes to memory that it has kept
    while (!f.trouble->ended) std::this_thread::yield();
  }
}

TEST(JointFaultTest, WithoutTheTrapATokenLeaves) {
  Fault f(1);
  f.options.mutation = Mutation::kNoTrap;
  HybridRun run(f.c, f.options);
  std::thread launcher([&] { run.LaunchAll(); });
  while (!f.trouble->stuck) std::this_thread::yield();
  f.AdvanceUntilDead(run);
  launcher.join();
  run.Synchronize();
  EXPECT_GT(run.tokens().size(), f.TokensBefore().size()) << "the trap is what keeps it";
  f.trouble->release.set_value();
  while (!f.trouble->ended) std::this_thread::yield();
}

// Dispatcher and watchdog gone, as when the process is stopped: the device's own deadline is left.
TEST(JointFaultTest, WithoutAHostTheDeviceGivesUp) {
  std::unique_ptr<JointMemory> memory = *JointMemory::Create({64, 64, 4}, AllocatePlainJointMemory);
  JointPlan plan = {kJointFirstSequence, 1000, 0};
  JointTable table = memory->table();
  table.plan = &plan;
  uint64_t now = 5000;
  WeakDevice device(1, 1, Mutation::kNone, [&] { return now += 10; });  // each look at the clock takes 10 ns
  JointOutcome outcome = JointOutcome::kAnswered;
  bool token = false;
  {
    FakeStream stream(1);
    const uint64_t query[8] = {};
    stream.Launch({[&] {
                     WeakOps ops(device, 0);
                     JointStoreQuery(ops, table, 0, query, 8, 0, 1);
                     JointPublish(ops, table, 0);
                     return KernelEnd::kDone;
                   },
                   [&] {
                     WeakOps ops(device, 0);
                     outcome = JointWait(ops, table, 0);
                     return outcome == JointOutcome::kAnswered ? KernelEnd::kDone : KernelEnd::kTrap;
                   },
                   [&] {
                     token = true;
                     return KernelEnd::kDone;
                   }});
    EXPECT_FALSE(stream.Synchronize());
  }
  EXPECT_EQ(outcome, JointOutcome::kDeadline);
  EXPECT_LE(now, 5000u + 1000u + 20u);
  EXPECT_FALSE(token);
  EXPECT_EQ(memory->DeviceFailure(), JointWord(JointState::kError, kJointFirstSequence));
}

}  // namespace
}  // namespace hybridgen
