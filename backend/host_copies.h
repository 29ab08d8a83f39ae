// A thread that copies memory, so that the planning thread need not.
#ifndef BACKEND_HOST_COPIES_H_
#define BACKEND_HOST_COPIES_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace hybridgen {

struct HostCopy {
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
};

// One thread drives it. The thread of its own starts with the first copies, so a process that forks before has none to
// lose; it runs at the lowest priority, as the mover's does.
class HostCopies {
 public:
  HostCopies() = default;
  // Copies that have not begun are not made any more.
  ~HostCopies();
  HostCopies(const HostCopies&) = delete;
  HostCopies& operator=(const HostCopies&) = delete;

  // Queues copies and returns their number: 1, 2, ... The memory stays until they are done.
  // Errors: Internal when the system refuses the thread.
  absl::StatusOr<int64_t> Start(std::vector<HostCopy> copies);
  // All up to this number are done.
  int64_t done() const;
  // Errors: DeadlineExceeded.
  absl::Status Wait(int64_t number, absl::Duration timeout);
  // Spent copying.
  double seconds() const;

 private:
  void Loop();

  // std::mutex rather than absl::Mutex: the distribution's Abseil is not instrumented, so tsan would not see its locks.
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<std::vector<HostCopy>> queue_;
  int64_t started_ = 0;
  int64_t done_ = 0;
  double seconds_ = 0;
  bool stop_ = false;

  std::thread thread_;
};

}  // namespace hybridgen

#endif  // BACKEND_HOST_COPIES_H_
