#include "backend/joint_watchdog.h"

#include <pthread.h>

#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hybridgen {

JointVerdict JointDeadline::Look(const JointMemory& memory, int64_t now_ns) {
  if (const uint64_t failure = memory.DeviceFailure(); failure != 0) {
    return {JointVerdict::Kind::kDeviceGaveUp, JointWordSequence(failure)};
  }
  const uint64_t published = memory.Published();
  const uint64_t answered = memory.Answered();  // after `published`: an answer between the two is no lateness
  if (published <= answered) {
    open_ = 0;
    return {};
  }
  if (open_ != answered + 1) {
    open_ = answered + 1;
    since_ns_ = now_ns;
  }
  if (now_ns - since_ns_ < timeout_ns_) return {};
  return {JointVerdict::Kind::kWorkerLate, open_};
}

absl::StatusOr<std::unique_ptr<JointWatchdog>> JointWatchdog::Create(std::shared_ptr<const JointMemory> memory,
                                                                     JointWatchdogOptions options) {
  std::unique_ptr<JointWatchdog> watchdog(new JointWatchdog(std::move(memory), std::move(options)));
  try {
    watchdog->thread_ = std::thread([raw = watchdog.get()] { raw->Loop(); });
  } catch (const std::system_error& error) {
    return absl::InternalError(absl::StrCat("joint: the system refused the watchdog's thread: ", error.what()));
  }
  pthread_setname_np(watchdog->thread_.native_handle(), "hg-watchdog");
  return watchdog;
}

JointWatchdog::~JointWatchdog() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void JointWatchdog::WatchThrough(uint64_t sequence) {
  std::lock_guard<std::mutex> lock(mutex_);
  watched_ = sequence;
  changed_.notify_all();
}

void JointWatchdog::Loop() {
  JointDeadline deadline(absl::ToInt64Nanoseconds(options_.timeout));
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_) {
    changed_.wait(lock, [&] { return stop_ || memory_->Answered() < watched_; });
    lock.unlock();
    const JointVerdict verdict = deadline.Look(*memory_, options_.now_ns());
    if (verdict.kind != JointVerdict::Kind::kFine && options_.on_verdict(verdict)) return;
    lock.lock();
    changed_.wait_for(lock, absl::ToChronoNanoseconds(options_.tick), [&] { return stop_; });
  }
}

}  // namespace hybridgen
