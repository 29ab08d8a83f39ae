// Executor on threads of our own: the standalone harness, and beside an accelerator.
#ifndef BACKEND_POOL_EXECUTOR_H_
#define BACKEND_POOL_EXECUTOR_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "backend/executor.h"

namespace hybridgen {

struct PoolExecutorOptions {
  std::string name = "cpu";            // of the threads, at most 12 characters are kept
  int num_workers = 1;                 // the calling thread is worker 0, the pool adds num_workers - 1 threads
  std::vector<std::vector<int>> cpus;  // thread i + 1 runs on one of cpus[i % size]; empty: wherever
  absl::Duration spin = absl::Microseconds(30);  // bound of busy waiting before a thread parks
  absl::Duration timeout = absl::Seconds(60);    // watchdog of Run
};

// Errors: InvalidArgument for num_workers < 1; Internal when the system refuses a thread.
absl::StatusOr<std::unique_ptr<Executor>> CreatePoolExecutor(const PoolExecutorOptions& options);

}  // namespace hybridgen

#endif  // BACKEND_POOL_EXECUTOR_H_
