#include "backend/host_copies.h"

#include <pthread.h>
#include <sys/resource.h>

#include <chrono>
#include <cstring>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

constexpr int kLowestPriority = 19;

}  // namespace

HostCopies::~HostCopies() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<int64_t> HostCopies::Start(std::vector<HostCopy> copies) {
  if (!thread_.joinable()) {
    try {
      thread_ = std::thread([this] { Loop(); });
    } catch (const std::system_error& error) {
      return absl::InternalError(absl::StrCat("host copies: the system refused their thread: ", error.what()));
    }
    pthread_setname_np(thread_.native_handle(), "hg-staging");
  }
  std::lock_guard<std::mutex> lock(mutex_);
  queue_.push_back(std::move(copies));
  changed_.notify_all();
  return ++started_;
}

void HostCopies::Loop() {
  setpriority(PRIO_PROCESS, 0, kLowestPriority);  // of this thread only; best effort
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const std::vector<HostCopy> copies = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    const auto begin = std::chrono::steady_clock::now();
    for (const HostCopy& copy : copies) std::memcpy(copy.to, copy.from, copy.bytes);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    lock.lock();
    seconds_ += seconds;
    ++done_;
    changed_.notify_all();
  }
}

int64_t HostCopies::done() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return done_;
}

absl::Status HostCopies::Wait(int64_t number, absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout), [&] { return done_ >= number; })) {
    return absl::OkStatus();
  }
  return absl::DeadlineExceededError(
      absl::StrCat("host copies: number ", number, " was not done within ", absl::FormatDuration(timeout)));
}

double HostCopies::seconds() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return seconds_;
}

}  // namespace hybridgen
