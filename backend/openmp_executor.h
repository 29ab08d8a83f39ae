// Executor on the OpenMP team of the process that loaded us (the engine's), found at run time.
#ifndef BACKEND_OPENMP_EXECUTOR_H_
#define BACKEND_OPENMP_EXECUTOR_H_

#include <memory>

#include "absl/status/statusor.h"
#include "backend/executor.h"

namespace hybridgen {

// A second spinning pool on the engine's cores would cost several times the attention itself, so inside the engine
// kernels run in its own team. Nothing links OpenMP: the runtime is looked up among the loaded libraries (Intel's and
// LLVM's runtimes export GOMP_parallel too).
// num_threads: 0 takes the team's own size.
// Errors: Unavailable when no OpenMP runtime is loaded.
absl::StatusOr<std::unique_ptr<Executor>> CreateOpenMpExecutor(int num_threads);

}  // namespace hybridgen

#endif  // BACKEND_OPENMP_EXECUTOR_H_
