#include "backend/cuda_step_memory.h"

namespace hybridgen {

template <typename F>
absl::Status CudaStepMemory::ForEach(const CudaStep& step, const F& f) {
  Tables& t = tables_;
  absl::Status status;
  const auto next = [&](auto& table, const auto& data) {
    if (status.ok()) status = f(table, data);
  };
  next(t.slots, step.slots);
  next(t.pages, step.pages);
  next(t.decode, step.decode.list);
  next(t.prefill, step.prefill.list);
  next(t.kv_begin, step.kv_begin);
  next(t.kv_end, step.kv_end);
  next(t.position, step.position);
  next(t.output_merges, step.output_merges);
  next(t.row_merges, step.row_merges);
  next(t.joins, step.joins);
  next(t.query_tokens, step.query_tokens);
  next(t.write_tokens, step.write_tokens);
  next(t.streamed.jobs, step.streamed.jobs);
  next(t.streamed.slots, step.streamed.slots);
  next(t.streamed.decode, step.streamed.decode);
  next(t.streamed.prefill, step.streamed.prefill);
  next(t.streamed.merges, step.streamed.merges);
  return status;
}

absl::Status CudaStepMemory::AddLayers(absl::Span<const LayerParams> layers) {
  std::vector<float> slopes, sinks;
  for (const LayerParams& layer : layers) {
    slopes.insert(slopes.end(), layer.alibi_slopes.begin(), layer.alibi_slopes.end());
    sinks.insert(sinks.end(), layer.sinks.begin(), layer.sinks.end());
    slopes.resize((&layer - layers.data() + 1) * query_heads_, 0.0f);
    sinks.resize(slopes.size(), 0.0f);
  }
  const auto add = [&](DeviceTable<float>& table, const std::vector<float>& data) {
    absl::Status status = table.Grow(*stream_, data.size());
    return status.ok() ? table.Upload(*stream_, data, 0) : status;
  };
  absl::Status status = add(slopes_, slopes);
  return status.ok() ? add(sinks_, sinks) : status;
}

bool CudaStepMemory::Holds(const CudaStep& step) {
  bool holds = step.partial_rows <= partial_rows_;
  const auto look = [&](const auto& table, const auto& data) {
    holds = holds && table.Holds(data.size());
    return absl::OkStatus();
  };
  ForEach(step, look).IgnoreError();
  return holds;
}

absl::Status CudaStepMemory::Grow(const CudaStep& step) {
  const auto grow = [&](auto& table, const auto& data) {
    return table.Holds(data.size()) ? absl::OkStatus() : table.Grow(*stream_, data.size());
  };
  if (absl::Status status = ForEach(step, grow); !status.ok()) return status;
  if (step.partial_rows <= partial_rows_) return absl::OkStatus();
  const int64_t rows = step.partial_rows + step.partial_rows / 2;
  const size_t lse_bytes = static_cast<size_t>(rows) * query_heads_ * sizeof(float);
  absl::StatusOr<std::shared_ptr<void>> o = stream_->AllocateDevice(lse_bytes * head_size_);
  if (!o.ok()) return o.status();
  absl::StatusOr<std::shared_ptr<void>> lse = stream_->AllocateDevice(lse_bytes);
  if (!lse.ok()) return lse.status();
  o_ = *std::move(o);
  lse_ = *std::move(lse);
  partial_rows_ = rows;
  return absl::OkStatus();
}

absl::Status CudaStepMemory::Upload(const CudaStep& step, int source) {
  return ForEach(step, [&](auto& table, const auto& data) { return table.Upload(*stream_, data, source); });
}

}  // namespace hybridgen
