#include "backend/joint_dispatcher.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

using Clock = std::chrono::steady_clock;

// How long the thread yields between polls before it sleeps between them.
constexpr auto kYield = std::chrono::milliseconds(1);
constexpr int kPollsPerLook = 64;  // at the clock
// A sleep is at most this part of the wait so far, which bounds by how much it prolongs the wait.
constexpr int kSleepDivisor = 16;
constexpr auto kLongestSleep = std::chrono::milliseconds(1);

void CpuRelax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

void StoreFence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

int64_t SteadyNanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

absl::Status Validate(const JointOptions& options) {
  if (options.worker_timeout < absl::Milliseconds(1) || options.worker_timeout > absl::Hours(1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "joint: worker_timeout is ", absl::FormatDuration(options.worker_timeout), "; accepted: 1ms to 1h"));
  }
  if (options.device_timeout < 2 * options.worker_timeout || options.device_timeout > absl::Hours(2)) {
    return absl::InvalidArgumentError(
        absl::StrCat("joint: device_timeout is ", absl::FormatDuration(options.device_timeout),
                     "; accepted: twice worker_timeout (", absl::FormatDuration(options.worker_timeout), ") to 2h"));
  }
  if (options.spin < absl::ZeroDuration() || options.spin > absl::Milliseconds(1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("joint: spin is ", absl::FormatDuration(options.spin), "; accepted: 0 to 1ms"));
  }
  if (options.cpu < -1 || options.cpu >= CPU_SETSIZE) {
    return absl::InvalidArgumentError(
        absl::StrCat("joint: cpu is ", options.cpu, "; accepted: -1 (not pinned) to ", CPU_SETSIZE - 1));
  }
  return absl::OkStatus();
}

}  // namespace

// What the dispatcher's thread, the watchdog and the launching thread share.
// std::mutex rather than absl::Mutex: the distribution's Abseil is not instrumented, so tsan would not see its locks.
struct JointDispatcher::State {
  struct Step {
    uint64_t first_sequence = 0;
    int32_t num_calls = 0;
    JointWork work;
  };

  JointOptions options;
  std::shared_ptr<JointMemory> memory;

  std::atomic<bool> over{false};  // dead, or being destroyed
  mutable std::mutex mutex;
  std::condition_variable changed;
  // Guarded by mutex.
  std::deque<Step> steps;  // in flight; the first is being answered
  int64_t steps_begun = 0;
  uint64_t next_sequence = kJointFirstSequence;
  absl::Status status;
  bool working = false;  // inside a step's work

  // Ends the joint for `sequence`. False when that call has been answered or the joint is dead already.
  bool Fail(uint64_t sequence, absl::Status why) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!memory->Retire(sequence)) return false;
    status = std::move(why);
    over.store(true, std::memory_order_release);
    changed.notify_all();
    return true;
  }

  // As Fail, for the oldest call without an answer, whichever that is.
  void FailNow(const absl::Status& why) {
    while (!over.load(std::memory_order_acquire) && !Fail(memory->Answered() + 1, why)) {
    }
  }

  // The watchdog's verdict; its thread calls.
  bool Judge(const JointVerdict& verdict) {
    if (verdict.kind == JointVerdict::Kind::kDeviceGaveUp) {
      FailNow(absl::DeadlineExceededError(absl::StrCat(
          "joint: the device gave up waiting for call ", verdict.sequence, " (accepted: an answer within ",
          absl::FormatDuration(options.device_timeout), ", for each launch a plan of its own); create a new backend")));
      return true;
    }
    return Fail(verdict.sequence, absl::DeadlineExceededError(absl::StrCat(
                                      "joint: the CPU worker did not answer call ", verdict.sequence, " within ",
                                      absl::FormatDuration(options.worker_timeout),
                                      "; it is stuck or its cores are overloaded; create a new backend"))) ||
           over.load(std::memory_order_acquire);
  }

  // Takes note of a failure that the device reported while the watchdog was parked.
  void NoteDeviceFailure() {
    if (const uint64_t failure = memory->DeviceFailure(); failure != 0) {
      Judge({JointVerdict::Kind::kDeviceGaveUp, JointWordSequence(failure)});
    }
  }

  // Polls until the device has published `sequence`; false when the joint is over. The device cannot wake a thread, so
  // there is nothing to park on: the wait backs off in proportion to its length.
  bool AwaitPublished(uint64_t sequence) {
    const Clock::time_point begin = Clock::now();
    const auto spin = absl::ToChronoNanoseconds(options.spin);
    while (!over.load(std::memory_order_acquire)) {
      for (int i = 0; i < kPollsPerLook; ++i) {
        const uint64_t published = memory->Published();
        if (published > sequence + 1) {
          FailNow(absl::InternalError(absl::StrCat("joint: the device published call ", published, " while call ",
                                                   sequence, " is not answered; accepted: one call ahead")));
          return false;
        }
        if (published >= sequence) return true;
        CpuRelax();
      }
      const auto waited = Clock::now() - begin;
      if (waited < spin) continue;
      if (waited < kYield) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::min<Clock::duration>(waited / kSleepDivisor, kLongestSleep));
      }
    }
    return false;
  }

  // Answers the calls of a step; false when the joint is over.
  bool Answer(const Step& step) {
    for (int32_t i = 0; i < step.num_calls; ++i) {
      const uint64_t sequence = step.first_sequence + i;
      if (!AwaitPublished(sequence)) return false;
      {
        std::lock_guard<std::mutex> lock(mutex);
        if (over.load(std::memory_order_relaxed)) return false;
        working = true;
      }
      absl::Status done =
          step.work({sequence, i, memory->Query(sequence), memory->PartialO(sequence), memory->PartialLse(sequence)});
      options.publish_stores();
      if (done.ok()) {
        memory->Answer(sequence);  // changes nothing when the watchdog was faster; `over` is then set
      } else {
        Fail(sequence, std::move(done));
      }
      std::lock_guard<std::mutex> lock(mutex);
      working = false;
      changed.notify_all();
    }
    return true;
  }

  void Loop() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return over.load(std::memory_order_relaxed) || !steps.empty(); });
      if (over.load(std::memory_order_relaxed)) return;
      const Step& step = steps.front();  // a deque's elements stay in place while others are pushed
      lock.unlock();
      const bool answered = Answer(step);
      lock.lock();
      if (!answered) return;
      steps.pop_front();
    }
  }
};

absl::StatusOr<std::unique_ptr<JointDispatcher>> JointDispatcher::Create(JointOptions options) {
  if (absl::Status status = Validate(options); !status.ok()) return status;
  if (options.allocate == nullptr) options.allocate = AllocatePlainJointMemory;
  if (options.now_ns == nullptr) options.now_ns = SteadyNanoseconds;
  if (options.publish_stores == nullptr) options.publish_stores = StoreFence;
  absl::StatusOr<std::unique_ptr<JointMemory>> memory = JointMemory::Create(options.bytes, options.allocate);
  if (!memory.ok()) return memory.status();

  auto state = std::make_shared<State>();
  state->options = options;
  state->memory = *std::move(memory);
  std::unique_ptr<JointDispatcher> joint(new JointDispatcher(state));

  JointWatchdogOptions watchdog;
  watchdog.timeout = options.worker_timeout;
  watchdog.tick = std::clamp(options.worker_timeout / 16, absl::Milliseconds(1), absl::Milliseconds(100));
  watchdog.now_ns = options.now_ns;
  watchdog.on_verdict = [state](const JointVerdict& verdict) { return state->Judge(verdict); };
  absl::StatusOr<std::unique_ptr<JointWatchdog>> started = JointWatchdog::Create(state->memory, std::move(watchdog));
  if (!started.ok()) return started.status();
  joint->watchdog_ = *std::move(started);

  try {
    joint->thread_ = std::thread([state] { state->Loop(); });
  } catch (const std::system_error& error) {
    return absl::InternalError(absl::StrCat("joint: the system refused the dispatcher's thread: ", error.what()));
  }
  pthread_setname_np(joint->thread_.native_handle(), "hg-joint");
  if (options.cpu >= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(options.cpu, &set);
    pthread_setaffinity_np(joint->thread_.native_handle(), sizeof(set), &set);  // advisory
  }
  return joint;
}

JointDispatcher::~JointDispatcher() {
  if (!thread_.joinable()) return;
  bool abandoned;
  {
    std::unique_lock<std::mutex> lock(state_->mutex);
    // Work under way may end well; the watchdog bounds the wait for it.
    state_->changed.wait(lock, [&] { return !state_->working || state_->over.load(std::memory_order_relaxed); });
    if (!state_->over.load(std::memory_order_relaxed)) {
      // Not working, and with the mutex held the thread cannot begin: nothing is answered meanwhile.
      if (!state_->steps.empty()) state_->memory->Retire(state_->memory->Answered() + 1);
      state_->over.store(true, std::memory_order_release);
      state_->changed.notify_all();
    }
    abandoned = state_->working;
  }
  if (abandoned) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

absl::StatusOr<const JointPlan*> JointDispatcher::BeginStep(int32_t num_calls, JointWork work) {
  if (num_calls < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "joint: num_calls is ", num_calls, "; accepted: 1 or more; a step without a CPU part copies the idle plan"));
  }
  state_->NoteDeviceFailure();
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (!state_->status.ok()) {
    return absl::FailedPreconditionError(absl::StrCat("joint: dead: ", state_->status.message()));
  }
  if (state_->steps.size() == JointMemory::kMaxStepsInFlight) {
    return absl::FailedPreconditionError(absl::StrCat("joint: ", state_->steps.size(),
                                                      " steps are in flight; accepted: fewer than ",
                                                      JointMemory::kMaxStepsInFlight, "; wait for the oldest"));
  }
  JointPlan& plan = state_->memory->plan(state_->steps_begun++);
  plan.first_sequence = state_->next_sequence;
  plan.wait_timeout_ns = static_cast<uint64_t>(absl::ToInt64Nanoseconds(state_->options.device_timeout));
  state_->steps.push_back({state_->next_sequence, num_calls, std::move(work)});
  state_->next_sequence += num_calls;
  state_->changed.notify_all();
  watchdog_->WatchThrough(state_->next_sequence - 1);
  return &plan;
}

absl::Status JointDispatcher::status() const {
  state_->NoteDeviceFailure();
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->status;
}

const JointMemory& JointDispatcher::memory() const { return *state_->memory; }

}  // namespace hybridgen
