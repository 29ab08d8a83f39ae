#include "backend/cuda_host_part.h"

#include <algorithm>
#include <chrono>

namespace hybridgen {
namespace {

template <typename T>
absl::Span<const T> Part(const std::vector<T>& list, Range range) {
  return absl::MakeConstSpan(list).subspan(range.begin, range.size());
}

}  // namespace

CallLayout::CallLayout(int rows, int query_heads, int kv_heads, int head_size, DType dtype) {
  const int64_t row = static_cast<int64_t>(head_size) * static_cast<int64_t>(DTypeSize(dtype));  // of one head
  key = query + rows * query_heads * row;
  value = key + rows * kv_heads * row;
  bytes.query = value + rows * kv_heads * row;
  bytes.lse = static_cast<int64_t>(rows) * query_heads * static_cast<int64_t>(sizeof(float));
  bytes.o = bytes.lse * head_size;
}

void CudaHostPart::Reserve(int query_heads) {
  const size_t rows = static_cast<size_t>(step_.host_partial_rows) * query_heads;
  if (partial_lse_.size() >= rows) return;
  partial_lse_.resize(rows);
  partial_o_.resize(rows * head_size_);
}

absl::Status CudaHostPart::Answer(const JointCall& joint) {
  const int calls = static_cast<int>(step_.calls.size());
  const HostLayer& layer = layers_[joint.index / calls];
  const LayerParams& params = params_[layer.layer];
  const CudaCall& part = step_.calls[joint.index % calls];
  char* const slot = static_cast<char*>(const_cast<void*>(joint.query));
  const int64_t query_row = static_cast<int64_t>(params.num_query_heads) * head_size_;
  const int64_t kv_row = static_cast<int64_t>(kv_heads_) * head_size_;
  LayerCall call;
  call.plan = &step_.host;
  call.params = &params;
  call.pages = &layer.pages;
  call.query = {slot + layout_.query, query_row, head_size_};
  if (layer.writes) {
    call.key = {slot + layout_.key, kv_row, head_size_};
    call.value = {slot + layout_.value, kv_row, head_size_};
  }
  call.partials = {partial_o_.data(), partial_lse_.data()};
  if (absl::Status s = worker_->Write(call, Part(step_.host.host_writes, part.host_writes)); !s.ok()) return s;
  const auto begin = std::chrono::steady_clock::now();
  absl::Status attended = worker_->Attend(call, Part(step_.host.cpu_items, part.cpu_items), part.cpu_group_ends);
  attend_ns_.fetch_add(std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin).count(),
                       std::memory_order_relaxed);
  if (!attended.ok()) return attended;
  const PartialWorkspace rows = {joint.o, joint.lse};
  return worker_->Merge(call, Part(step_.host.merges, part.cpu_merges), &rows);
}

}  // namespace hybridgen
