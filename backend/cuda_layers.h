// Queues a layer: from a step in device memory and the layer's tensors to the kernels' arguments.
#ifndef BACKEND_CUDA_LAYERS_H_
#define BACKEND_CUDA_LAYERS_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "backend/cuda_host_part.h"
#include "backend/cuda_plan.h"
#include "backend/cuda_step_memory.h"
#include "backend/cuda_streaming.h"
#include "backend/device_stream.h"
#include "backend/layer_call.h"
#include "backend/layer_times.h"

namespace hybridgen {

// A call of the joint, and its number in the step.
struct LayerJointCall {
  int index = 0;  // of CudaStep::calls
  uint32_t number = 0;
};

// What only eager layers have: a graph's launches are neither streamed nor timed.
struct EagerParts {
  const CudaStreaming* streaming = nullptr;
  LayerTimes* times = nullptr;
};

class CudaLayers {
 public:
  // `query_heads`: the most of all layers. `stream` outlives the object. `dtype` is that of the step's tensors; pages
  // have their own.
  CudaLayers(DeviceStream* stream, int query_heads, DType dtype, int head_size, int num_kv_heads)
      : stream_(stream),
        memory_(stream, query_heads, head_size),
        dtype_(dtype),
        head_size_(head_size),
        kv_heads_(num_kv_heads) {}

  // Copies the layers' slopes and sinks, and makes the words of device memory that kernels use between steps: +inf
  // logits, and blocks of a publication.
  absl::Status Start(absl::Span<const LayerParams> layers);
  const void* status_word() const { return status_.get(); }
  // Of the steps that are queued here.
  CudaStepMemory& memory() { return memory_; }
  // Of the joint, with the plan in device memory; and where rows lie in a slot.
  void set_joint(const JointTable& table, const CallLayout& layout) {
    table_ = table;
    layout_ = layout;
  }

  // Queues the layer that is number `index` of the step, whose data lie in memory(). `window`: index of the layer's in
  // the step.
  absl::Status Run(const LayerCall& call, const CudaStep& step, int window, int index, const EagerParts& eager);

 private:
  // New K/V of the device's pages.
  absl::Status WriteKv(const LayerCall& call, const CudaStep& step);
  // Attends the device's pages.
  absl::Status Attend(const LayerCall& call, const CudaStep& step, int window);
  // Splits of the pool's pages that others follow, into their sequence's row.
  absl::Status MergeRows(const LayerCall& call, const CudaStep& step);
  // Attends the streamed pages, by way of the ring, and merges them into that row.
  absl::Status Stream(const LayerCall& call, const CudaStep& step, int window, const CudaStreaming& streaming);
  // What is complete on the device, into the output.
  absl::Status MergeOutputs(const LayerCall& call, const CudaStep& step);
  // Hands the CPU its rows of a call.
  absl::Status Publish(const LayerCall& call, const CudaStep& step, const LayerJointCall& joint);
  // Waits for the CPU's partials.
  absl::Status Await(const LayerJointCall& joint);
  // And merges them into the output.
  absl::Status Join(const LayerCall& call, const CudaStep& step, const LayerJointCall& joint);
  // Arguments that are common to the layer's launches; those of WriteKv but for tokens and slots.
  cuda::WriteKvParams WriteArguments(const LayerCall& call) const;
  cuda::AttendParams AttendArguments(const LayerCall& call, const CudaStep& step, int window) const;
  cuda::MergeParams RowMerge(const LayerCall& call) const;
  cuda::MergeParams OutputMerge(const LayerCall& call) const;
  absl::Status Merge(cuda::MergeParams to, const DeviceTable<cuda::MergeItem>& table, Range items);

  DeviceStream* const stream_;
  CudaStepMemory memory_;
  const DType dtype_;
  const int head_size_;
  const int kv_heads_;
  JointTable table_ = {};
  CallLayout layout_;
  std::shared_ptr<void> status_, blocks_done_;
};

}  // namespace hybridgen

#endif  // BACKEND_CUDA_LAYERS_H_
