// The block manager's copies on a CUDA device: kernels that pack pages into host memory, which the device maps, or
// unpack them from it, in the order of the stream. Pages that it does not map go by way of staging.
#ifndef BACKEND_CUDA_COPIES_H_
#define BACKEND_CUDA_COPIES_H_

#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "backend/cuda_staging.h"
#include "backend/device_stream.h"
#include "backend/host_tiers.h"
#include "backend/layer_call.h"
#include "backend/repack_queue.h"
#include "memory/block_manager.h"

namespace hybridgen {

class CudaCopies {
 public:
  // One entry of `layers` per stored layer. `host` has been registered with the stream's device as far as that went.
  // Both pointers outlive.
  CudaCopies(DeviceStream* stream, const HostTiers* host, std::vector<LayerPages> layers);
  // `staging_bytes` of pinned memory are taken if a host page is not registered. Errors: ResourceExhausted.
  absl::Status Start(int64_t staging_bytes);

  // Queues all layers of the tasks' blocks: publishes and recalls. May allocate.
  absl::Status Enqueue(std::vector<CopyTask> tasks);
  // Tasks whose bytes are in place, in order; each is returned once.
  absl::StatusOr<std::vector<CopyTask>> TakeFinished();
  // Waits for what is staged: what is queued is the stream's to wait for. Errors: DeadlineExceeded.
  absl::Status DrainStaging(absl::Duration timeout);

  double seconds() const { return queue_.seconds() + (staging_ == nullptr ? 0 : staging_->host_seconds()); }

 private:
  struct Batch {
    int64_t number = 0;
    std::vector<CopyTask> tasks;
    std::optional<RepackQueue::Entry> direct;  // what the device does alone, until it is done
  };

  void AddJobs(const CopyTask& task, std::vector<cuda::RepackJob>& direct);

  const HostTiers* const host_;
  const std::vector<LayerPages> layers_;
  RepackQueue queue_;
  std::unique_ptr<CudaStaging> staging_;  // null: the device reaches all pages
  int64_t batches_ = 0;
  std::deque<Batch> in_flight_;
};

}  // namespace hybridgen

#endif  // BACKEND_CUDA_COPIES_H_
