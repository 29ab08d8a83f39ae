// The device memory of the steps: tables of plain data that change with each, partials, and the layers' vectors.
#ifndef BACKEND_CUDA_STEP_MEMORY_H_
#define BACKEND_CUDA_STEP_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "backend/cuda_plan.h"
#include "backend/device_stream.h"
#include "backend/device_table.h"
#include "backend/layer_call.h"

namespace hybridgen {

// Addresses stay until the memory has to grow, which happens between steps.
class CudaStepMemory {
 public:
  struct Tables {
    DeviceTable<int64_t> slots;
    DeviceTable<KvPage> pages;
    DeviceTable<cuda::AttendItem> decode, prefill;
    DeviceTable<int32_t> kv_begin, kv_end, position;
    DeviceTable<cuda::MergeItem> output_merges, row_merges, joins;
    DeviceTable<int32_t> query_tokens, write_tokens;
    struct {
      DeviceTable<cuda::RepackJob> jobs;
      DeviceTable<int64_t> slots;
      DeviceTable<cuda::AttendItem> decode, prefill;
      DeviceTable<cuda::MergeItem> merges;
    } streamed;
  };

  // `query_heads`: the most of all layers. `stream` outlives the memory.
  CudaStepMemory(DeviceStream* stream, int query_heads, int head_size)
      : stream_(stream), query_heads_(query_heads), head_size_(head_size) {}

  // Copies the layers' slopes and sinks.
  absl::Status AddLayers(absl::Span<const LayerParams> layers);

  bool Holds(const CudaStep& step);
  // For a step that it does not hold, when the device is idle. Grows by half more, so that this happens a few times.
  absl::Status Grow(const CudaStep& step);
  // Queues the copies of the step's data by way of the given source, whose last copies are done.
  absl::Status Upload(const CudaStep& step, int source);

  const Tables& tables() const { return tables_; }
  cuda::Partials partials() const { return {static_cast<float*>(o_.get()), static_cast<float*>(lse_.get())}; }
  // [query head] of the layer.
  const float* slopes(int layer) const { return slopes_.data() + static_cast<int64_t>(layer) * query_heads_; }
  const float* sinks(int layer) const { return sinks_.data() + static_cast<int64_t>(layer) * query_heads_; }

 private:
  // Calls f(table, the step's data in it) until one fails.
  template <typename F>
  absl::Status ForEach(const CudaStep& step, const F& f);

  DeviceStream* const stream_;
  const int query_heads_;
  const int head_size_;
  Tables tables_;
  DeviceTable<float> slopes_, sinks_;  // [layer][query_heads_]
  std::shared_ptr<void> o_, lse_;      // partials
  int64_t partial_rows_ = 0;
};

}  // namespace hybridgen

#endif  // BACKEND_CUDA_STEP_MEMORY_H_
