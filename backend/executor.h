// Where CPU kernels run: a team of workers that the calling thread takes part in.
#ifndef BACKEND_EXECUTOR_H_
#define BACKEND_EXECUTOR_H_

#include <array>
#include <atomic>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"

namespace hybridgen {

class Executor {
 public:
  virtual ~Executor() = default;

  // Upper bound of the worker numbers that Run passes, >= 1.
  virtual int num_workers() const = 0;

  // Calls body(worker) once for every member of the team, concurrently, and returns when all have returned. Worker
  // numbers are distinct and below num_workers(); the team may be smaller than num_workers(). The body must not throw.
  // Errors: DeadlineExceeded when a worker does not come back; the executor is then dead for good.
  virtual absl::Status Run(absl::FunctionRef<void(int worker)> body) = 0;

  // "openmp (libgomp.so.1, 2 threads)": for the log line and the statistics.
  virtual const char* description() const = 0;
};

// Calls fn(worker, i) for every i in [0, count). Items are handed out by one counter and never in fixed shares: one
// disturbed core would double the time. One item runs on the caller, without waking anybody.
template <typename Fn>
absl::Status ParallelFor(Executor& executor, int64_t count, const Fn& fn) {
  if (count <= 0) return absl::OkStatus();
  if (count == 1 || executor.num_workers() == 1) {
    for (int64_t i = 0; i < count; ++i) fn(0, i);
    return absl::OkStatus();
  }
  std::atomic<int64_t> next{0};
  return executor.Run([&](int worker) {
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      fn(worker, i);
    }
  });
}

constexpr int kMaxShares = 16;

// Calls fn(worker, i, share) for every i in [0, ends.back()), where share s is [ends[s - 1], ends[s]). A worker takes
// from its own share, which own(worker) says, until that is exhausted, and then from the others: each share is handed
// out by a counter of its own. At most kMaxShares.
template <typename Own, typename Fn>
absl::Status ParallelForShares(Executor& executor, absl::Span<const int32_t> ends, const Own& own, const Fn& fn) {
  struct alignas(64) Counter {  // no two share a cache line
    std::atomic<int32_t> next{0};
  };
  std::array<Counter, kMaxShares> counters;
  const int shares = static_cast<int>(ends.size());
  for (int s = 1; s < shares; ++s) counters[s].next.store(ends[s - 1], std::memory_order_relaxed);
  const auto work = [&](int worker) {
    const int first = own(worker);
    for (int k = 0; k < shares; ++k) {
      const int share = (first + k) % shares;
      std::atomic<int32_t>& next = counters[share].next;
      for (int32_t i = next.fetch_add(1, std::memory_order_relaxed); i < ends[share];
           i = next.fetch_add(1, std::memory_order_relaxed)) {
        fn(worker, i, share);
      }
    }
  };
  if (shares == 0 || ends.back() == 0) return absl::OkStatus();
  if (ends.back() == 1 || executor.num_workers() == 1) {
    work(0);
    return absl::OkStatus();
  }
  return executor.Run(work);
}

}  // namespace hybridgen

#endif  // BACKEND_EXECUTOR_H_
