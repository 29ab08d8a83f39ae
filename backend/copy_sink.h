// Who executes the copies that planning asks for: the CPU worker between steps, or the device in its queue.
#ifndef BACKEND_COPY_SINK_H_
#define BACKEND_COPY_SINK_H_

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "backend/device_worker.h"
#include "backend/executor.h"
#include "backend/page_copier.h"
#include "memory/block_manager.h"

namespace hybridgen {

class CopySink {
 public:
  virtual ~CopySink() = default;
  virtual absl::Status Start(std::vector<CopyTask> tasks) = 0;
  // Copies whose bytes are in place; each is returned once.
  virtual std::vector<CopyTask> TakeFinished() = 0;
  // Waits until everything started is finished.
  virtual absl::Status Drain() = 0;
};

// By the CPU worker's own executor, between steps: the `cpu` kind has no second processor to hide copies on.
// Pointers outlive the sink.
class InlineCopies final : public CopySink {
 public:
  InlineCopies(const PageCopier* copier, Executor* executor) : copier_(copier), executor_(executor) {}

  absl::Status Start(std::vector<CopyTask> tasks) override;
  std::vector<CopyTask> TakeFinished() override { return std::exchange(finished_, {}); }
  absl::Status Drain() override { return absl::OkStatus(); }
  // Spent copying since creation.
  double seconds() const { return seconds_; }

 private:
  const PageCopier* const copier_;
  Executor* const executor_;
  std::vector<CopyTask> finished_;
  double seconds_ = 0;
};

// In the device's queue, in order with its layers.
class DeviceCopies final : public CopySink {
 public:
  explicit DeviceCopies(DeviceWorker* device) : device_(device) {}
  absl::Status Start(std::vector<CopyTask> tasks) override { return device_->EnqueueCopies(std::move(tasks)); }
  std::vector<CopyTask> TakeFinished() override { return device_->TakeFinishedCopies(); }
  absl::Status Drain() override { return device_->Drain(); }

 private:
  DeviceWorker* const device_;
};

}  // namespace hybridgen

#endif  // BACKEND_COPY_SINK_H_
