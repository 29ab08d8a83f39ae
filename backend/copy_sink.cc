#include "backend/copy_sink.h"

#include <chrono>

namespace hybridgen {

absl::Status InlineCopies::Start(std::vector<CopyTask> tasks) {
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status = copier_->Run(tasks, *executor_);
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (status.ok()) finished_.insert(finished_.end(), tasks.begin(), tasks.end());
  return status;
}

}  // namespace hybridgen
