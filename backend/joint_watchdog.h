// Watches the joint from a thread of its own: neither a stuck CPU worker nor a stuck dispatcher can keep it from
// acting.
#ifndef BACKEND_JOINT_WATCHDOG_H_
#define BACKEND_JOINT_WATCHDOG_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "backend/joint_memory.h"

namespace hybridgen {

struct JointVerdict {
  enum class Kind : uint8_t {
    kFine,
    kWorkerLate,    // `sequence` was published, and not answered in time
    kDeviceGaveUp,  // the device ended its wait for `sequence` in an error
  };
  Kind kind = Kind::kFine;
  uint64_t sequence = 0;
};

// The watchdog's judgement, without its thread.
class JointDeadline {
 public:
  explicit JointDeadline(int64_t timeout_ns) : timeout_ns_(timeout_ns) {}

  // One look at the flags. A call's time runs from the first look that finds it the oldest without an answer.
  JointVerdict Look(const JointMemory& memory, int64_t now_ns);

 private:
  const int64_t timeout_ns_;
  uint64_t open_ = 0;  // the oldest call without an answer; 0: none
  int64_t since_ns_ = 0;
};

struct JointWatchdogOptions {
  absl::Duration timeout = absl::Seconds(5);     // for one call
  absl::Duration tick = absl::Milliseconds(50);  // of real time, between two looks while calls are expected
  std::function<int64_t()> now_ns;               // the clock that `timeout` is held against
  // Called by the watchdog's thread with each bad verdict. True: the joint is dead and the watch is over. False: the
  // answer came at the last moment.
  std::function<bool(const JointVerdict&)> on_verdict;
};

class JointWatchdog {
 public:
  // Errors: Internal when the system refuses the thread.
  static absl::StatusOr<std::unique_ptr<JointWatchdog>> Create(std::shared_ptr<const JointMemory> memory,
                                                               JointWatchdogOptions options);
  ~JointWatchdog();

  // Keeps looking until `sequence` has been answered; then the thread parks.
  void WatchThrough(uint64_t sequence);

 private:
  JointWatchdog(std::shared_ptr<const JointMemory> memory, JointWatchdogOptions options)
      : memory_(std::move(memory)), options_(std::move(options)) {}
  void Loop();

  const std::shared_ptr<const JointMemory> memory_;
  const JointWatchdogOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t watched_ = 0;  // guarded by mutex_, as is stop_
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace hybridgen

#endif  // BACKEND_JOINT_WATCHDOG_H_
