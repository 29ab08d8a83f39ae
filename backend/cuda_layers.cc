#include "backend/cuda_layers.h"

namespace hybridgen {
namespace {

cuda::Rows RowsOf(const TensorView& tensor) { return {tensor.data, tensor.token_stride, tensor.head_stride}; }

}  // namespace

absl::Status CudaLayers::Start(absl::Span<const LayerParams> layers) {
  if (absl::Status status = memory_.AddLayers(layers); !status.ok()) return status;
  for (std::shared_ptr<void>* word : {&status_, &blocks_done_}) {
    absl::StatusOr<std::shared_ptr<void>> memory = stream_->AllocateDevice(sizeof(uint32_t));
    if (!memory.ok()) return memory.status();
    *word = *std::move(memory);
    if (absl::Status status = stream_->Zero(word->get(), sizeof(uint32_t)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaLayers::Run(const LayerCall& call, const CudaStep& step, int window, int index,
                             const EagerParts& eager) {
  const int calls = static_cast<int>(step.calls.size());
  const auto joint = [&](int i) { return LayerJointCall{i, static_cast<uint32_t>(index * calls + i)}; };
  const auto pass = [&](LayerTimes::Place place) {
    return eager.times == nullptr ? absl::OkStatus() : eager.times->Pass(place, index);
  };
  if (absl::Status status = WriteKv(call, step); !status.ok()) return status;
  if (calls > 0) {
    if (absl::Status status = Publish(call, step, joint(0)); !status.ok()) return status;
  }
  if (absl::Status status = pass(LayerTimes::kBegin); !status.ok()) return status;
  if (absl::Status status = Attend(call, step, window); !status.ok()) return status;
  if (absl::Status status = MergeRows(call, step); !status.ok()) return status;
  if (eager.streaming != nullptr) {
    if (absl::Status status = Stream(call, step, window, *eager.streaming); !status.ok()) return status;
  }
  if (absl::Status status = pass(LayerTimes::kAttended); !status.ok()) return status;
  if (absl::Status status = MergeOutputs(call, step); !status.ok()) return status;
  if (absl::Status status = pass(LayerTimes::kMerged); !status.ok()) return status;
  for (int i = 0; i < calls; ++i) {
    // One call ahead, whose slot is free since the call before was joined.
    if (i + 1 < calls) {
      if (absl::Status status = Publish(call, step, joint(i + 1)); !status.ok()) return status;
    }
    if (absl::Status status = Await(joint(i)); !status.ok()) return status;
    if (i + 1 == calls) {
      if (absl::Status status = pass(LayerTimes::kAnswered); !status.ok()) return status;
    }
    if (absl::Status status = Join(call, step, joint(i)); !status.ok()) return status;
  }
  return calls > 0 ? pass(LayerTimes::kJoined) : absl::OkStatus();
}

cuda::WriteKvParams CudaLayers::WriteArguments(const LayerCall& call) const {
  cuda::WriteKvParams p;
  p.key = RowsOf(call.key);
  p.value = RowsOf(call.value);
  p.dtype = dtype_;
  p.k_scale = call.params->k_scale;
  p.v_scale = call.params->v_scale;
  p.geometry = call.pages->pool;
  p.k_cache = reinterpret_cast<void*>(call.pages->pool_k);
  p.v_cache = reinterpret_cast<void*>(call.pages->pool_v);
  p.k_page_stride = p.v_page_stride = static_cast<int64_t>(call.pages->pool_page_bytes / DTypeSize(p.geometry.dtype));
  return p;
}

absl::Status CudaLayers::WriteKv(const LayerCall& call, const CudaStep& step) {
  if (call.key.data == nullptr || step.slots.empty()) return absl::OkStatus();
  cuda::WriteKvParams p = WriteArguments(call);
  p.num_tokens = step.num_tokens;
  p.slots = memory_.tables().slots.data();
  return stream_->WriteKv(p);
}

cuda::AttendParams CudaLayers::AttendArguments(const LayerCall& call, const CudaStep& step, int window) const {
  const CudaStepMemory::Tables& t = memory_.tables();
  cuda::AttendParams p;
  p.q = RowsOf(call.query);
  p.dtype = dtype_;
  p.query_heads = call.params->num_query_heads;
  p.geometry = call.pages->pool;
  p.pages = t.pages.data();
  p.k_base = call.pages->pool_k;
  p.v_base = call.pages->pool_v;
  p.kv_begin = t.kv_begin.data() + static_cast<int64_t>(window) * step.num_tokens;
  p.kv_end = t.kv_end.data();
  p.position = t.position.data();
  p.scale = call.params->scale * call.params->k_scale;
  p.v_scale = call.params->v_scale;
  p.soft_cap = call.params->soft_cap;
  p.alibi_slopes = call.params->alibi_slopes.empty() ? nullptr : memory_.slopes(call.layer);
  p.sinks = call.params->sinks.empty() ? nullptr : memory_.sinks(call.layer);
  p.partials = memory_.partials();
  p.o = RowsOf(call.output);
  p.status = static_cast<uint32_t*>(status_.get());
  return p;
}

absl::Status CudaLayers::Attend(const LayerCall& call, const CudaStep& step, int window) {
  const CudaStepMemory::Tables& t = memory_.tables();
  cuda::AttendParams p = AttendArguments(call, step, window);
  const auto with = [&](const DeviceTable<cuda::AttendItem>& table, const CudaStep::Items& items) {
    p.items = table.data();
    p.num_items = static_cast<int>(items.list.size());
    p.max_item_tokens = items.max_tokens;
    return p;
  };
  if (!step.decode.list.empty()) {
    if (absl::Status status = stream_->Decode(with(t.decode, step.decode)); !status.ok()) return status;
  }
  return step.prefill.list.empty() ? absl::OkStatus() : stream_->Prefill(with(t.prefill, step.prefill));
}

cuda::MergeParams CudaLayers::RowMerge(const LayerCall& call) const {
  cuda::MergeParams p;
  p.query_heads = call.params->num_query_heads;
  p.head_size = head_size_;
  p.device = memory_.partials();
  p.o = {p.device.o, static_cast<int64_t>(p.query_heads) * head_size_, head_size_};
  p.dtype = DType::kFloat32;
  p.lse = p.device.lse;
  return p;
}

cuda::MergeParams CudaLayers::OutputMerge(const LayerCall& call) const {
  cuda::MergeParams p = RowMerge(call);
  p.o = RowsOf(call.output);
  p.dtype = dtype_;
  p.lse = nullptr;
  return p;
}

absl::Status CudaLayers::Merge(cuda::MergeParams to, const DeviceTable<cuda::MergeItem>& table, Range items) {
  if (items.size() == 0) return absl::OkStatus();
  to.items = table.data() + items.begin;
  to.num_items = items.size();
  return stream_->Merge(to);
}

absl::Status CudaLayers::MergeRows(const LayerCall& call, const CudaStep& step) {
  return Merge(RowMerge(call), memory_.tables().row_merges, {0, static_cast<int32_t>(step.row_merges.size())});
}

absl::Status CudaLayers::Stream(const LayerCall& call, const CudaStep& step, int window,
                                const CudaStreaming& streaming) {
  if (step.streamed.rounds.empty()) return absl::OkStatus();
  return streaming.Run(call, step.streamed, window,
                       {WriteArguments(call), AttendArguments(call, step, window), RowMerge(call)});
}

absl::Status CudaLayers::MergeOutputs(const LayerCall& call, const CudaStep& step) {
  return Merge(OutputMerge(call), memory_.tables().output_merges, {0, static_cast<int32_t>(step.output_merges.size())});
}

absl::Status CudaLayers::Publish(const LayerCall& call, const CudaStep& step, const LayerJointCall& joint) {
  const CudaStepMemory::Tables& t = memory_.tables();
  const CudaCall& part = step.calls[joint.index];
  cuda::PublishParams p;
  p.table = table_;
  p.call = joint.number;
  p.head_size = head_size_;
  p.blocks_done = static_cast<uint32_t*>(blocks_done_.get());
  p.parts[0] = {RowsOf(call.query), t.query_tokens.data() + part.query_rows.begin, part.query_rows.size(),
                call.params->num_query_heads, static_cast<uint64_t>(layout_.query)};
  if (call.key.data != nullptr) {
    const int32_t* const tokens = t.write_tokens.data() + part.write_rows.begin;
    p.parts[1] = {RowsOf(call.key), tokens, part.write_rows.size(), kv_heads_, static_cast<uint64_t>(layout_.key)};
    p.parts[2] = {RowsOf(call.value), tokens, part.write_rows.size(), kv_heads_, static_cast<uint64_t>(layout_.value)};
  }
  return stream_->Publish(p);
}

absl::Status CudaLayers::Await(const LayerJointCall& joint) { return stream_->Await({table_, joint.number}); }

absl::Status CudaLayers::Join(const LayerCall& call, const CudaStep& step, const LayerJointCall& joint) {
  cuda::MergeParams p = OutputMerge(call);
  for (uint64_t parity : {0, 1}) {
    unsigned char* const slot = JointSlot(table_, parity);
    p.host[parity] = {reinterpret_cast<float*>(slot + table_.o_offset),
                      reinterpret_cast<float*>(slot + table_.lse_offset)};
  }
  p.first_sequence = &table_.plan->first_sequence;
  p.call = joint.number;
  p.first_host_row = kFirstHostRow;
  return Merge(p, memory_.tables().joins, step.calls[joint.index].joins);
}

}  // namespace hybridgen
