// Streams a step's host pages into a ring of device pages, and attends them there, in rounds (docs/cuda_device.md).
#ifndef BACKEND_CUDA_STREAMING_H_
#define BACKEND_CUDA_STREAMING_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "backend/cuda_step_memory.h"
#include "backend/device_stream.h"
#include "backend/layer_call.h"
#include "backend/streamed_rounds.h"

namespace hybridgen {

// A layer's own arguments, which a round takes over but for rows to write, pages and items.
struct LayerArguments {
  cuda::WriteKvParams write;
  cuda::AttendParams attend;
  cuda::MergeParams merge;
};

class CudaStreaming {
 public:
  // `stream` and `memory` outlive the object.
  CudaStreaming(DeviceStream* stream, const CudaStepMemory* memory) : stream_(stream), memory_(memory) {}

  // Takes the ring's memory, of `pages` pages of `page_bytes`, unless it has it. Errors: ResourceExhausted.
  absl::Status Reserve(int64_t pages, uint64_t page_bytes);

  // Queues the rounds of a layer: copies, attention, and the merge into the sequences' rows. The plan is in device
  // memory, the host pages are registered with the device.
  absl::Status Run(const LayerCall& call, const StreamedRounds& streamed, int window, LayerArguments arguments) const;

 private:
  absl::Status Fill(const LayerCall& call, const cuda::WriteKvParams& write, const StreamedRound& round,
                    const RingJobs& jobs) const;
  absl::Status Unpack(const LayerCall& call, Range jobs) const;

  DeviceStream* const stream_;
  const CudaStepMemory* const memory_;
  std::shared_ptr<void> ring_;  // pages of the engine's format
};

}  // namespace hybridgen

#endif  // BACKEND_CUDA_STREAMING_H_
