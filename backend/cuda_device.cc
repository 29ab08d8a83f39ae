#include "backend/cuda_device.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "backend/cuda_copies.h"
#include "backend/cuda_host_part.h"
#include "backend/cuda_layers.h"
#include "backend/cuda_plan.h"
#include "backend/cuda_step_memory.h"
#include "backend/cuda_streaming.h"
#include "backend/layer_times.h"

namespace hybridgen {
namespace {

constexpr int kStepsInFlight = JointMemory::kMaxStepsInFlight;
static_assert(kStepsInFlight == kTableSources, "steps in flight take turns at the tables' sources");
// Query rows of an item up to which decode reads its pages once.
constexpr int kDecodeRows = 16;

int MostQueryHeads(const CudaDeviceOptions& options) {
  int most = options.num_kv_heads;
  for (const LayerParams& layer : options.layers) most = std::max(most, layer.num_query_heads);
  return most;
}

class CudaDevice final : public DeviceWorker {
 public:
  CudaDevice(const CudaDeviceOptions& options, std::shared_ptr<DeviceStream> stream)
      : o_(options),
        stream_(std::move(stream)),
        query_heads_(MostQueryHeads(options)),
        memory_(stream_.get(), query_heads_, options.head_size),
        layers_(stream_.get(), &memory_, options.dtype, options.head_size, options.num_kv_heads),
        streaming_(stream_.get(), &memory_),
        times_(stream_.get(), static_cast<int>(options.layers.size())),
        layout_(options.max_call_rows, query_heads_, options.num_kv_heads, options.head_size, options.dtype) {
    limits_.decode_tokens = std::max(1, kDecodeRows / (query_heads_ / o_.num_kv_heads));
    limits_.page_tokens = o_.page_tokens;
    limits_.max_call_rows = o_.max_call_rows;
    limits_.head_groups = o_.head_groups;
    for (const LayerParams& layer : o_.layers) {
      const auto known = std::find(limits_.windows.begin(), limits_.windows.end(), layer.sliding_window);
      window_of_.push_back(static_cast<int>(known - limits_.windows.begin()));
      if (known == limits_.windows.end()) limits_.windows.push_back(layer.sliding_window);
    }
    limits_.ring.pages = o_.ring_pages;
    if (!o_.stored_layers.empty()) {  // all alike
      const LayerPages& pages = o_.stored_layers[0];
      limits_.ring.head_groups = pages.head_groups;
      limits_.ring.head_group_stride = pages.head_group_stride;
      limits_.ring.group_bytes =
          pages.host.kv_heads * static_cast<uint64_t>(pages.pool.k_head_stride) * DTypeSize(pages.pool.dtype);
    }
    for (std::shared_ptr<CudaHostPart>& part : parts_) {
      part = std::make_shared<CudaHostPart>(o_.host, layout_, o_.layers, o_.head_size, o_.num_kv_heads);
    }
    if (o_.host_tiers != nullptr) {
      copies_ = std::make_unique<CudaCopies>(stream_.get(), o_.host_tiers, o_.stored_layers);
    }
  }

  ~CudaDevice() override {
    // The joint's memory and the tables must outlive the device's use of them; a device that is stuck ends by the
    // joint's deadlines.
    absl::StatusOr<StreamMark> mark = stream_->Mark();
    if (mark.ok()) stream_->Wait(*mark, 3 * o_.timeout).IgnoreError();
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
    untold_ = true;
    return {};
  }

  absl::Status Drain() override {
    if (!dead_.ok()) return Dead();
    if (absl::Status status = Die(TryDrain()); !status.ok() || copies_ == nullptr) return status;
    return Die(copies_->DrainStaging(3 * o_.timeout));
  }

  int64_t CompletedStep(int64_t newest) override {
    if (!dead_.ok()) return newest;  // nothing runs any more
    if (absl::Status status = Die(NoteCompleted()); !status.ok()) {
      untold_ = true;
      return newest;
    }
    if (!open_.empty()) return std::min(newest, open_.front().step - 1);
    return step_ != 0 ? std::min(newest, step_ - 1) : newest;
  }

  int num_workers() const override { return stream_->num_processors(); }
  int64_t read_bytes(Tier tier) const override { return read_bytes_[Index(tier)]; }
  DeviceSeconds seconds() const override {
    DeviceSeconds seconds;
    seconds.attend = times_.attend_seconds();
    seconds.merge = times_.merge_seconds();
    seconds.wait = wait_seconds_;
    if (copies_ != nullptr) seconds.transfer = copies_->seconds();
    for (const std::shared_ptr<CudaHostPart>& part : parts_) seconds.host += part->attend_seconds();
    return seconds;
  }

 private:
  // A step whose layers are all queued, and the place behind them.
  struct OpenStep {
    int64_t step = 0;
    int parity = 0;
    StreamMark mark = 0;
    std::array<int64_t, kNumTiers> read_bytes = {};
  };

  // The first error is the one that later calls tell, and what the joint knows says more than the stream.
  absl::Status Die(absl::Status status) {
    if (status.ok()) return status;
    if (joint_ != nullptr && !joint_->status().ok()) status = joint_->status();
    dead_ = status;
    return status;
  }
  absl::Status Dead() {
    if (std::exchange(untold_, false)) return dead_;
    return absl::FailedPreconditionError(
        absl::StrCat("cuda device: dead, create a new backend; it failed with: ", dead_.message()));
  }

  absl::Status TryRunLayer(const LayerCall& call);
  absl::Status BeginStep(const LayerCall& call);
  absl::Status EndStep();
  absl::Status BeginJoint(const std::shared_ptr<CudaHostPart>& part);
  absl::Status NoteCompleted();
  absl::Status TryDrain();
  absl::Status WaitFor(const OpenStep& step);
  absl::Status Wait(StreamMark mark);
  absl::Status Note(const OpenStep& step);

  LayerJointCall Call(int index) {
    const uint32_t number = static_cast<uint32_t>(layers_run_ * static_cast<int>(step().calls.size()) + index);
    return {index, number, first_sequence_ + number};
  }
  CudaStep& step() { return parts_[parity_]->step(); }

  const CudaDeviceOptions o_;
  const std::shared_ptr<DeviceStream> stream_;
  const int query_heads_;  // the most of all layers
  CudaStepMemory memory_;
  CudaLayers layers_;
  CudaStreaming streaming_;
  LayerTimes times_;
  const CallLayout layout_;
  CudaPlanLimits limits_;
  std::vector<int> window_of_;                           // [layer] in limits_.windows
  std::unique_ptr<CudaCopies> copies_;                   // null without host tiers
  std::shared_ptr<CudaHostPart> parts_[kStepsInFlight];  // by parity of the step; the joint's work owns them too
  std::shared_ptr<void> plan_memory_;                    // JointPlan, device
  std::shared_ptr<void> status_copy_;                    // pinned, [parity]
  std::unique_ptr<JointDispatcher> joint_;               // null without host tiers
  uint64_t first_sequence_ = 0;                          // of the present step

  absl::Status dead_;
  bool untold_ = false;  // nobody has been told of it
  int64_t step_ = 0;     // the present step; 0: none
  int parity_ = 1;
  int layers_run_ = 0;  // of the present step
  std::deque<OpenStep> open_;
  // Of the present step, and of those that are done: bytes count when the times that they took do.
  std::array<int64_t, kNumTiers> step_bytes_ = {};
  std::array<int64_t, kNumTiers> read_bytes_ = {};
  double wait_seconds_ = 0;
};

absl::Status CudaDevice::Start() {
  if (absl::Status status = memory_.AddLayers(o_.layers); !status.ok()) return status;
  if (absl::Status status = layers_.Start(); !status.ok()) return status;
  if (absl::Status status = times_.Start(); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<void>> copy = stream_->AllocatePinned(kStepsInFlight * sizeof(uint32_t));
  if (!copy.ok()) return copy.status();
  status_copy_ = *std::move(copy);
  if (o_.host_tiers == nullptr) return absl::OkStatus();
  if (absl::Status status = copies_->Start(o_.staging_bytes); !status.ok()) return status;
  JointOptions joint = o_.joint;
  joint.bytes = layout_.bytes;
  joint.worker_timeout = o_.timeout;
  joint.device_timeout = 2 * o_.timeout;
  joint.allocate = [stream = stream_](size_t bytes) { return stream->AllocatePinned(bytes); };
  absl::StatusOr<std::unique_ptr<JointDispatcher>> dispatcher = JointDispatcher::Create(std::move(joint));
  if (!dispatcher.ok()) return dispatcher.status();
  joint_ = *std::move(dispatcher);
  absl::StatusOr<std::shared_ptr<void>> plan = stream_->AllocateDevice(sizeof(JointPlan));
  if (!plan.ok()) return plan.status();
  plan_memory_ = *std::move(plan);
  JointTable table = joint_->memory().table();
  table.plan = static_cast<JointPlan*>(plan_memory_.get());
  layers_.set_joint(table, layout_);
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
  if (!built.streamed.rounds.empty()) {
    if (absl::Status status = streaming_.Reserve(o_.ring_pages, limits_.page_bytes); !status.ok()) return status;
  }
  if (!memory_.Holds(built)) {
    if (absl::Status status = TryDrain(); !status.ok()) return status;
    if (absl::Status status = memory_.Grow(built); !status.ok()) return status;
  }
  if (absl::Status status = memory_.Upload(built, parity_); !status.ok()) return status;
  if (!built.calls.empty()) {
    if (absl::Status status = BeginJoint(part); !status.ok()) return status;
  }
  step_ = built.step;
  layers_run_ = 0;
  times_.BeginStep(parity_, static_cast<int>(built.calls.size()));
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
  if (absl::Status status = stream_->CopyToHost(copy, layers_.status_word(), sizeof(*copy)); !status.ok())
    return status;
  absl::StatusOr<StreamMark> mark = stream_->Mark();
  if (!mark.ok()) return mark.status();
  open_.push_back({step_, parity_, *mark, std::exchange(step_bytes_, {})});
  step_ = 0;
  return absl::OkStatus();
}

// What the device says of a step that is done.
absl::Status CudaDevice::Note(const OpenStep& step) {
  for (int tier = 0; tier < kNumTiers; ++tier) read_bytes_[tier] += step.read_bytes[tier];
  if (absl::Status noted = times_.Note(step.parity); !noted.ok()) return noted;
  const uint32_t status = static_cast<const uint32_t*>(status_copy_.get())[step.parity];
  if ((status & cuda::kStatusInfiniteLogit) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("attend: a logit of step ", step.step,
                   " is +inf (query or key overflowed); accepted: finite or -inf logits. Check the model's weights and "
                   "its dtype's range"));
}

absl::Status CudaDevice::Wait(StreamMark mark) {
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status = stream_->Wait(mark, 3 * o_.timeout);
  wait_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return status;
}

absl::Status CudaDevice::WaitFor(const OpenStep& step) {
  if (absl::Status status = Wait(step.mark); !status.ok()) return status;
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
  if (absl::Status status = Wait(*mark); !status.ok()) return status;
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
    return absl::InvalidArgumentError(
        absl::StrCat("cuda device: blocks of layer ", call.layer, " are ", call.pages->pool_page_bytes,
                     " bytes apart; accepted: ", limits_.page_bytes, ", as in the other layers"));
  }
  if (!step.calls.empty() && layers_run_ == static_cast<int>(o_.layers.size())) {
    return absl::FailedPreconditionError(absl::StrCat("forward: all ", layers_run_, " layers of step ", step.step,
                                                      " have run; run every layer of a plan once, in order"));
  }
  if (absl::Status status = layers_.WriteKv(call, step); !status.ok()) return status;
  const int calls = static_cast<int>(step.calls.size());
  if (calls > 0) {
    parts_[parity_]->SetLayer(layers_run_, call);
    if (absl::Status status = layers_.Publish(call, step, Call(0)); !status.ok()) return status;
  }
  const int window = window_of_[call.layer];
  const int run = layers_run_;
  if (absl::Status status = times_.Pass(LayerTimes::kBegin, run); !status.ok()) return status;
  if (absl::Status status = layers_.Attend(call, step, window); !status.ok()) return status;
  if (absl::Status status = layers_.MergeRows(call, step); !status.ok()) return status;
  if (absl::Status status = layers_.Stream(call, step, window, streaming_); !status.ok()) return status;
  if (absl::Status status = times_.Pass(LayerTimes::kAttended, run); !status.ok()) return status;
  if (absl::Status status = layers_.MergeOutputs(call, step); !status.ok()) return status;
  if (absl::Status status = times_.Pass(LayerTimes::kMerged, run); !status.ok()) return status;
  for (int i = 0; i < calls; ++i) {
    // One call ahead, whose slot is free since the call before was joined.
    if (i + 1 < calls) {
      if (absl::Status status = layers_.Publish(call, step, Call(i + 1)); !status.ok()) return status;
    }
    if (absl::Status status = layers_.Await(Call(i)); !status.ok()) return status;
    if (i + 1 == calls) {
      if (absl::Status status = times_.Pass(LayerTimes::kAnswered, run); !status.ok()) return status;
    }
    if (absl::Status status = layers_.Join(call, step, Call(i)); !status.ok()) return status;
  }
  if (calls > 0) {
    if (absl::Status status = times_.Pass(LayerTimes::kJoined, run); !status.ok()) return status;
  }
  for (int tier = 0; tier < kNumTiers; ++tier) {
    step_bytes_[tier] +=
        step.read_tokens[window][tier] * o_.num_kv_heads * o_.head_size * static_cast<int64_t>(DTypeSize(o_.dtype));
  }
  ++layers_run_;
  return absl::OkStatus();
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
  if (options.ring_pages < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("cuda device: ring_pages is ", options.ring_pages, "; accepted: 1 or more"));
  }
  if (options.max_call_rows < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("cuda device: max_call_rows is ", options.max_call_rows, "; accepted: 1 or more"));
  }
  auto device = std::make_unique<CudaDevice>(options, std::move(stream));
  if (absl::Status status = device->Start(); !status.ok()) return status;
  return device;
}

}  // namespace hybridgen
