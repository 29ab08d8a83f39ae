// The CPU worker's part of a step on the CUDA device: answers the calls of the joint.
#ifndef BACKEND_CUDA_HOST_PART_H_
#define BACKEND_CUDA_HOST_PART_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "backend/attention_worker.h"
#include "backend/cuda_plan.h"
#include "backend/joint_dispatcher.h"
#include "backend/layer_call.h"

namespace hybridgen {

// Where the rows of a call lie in its slot: [row][head][head_size] of the model's dtype, from these offsets on.
// Partials are one row for each query row, [row][query head].
struct CallLayout {
  int64_t query = 0;  // bytes
  int64_t key = 0;
  int64_t value = 0;
  JointCallBytes bytes;

  CallLayout() = default;
  // For calls of up to `rows` query rows and as many written tokens. `query_heads`: the most of all layers.
  CallLayout(int rows, int query_heads, int kv_heads, int head_size, DType dtype);
};

// A layer as the CPU's part needs it.
struct HostLayer {
  int layer = 0;
  LayerPages pages;
  bool writes = false;  // it has new keys and values
};

// One step's part. The launching thread prepares it while the joint is not at it.
class CudaHostPart {
 public:
  // `layers`: those that a step runs. What a call touches is owned by the part or by `worker`, since a thread that is
  // stuck in one is left behind with it.
  CudaHostPart(std::shared_ptr<AttentionWorker> worker, const CallLayout& layout, std::vector<LayerParams> layers,
               int head_size, int num_kv_heads)
      : worker_(std::move(worker)),
        layout_(layout),
        head_size_(head_size),
        kv_heads_(num_kv_heads),
        params_(std::move(layers)),
        layers_(params_.size()) {}

  CudaStep& step() { return step_; }
  // After the step has been built: memory for the partials of its largest call.
  void Reserve(int query_heads);

  // Before the first call of the layer that runs as number `index` of the step is published.
  void SetLayer(int index, const HostLayer& layer) { layers_[index] = layer; }

  // Answers one call of the step, on the joint's thread.
  absl::Status Answer(const JointCall& joint);

  double attend_seconds() const { return static_cast<double>(attend_ns_.load(std::memory_order_relaxed)) * 1e-9; }

 private:
  const std::shared_ptr<AttentionWorker> worker_;
  const CallLayout layout_;
  const int head_size_;
  const int kv_heads_;
  const std::vector<LayerParams> params_;  // [layer]
  std::vector<HostLayer> layers_;          // in the order of the step
  CudaStep step_;
  std::vector<float> partial_o_;
  std::vector<float> partial_lse_;
  std::atomic<int64_t> attend_ns_{0};
};

}  // namespace hybridgen

#endif  // BACKEND_CUDA_HOST_PART_H_
