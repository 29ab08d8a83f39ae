// The `cuda` device kind: runs the device's part of every layer on a stream, with the CPU's part joined in by the joint
// (docs/cuda_device.md).
#ifndef BACKEND_CUDA_DEVICE_H_
#define BACKEND_CUDA_DEVICE_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "backend/attention_worker.h"
#include "backend/device_stream.h"
#include "backend/device_worker.h"
#include "backend/host_tiers.h"
#include "backend/joint_dispatcher.h"
#include "backend/layer_call.h"

namespace hybridgen {

struct CudaDeviceOptions {
  DType dtype = DType::kFloat16;  // of queries, outputs and new K/V; pages have their own
  int head_size = 0;
  int num_kv_heads = 0;
  int page_tokens = 0;
  std::vector<LayerParams> layers;  // in the order in which a step runs them
  // How long the CPU worker may take for a call; the device itself gives up after twice as long.
  absl::Duration timeout = absl::Seconds(60);
  // Query rows, and written rows, of one call of the joint: two slots of this size are pinned for good.
  int max_call_rows = 256;
  // Tokens of the largest graph that is captured, and pages on the device of the largest step that is replayed, whose
  // tables are reserved at once. 0: no graphs.
  int graph_tokens = 0;
  int64_t graph_pages = 0;
  // Device pages of the ring that host pages are streamed through.
  int ring_pages = 512;
  // Pinned memory for publishes and recalls of host pages that are not registered; taken if there are any.
  int64_t staging_bytes = 64 << 20;
  // With host tiers; else null and empty. `host` owns what a CPU thread touches. `host_tiers` is registered with the
  // stream's device and outlives it.
  std::shared_ptr<AttentionWorker> host;
  const HostTiers* host_tiers = nullptr;
  int head_groups = 1;
  std::vector<LayerPages> stored_layers;
  // For tests: its bytes, timeouts and allocator are filled in.
  JointOptions joint;
};

// The options have passed CheckCudaModel. Errors: InvalidArgument for max_call_rows; FailedPrecondition without a
// layer; those of the stream.
absl::StatusOr<std::unique_ptr<DeviceWorker>> CreateCudaDevice(const CudaDeviceOptions& options,
                                                               std::shared_ptr<DeviceStream> stream);

// What CUDA kernels serve of a model, before anything is allocated. Errors: InvalidArgument naming field, value and
// what is accepted.
absl::Status CheckCudaModel(DType dtype, DType kv_dtype, int head_size, int page_tokens);

}  // namespace hybridgen

#endif  // BACKEND_CUDA_DEVICE_H_
