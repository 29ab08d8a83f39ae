#include "backend/cuda_device.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "backend/cuda_copies.h"
#include "backend/cuda_host_part.h"
#include "backend/cuda_plan.h"
#include "backend/device_table.h"

namespace hybridgen {
namespace {

constexpr int kStepsInFlight = JointMemory::kMaxStepsInFlight;

// Everything of a step in device memory, at addresses that stay until something has to grow.
struct StepTables {
  DeviceTable<int64_t> slots;
  DeviceTable<KvPage> pages;
  DeviceTable<cuda::AttendItem> items;
  DeviceTable<int32_t> kv_begin, kv_end, position;
  DeviceTable<cuda::MergeItem> output_merges, row_merges, joins;
  DeviceTable<int32_t> query_tokens, write_tokens;

  // Calls f(table, data of the step) for each.
  template <typename F>
  absl::Status ForEach(const CudaStep& step, const F& f) {
    for (const absl::Status& status :
         {f(slots, step.slots), f(pages, step.pages), f(items, step.items), f(kv_begin, step.kv_begin),
          f(kv_end, step.kv_end), f(position, step.position), f(output_merges, step.output_merges),
          f(row_merges, step.row_merges), f(joins, step.joins), f(query_tokens, step.query_tokens),
          f(write_tokens, step.write_tokens)}) {
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
};

cuda::Rows RowsOf(const TensorView& tensor) { return {tensor.data, tensor.token_stride, tensor.head_stride}; }

class CudaDevice final : public DeviceWorker {
 public:
  CudaDevice(const CudaDeviceOptions& options, std::shared_ptr<DeviceStream> stream)
      : o_(options), stream_(std::move(stream)) {
    limits_.page_tokens = o_.page_tokens;
    limits_.max_call_rows = o_.max_call_rows;
    limits_.head_groups = o_.head_groups;
    for (const LayerParams& layer : o_.layers) {
      query_heads_ = std::max(query_heads_, layer.num_query_heads);
      const auto known = std::find(limits_.windows.begin(), limits_.windows.end(), layer.sliding_window);
      window_of_.push_back(static_cast<int>(known - limits_.windows.begin()));
      if (known == limits_.windows.end()) limits_.windows.push_back(layer.sliding_window);
    }
    layout_ = CallLayout(o_.max_call_rows, query_heads_, o_.num_kv_heads, o_.head_size, o_.dtype);
    for (std::shared_ptr<CudaHostPart>& part : parts_) {
      part = std::make_shared<CudaHostPart>(o_.host, layout_, static_cast<int>(o_.layers.size()), o_.head_size,
                                            o_.num_kv_heads);
    }
    if (o_.host_tiers != nullptr) {
      copies_ = std::make_unique<CudaCopies>(stream_.get(), o_.host_tiers, o_.stored_layers);
    }
  }

  ~CudaDevice() override {
    // The joint's memory and the tables must outlive the device's use of them; a device that is stuck ends by the
    // joint's deadlines.
    if (dead_.ok()) stream_->Wait(last_mark_, 3 * o_.timeout).IgnoreError();
  }

  absl::Status Start();

  absl::Status RunLayer(const LayerCall& call) override {
    if (!dead_.ok()) return Dead();
    return Die(TryRunLayer(call));
  }

  absl::Status EnqueueCopies(std::vector<CopyTask> tasks) override {
    if (!dead_.ok()) return Dead();
    if (copies_ == nullptr) {
      return absl::FailedPreconditionError("cuda device: copies need host tiers; this device was made without");
    }
    return Die(copies_->Enqueue(std::move(tasks)));
  }

  std::vector<CopyTask> TakeFinishedCopies() override {
    if (!dead_.ok() || copies_ == nullptr) return {};
    absl::StatusOr<std::vector<CopyTask>> finished = copies_->TakeFinished();
    if (finished.ok()) return *std::move(finished);
    Die(finished.status()).IgnoreError();
    return {};
  }

  absl::Status Drain() override {
    if (!dead_.ok()) return Dead();
    return Die(TryDrain());
  }

  int64_t CompletedStep(int64_t newest) override {
    if (!dead_.ok()) return newest;  // nothing runs any more
    if (absl::Status status = Die(NoteCompleted()); !status.ok()) return newest;
    if (!open_.empty()) return std::min(newest, open_.front().step - 1);
    return step_ != 0 ? std::min(newest, step_ - 1) : newest;
  }

  int num_workers() const override { return stream_->num_processors(); }
  int64_t read_bytes(Tier tier) const override { return tier == Tier::kDevice ? read_bytes_ : 0; }
  DeviceSeconds seconds() const override {
    DeviceSeconds seconds;
    for (const std::shared_ptr<CudaHostPart>& part : parts_) seconds.host += part->attend_seconds();
    return seconds;
  }

 private:
  // A step whose layers are all queued, and the place behind them.
  struct OpenStep {
    int64_t step = 0;
    int parity = 0;
    StreamMark mark = 0;
  };

  // The first error is the one that later calls tell, and what the joint knows says more than the stream.
  absl::Status Die(absl::Status status) {
    if (status.ok()) return status;
    if (joint_ != nullptr && !joint_->status().ok()) status = joint_->status();
    dead_ = status;
    return status;
  }
  absl::Status Dead() const {
    return absl::FailedPreconditionError(
        absl::StrCat("cuda device: dead, create a new backend; it failed with: ", dead_.message()));
  }

  absl::Status TryRunLayer(const LayerCall& call);
  absl::Status BeginStep(const LayerCall& call);
  absl::Status EndStep();
  absl::Status MakeRoom(const CudaStep& step);
  absl::Status BeginJoint(const std::shared_ptr<CudaHostPart>& part);
  absl::Status NoteCompleted();
  absl::Status TryDrain();
  absl::Status WaitFor(const OpenStep& step);
  absl::Status Note(const OpenStep& step);

  absl::Status WriteKv(const LayerCall& call, const CudaStep& step);
  absl::Status Decode(const LayerCall& call, const CudaStep& step);
  absl::Status Merge(const LayerCall& call, const DeviceTable<cuda::MergeItem>& table, Range items,
                     const cuda::MergeParams& to);
  absl::Status MergeSplits(const LayerCall& call, const CudaStep& step);
  absl::Status Publish(const LayerCall& call, const CudaStep& step, int index);
  absl::Status Join(const LayerCall& call, const CudaStep& step, int index);

  uint32_t CallNumber(const CudaStep& step, int index) const {
    return static_cast<uint32_t>(layers_run_ * static_cast<int>(step.calls.size()) + index);
  }
  CudaStep& step() { return parts_[parity_]->step(); }

  const CudaDeviceOptions o_;
  const std::shared_ptr<DeviceStream> stream_;
  CudaPlanLimits limits_;
  CallLayout layout_;
  int query_heads_ = 1;         // the most of all layers
  std::vector<int> window_of_;  // [layer] in limits_.windows
  std::unique_ptr<CudaCopies> copies_;
  std::shared_ptr<CudaHostPart> parts_[kStepsInFlight];  // by parity of the step; the joint's work owns them too
  StepTables tables_;
  DeviceTable<float> slopes_, sinks_;  // [layer][query_heads_]
  std::shared_ptr<void> plan_memory_, status_memory_, blocks_done_memory_;  // device
  std::shared_ptr<void> status_copy_;                                       // pinned, [parity]
  std::shared_ptr<void> partial_o_, partial_lse_;                           // device
  size_t partial_rows_ = 0;
  std::unique_ptr<JointDispatcher> joint_;  // null without host tiers
  JointTable table_ = {};
  uint64_t first_sequence_ = 0;  // of the present step

  absl::Status dead_;
  int64_t step_ = 0;  // the present step; 0: none
  int parity_ = 1;
  int layers_run_ = 0;  // of the present step
  std::deque<OpenStep> open_;
  StreamMark last_mark_ = 0;
  int64_t read_bytes_ = 0;
};

// Memory of fixed size, the layers' vectors, and the joint.
absl::Status CudaDevice::Start() {
  for (auto [memory, bytes] : {std::pair<std::shared_ptr<void>*, size_t>{&plan_memory_, sizeof(JointPlan)},
                               {&status_memory_, sizeof(uint32_t)},
                               {&blocks_done_memory_, sizeof(uint32_t)}}) {
    absl::StatusOr<std::shared_ptr<void>> allocated = stream_->AllocateDevice(bytes);
    if (!allocated.ok()) return allocated.status();
    *memory = *std::move(allocated);
    if (absl::Status status = stream_->Zero(memory->get(), bytes); !status.ok()) return status;
  }
  absl::StatusOr<std::shared_ptr<void>> copy = stream_->AllocatePinned(kStepsInFlight * sizeof(uint32_t));
  if (!copy.ok()) return copy.status();
  status_copy_ = *std::move(copy);
  std::vector<float> slopes, sinks;
  for (const LayerParams& layer : o_.layers) {
    for (auto [from, to] : {std::pair{&layer.alibi_slopes, &slopes}, {&layer.sinks, &sinks}}) {
      const size_t end = to->size() + query_heads_;
      to->insert(to->end(), from->begin(), from->end());
      to->resize(end, 0.0f);
    }
  }
  for (auto [table, data] : {std::pair{&slopes_, &slopes}, {&sinks_, &sinks}}) {
    if (absl::Status status = table->Grow(*stream_, data->size()); !status.ok()) return status;
    if (absl::Status status = table->Upload(*stream_, *data, 0); !status.ok()) return status;
  }
  if (o_.host_tiers == nullptr) return absl::OkStatus();
  JointOptions joint = o_.joint;
  joint.bytes = layout_.bytes;
  joint.worker_timeout = o_.timeout;
  joint.device_timeout = 2 * o_.timeout;
  joint.allocate = [stream = stream_](size_t bytes) { return stream->AllocatePinned(bytes); };
  absl::StatusOr<std::unique_ptr<JointDispatcher>> dispatcher = JointDispatcher::Create(std::move(joint));
  if (!dispatcher.ok()) return dispatcher.status();
  joint_ = *std::move(dispatcher);
  table_ = joint_->memory().table();
  table_.plan = static_cast<JointPlan*>(plan_memory_.get());
  return absl::OkStatus();
}

// ---- Steps ----

absl::Status CudaDevice::BeginStep(const LayerCall& call) {
  if (absl::Status status = EndStep(); !status.ok()) return status;
  // The step before the last one used the same part, sources and plan.
  while (open_.size() >= kStepsInFlight) {
    if (absl::Status status = WaitFor(open_.front()); !status.ok()) return status;
  }
  parity_ = 1 - parity_;
  const std::shared_ptr<CudaHostPart>& part = parts_[parity_];
  limits_.page_bytes = call.pages->pool_page_bytes;
  BuildCudaStep(*call.plan, limits_, part->step());
  const CudaStep& built = part->step();
  if (!built.calls.empty() && joint_ == nullptr) {
    return absl::InternalError("cuda device: the plan names host pages, and the device was made without host tiers");
  }
  part->Reserve(query_heads_);
  if (absl::Status status = MakeRoom(built); !status.ok()) return status;
  const auto upload = [&](auto& table, const auto& data) { return table.Upload(*stream_, data, parity_); };
  if (absl::Status status = tables_.ForEach(built, upload); !status.ok()) return status;
  if (!built.calls.empty()) {
    if (absl::Status status = BeginJoint(part); !status.ok()) return status;
  }
  step_ = built.step;
  layers_run_ = 0;
  return absl::OkStatus();
}

// Tables grow when the device is idle, and then by half, so that this happens a few times in a run.
absl::Status CudaDevice::MakeRoom(const CudaStep& step) {
  bool room = static_cast<size_t>(step.partial_rows) <= partial_rows_;
  const auto holds = [&](auto& table, const auto& data) {
    room = room && table.Holds(data.size());
    return absl::OkStatus();
  };
  tables_.ForEach(step, holds).IgnoreError();
  if (room) return absl::OkStatus();
  if (absl::Status status = TryDrain(); !status.ok()) return status;
  const auto grow = [&](auto& table, const auto& data) {
    return table.Holds(data.size()) ? absl::OkStatus() : table.Grow(*stream_, data.size());
  };
  if (absl::Status status = tables_.ForEach(step, grow); !status.ok()) return status;
  if (static_cast<size_t>(step.partial_rows) <= partial_rows_) return absl::OkStatus();
  const size_t rows = step.partial_rows + step.partial_rows / 2;
  const size_t lse_bytes = rows * query_heads_ * sizeof(float);
  absl::StatusOr<std::shared_ptr<void>> o = stream_->AllocateDevice(lse_bytes * o_.head_size);
  if (!o.ok()) return o.status();
  absl::StatusOr<std::shared_ptr<void>> lse = stream_->AllocateDevice(lse_bytes);
  if (!lse.ok()) return lse.status();
  partial_o_ = *std::move(o);
  partial_lse_ = *std::move(lse);
  partial_rows_ = rows;
  return absl::OkStatus();
}

absl::Status CudaDevice::BeginJoint(const std::shared_ptr<CudaHostPart>& part) {
  const int calls = static_cast<int>(o_.layers.size() * part->step().calls.size());
  const auto deadline = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(o_.timeout);
  for (;;) {
    absl::StatusOr<const JointPlan*> plan =
        joint_->BeginStep(calls, [part](const JointCall& joint) { return part->Answer(joint); });
    if (plan.ok()) {
      first_sequence_ = (*plan)->first_sequence;
      return stream_->CopyToDevice(plan_memory_.get(), *plan, sizeof(JointPlan));
    }
    // The device has passed the step before the last, so its answers are out; the dispatcher is about to put it away.
    if (!joint_->status().ok() || std::chrono::steady_clock::now() > deadline) return plan.status();
    std::this_thread::yield();
  }
}

absl::Status CudaDevice::EndStep() {
  if (step_ == 0) return absl::OkStatus();
  const int layers = static_cast<int>(o_.layers.size());
  if (!step().calls.empty() && layers_run_ != layers) {
    return absl::FailedPreconditionError(absl::StrCat("forward: step ", step_, " was left after ", layers_run_, " of ",
                                                      layers, " layers; run every layer of a plan once, in order"));
  }
  uint32_t* const copy = static_cast<uint32_t*>(status_copy_.get()) + parity_;
  if (absl::Status status = stream_->CopyToHost(copy, status_memory_.get(), sizeof(*copy)); !status.ok()) return status;
  absl::StatusOr<StreamMark> mark = stream_->Mark();
  if (!mark.ok()) return mark.status();
  last_mark_ = *mark;
  open_.push_back({step_, parity_, *mark});
  step_ = 0;
  return absl::OkStatus();
}

// What the device says of a step that is done.
absl::Status CudaDevice::Note(const OpenStep& step) {
  const uint32_t status = static_cast<const uint32_t*>(status_copy_.get())[step.parity];
  if ((status & cuda::kStatusInfiniteLogit) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("attend: a logit of step ", step.step,
                   " is +inf (query or key overflowed); accepted: finite or -inf logits. Check the model's weights and "
                   "its dtype's range"));
}

absl::Status CudaDevice::WaitFor(const OpenStep& step) {
  if (absl::Status status = stream_->Wait(step.mark, 3 * o_.timeout); !status.ok()) return status;
  return NoteCompleted();
}

absl::Status CudaDevice::NoteCompleted() {
  while (!open_.empty()) {
    absl::StatusOr<bool> passed = stream_->Passed(open_.front().mark);
    if (!passed.ok()) return passed.status();
    if (!*passed) break;
    if (absl::Status status = Note(open_.front()); !status.ok()) return status;
    open_.pop_front();
  }
  return absl::OkStatus();
}

absl::Status CudaDevice::TryDrain() {
  if (step_ != 0 && (step().calls.empty() || layers_run_ == static_cast<int>(o_.layers.size()))) {
    if (absl::Status status = EndStep(); !status.ok()) return status;
  }
  absl::StatusOr<StreamMark> mark = stream_->Mark();
  if (!mark.ok()) return mark.status();
  last_mark_ = *mark;
  if (absl::Status status = stream_->Wait(*mark, 3 * o_.timeout); !status.ok()) return status;
  return NoteCompleted();
}

// ---- Layers ----

absl::Status CudaDevice::TryRunLayer(const LayerCall& call) {
  if (absl::Status status = stream_->SwitchTo(call.stream); !status.ok()) return status;
  if (absl::Status status = stream_->CheckNotCapturing(); !status.ok()) return status;
  if (call.plan->step != step_) {
    if (absl::Status status = BeginStep(call); !status.ok()) return status;
  }
  const CudaStep& step = this->step();
  if (call.pages->pool_page_bytes != limits_.page_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("cuda device: blocks of layer ", call.layer, " are ",
                                                   call.pages->pool_page_bytes, " bytes apart; accepted: ",
                                                   limits_.page_bytes, ", as in the other layers"));
  }
  if (!step.calls.empty() && layers_run_ == static_cast<int>(o_.layers.size())) {
    return absl::FailedPreconditionError(absl::StrCat("forward: all ", layers_run_, " layers of step ", step.step,
                                                      " have run; run every layer of a plan once, in order"));
  }
  if (absl::Status status = WriteKv(call, step); !status.ok()) return status;
  const int calls = static_cast<int>(step.calls.size());
  if (calls > 0) {
    parts_[parity_]->SetLayer(layers_run_, call);
    if (absl::Status status = Publish(call, step, 0); !status.ok()) return status;
  }
  if (absl::Status status = Decode(call, step); !status.ok()) return status;
  if (absl::Status status = MergeSplits(call, step); !status.ok()) return status;
  for (int i = 0; i < calls; ++i) {
    // One call ahead, whose slot is free since the call before was joined.
    if (i + 1 < calls) {
      if (absl::Status status = Publish(call, step, i + 1); !status.ok()) return status;
    }
    if (absl::Status status = Join(call, step, i); !status.ok()) return status;
  }
  read_bytes_ += step.device_tokens[window_of_[call.layer]] * 2 * o_.num_kv_heads * o_.head_size *
                 static_cast<int64_t>(DTypeSize(o_.dtype));
  ++layers_run_;
  return absl::OkStatus();
}

absl::Status CudaDevice::WriteKv(const LayerCall& call, const CudaStep& step) {
  if (call.key.data == nullptr || step.slots.empty()) return absl::OkStatus();
  cuda::WriteKvParams p;
  p.key = RowsOf(call.key);
  p.value = RowsOf(call.value);
  p.num_tokens = step.num_tokens;
  p.slots = tables_.slots.data();
  p.geometry = call.pages->pool;
  p.k_cache = reinterpret_cast<void*>(call.pages->pool_k);
  p.v_cache = reinterpret_cast<void*>(call.pages->pool_v);
  p.k_page_stride = p.v_page_stride = static_cast<int64_t>(call.pages->pool_page_bytes / DTypeSize(o_.dtype));
  return stream_->WriteKv(p);
}

absl::Status CudaDevice::Decode(const LayerCall& call, const CudaStep& step) {
  if (step.items.empty()) return absl::OkStatus();
  const int64_t vectors = static_cast<int64_t>(call.layer) * query_heads_;
  cuda::AttendParams p;
  p.q = RowsOf(call.query);
  p.query_heads = call.params->num_query_heads;
  p.geometry = call.pages->pool;
  p.pages = tables_.pages.data();
  p.k_base = call.pages->pool_k;
  p.v_base = call.pages->pool_v;
  p.items = tables_.items.data();
  p.num_items = static_cast<int>(step.items.size());
  p.max_item_tokens = step.max_item_tokens;
  p.kv_begin = tables_.kv_begin.data() + static_cast<int64_t>(window_of_[call.layer]) * step.num_tokens;
  p.kv_end = tables_.kv_end.data();
  p.position = tables_.position.data();
  p.scale = call.params->scale;
  p.soft_cap = call.params->soft_cap;
  p.alibi_slopes = call.params->alibi_slopes.empty() ? nullptr : slopes_.data() + vectors;
  p.sinks = call.params->sinks.empty() ? nullptr : sinks_.data() + vectors;
  p.partials = {static_cast<float*>(partial_o_.get()), static_cast<float*>(partial_lse_.get())};
  p.o = RowsOf(call.output);
  p.status = static_cast<uint32_t*>(status_memory_.get());
  return stream_->Decode(p);
}

absl::Status CudaDevice::Merge(const LayerCall& call, const DeviceTable<cuda::MergeItem>& table, Range items,
                               const cuda::MergeParams& to) {
  if (items.size() == 0) return absl::OkStatus();
  cuda::MergeParams p = to;
  p.items = table.data() + items.begin;
  p.num_items = items.size();
  p.query_heads = call.params->num_query_heads;
  p.head_size = o_.head_size;
  p.device = {static_cast<float*>(partial_o_.get()), static_cast<float*>(partial_lse_.get())};
  return stream_->Merge(p);
}

absl::Status CudaDevice::MergeSplits(const LayerCall& call, const CudaStep& step) {
  cuda::MergeParams output;
  output.o = RowsOf(call.output);
  output.dtype = o_.dtype;
  const Range outputs = {0, static_cast<int32_t>(step.output_merges.size())};
  if (absl::Status status = Merge(call, tables_.output_merges, outputs, output); !status.ok()) return status;
  cuda::MergeParams rows;
  rows.o = {partial_o_.get(), static_cast<int64_t>(call.params->num_query_heads) * o_.head_size, o_.head_size};
  rows.dtype = DType::kFloat32;
  rows.lse = static_cast<float*>(partial_lse_.get());
  return Merge(call, tables_.row_merges, {0, static_cast<int32_t>(step.row_merges.size())}, rows);
}

absl::Status CudaDevice::Publish(const LayerCall& call, const CudaStep& step, int index) {
  const CudaCall& part = step.calls[index];
  cuda::PublishParams p;
  p.table = table_;
  p.call = CallNumber(step, index);
  p.head_size = o_.head_size;
  p.blocks_done = static_cast<uint32_t*>(blocks_done_memory_.get());
  p.parts[0] = {RowsOf(call.query), tables_.query_tokens.data() + part.query_rows.begin, part.query_rows.size(),
                call.params->num_query_heads, static_cast<uint64_t>(layout_.query)};
  if (call.key.data != nullptr) {
    const int32_t* const tokens = tables_.write_tokens.data() + part.write_rows.begin;
    p.parts[1] = {RowsOf(call.key), tokens, part.write_rows.size(), o_.num_kv_heads,
                  static_cast<uint64_t>(layout_.key)};
    p.parts[2] = {RowsOf(call.value), tokens, part.write_rows.size(), o_.num_kv_heads,
                  static_cast<uint64_t>(layout_.value)};
  }
  return stream_->Publish(p);
}

absl::Status CudaDevice::Join(const LayerCall& call, const CudaStep& step, int index) {
  const uint32_t number = CallNumber(step, index);
  if (absl::Status status = stream_->Await({table_, number}); !status.ok()) return status;
  unsigned char* const slot = JointSlot(table_, first_sequence_ + number);
  cuda::MergeParams p;
  p.o = RowsOf(call.output);
  p.dtype = o_.dtype;
  p.host = {reinterpret_cast<float*>(slot + table_.o_offset), reinterpret_cast<float*>(slot + table_.lse_offset)};
  p.first_host_row = kFirstHostRow;
  return Merge(call, tables_.joins, step.calls[index].joins, p);
}

}  // namespace

absl::Status CheckCudaModel(DType dtype, int head_size, int page_tokens) {
  cuda::AttendParams p;
  p.query_heads = p.geometry.kv_heads = 1;
  p.geometry.dtype = dtype;
  p.geometry.head_size = head_size;
  p.geometry.page_tokens = page_tokens;
  const cuda::LaunchStatus status = cuda::Check(p);
  if (status == cuda::LaunchStatus::kOk) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("create backend: device_kind cuda: ", cuda::LaunchStatusText(status)));
}

absl::StatusOr<std::unique_ptr<DeviceWorker>> CreateCudaDevice(const CudaDeviceOptions& options,
                                                               std::shared_ptr<DeviceStream> stream) {
  if (absl::Status status = CheckCudaModel(options.dtype, options.head_size, options.page_tokens); !status.ok()) {
    return status;
  }
  if (options.layers.empty()) return absl::FailedPreconditionError("cuda device: no layer; add the layers first");
  if (options.max_call_rows < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("cuda device: max_call_rows is ", options.max_call_rows, "; accepted: 1 or more"));
  }
  auto device = std::make_unique<CudaDevice>(options, std::move(stream));
  if (absl::Status status = device->Start(); !status.ok()) return status;
  return device;
}

}  // namespace hybridgen
