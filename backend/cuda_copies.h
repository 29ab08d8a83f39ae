// The block manager's copies on a CUDA device: kernels that pack pages into host memory, which the device maps, or
// unpack them from it, in the order of the stream.
#ifndef BACKEND_CUDA_COPIES_H_
#define BACKEND_CUDA_COPIES_H_

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "backend/device_stream.h"
#include "backend/device_table.h"
#include "backend/host_tiers.h"
#include "backend/layer_call.h"
#include "memory/block_manager.h"

namespace hybridgen {

class CudaCopies {
 public:
  // One entry of `layers` per stored layer. `host` is registered with the stream's device. Both pointers outlive.
  CudaCopies(DeviceStream* stream, const HostTiers* host, std::vector<LayerPages> layers)
      : stream_(stream), host_(host), layers_(std::move(layers)) {}

  // Queues all layers of the tasks' blocks: publishes and recalls. May allocate.
  absl::Status Enqueue(std::vector<CopyTask> tasks);
  // Tasks whose bytes are in place, in order; each is returned once.
  absl::StatusOr<std::vector<CopyTask>> TakeFinished();

 private:
  struct Batch {
    std::vector<CopyTask> tasks;
    StreamMark mark = 0;
    std::unique_ptr<DeviceTable<cuda::RepackJob>> jobs;
  };

  void AddJobs(const CopyTask& task, std::vector<cuda::RepackJob>& jobs) const;
  absl::Status Launch(const std::vector<cuda::RepackJob>& jobs, size_t packed, Batch& batch);

  DeviceStream* const stream_;
  const HostTiers* const host_;
  const std::vector<LayerPages> layers_;
  std::deque<Batch> in_flight_;
  std::vector<std::unique_ptr<DeviceTable<cuda::RepackJob>>> spare_;  // tables of finished batches
};

}  // namespace hybridgen

#endif  // BACKEND_CUDA_COPIES_H_
