#include "backend/cuda_device.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "backend/cuda_device_impl.h"

namespace hybridgen {

absl::Status CudaDevice::Start() {
  if (absl::Status status = eager_.Start(o_.layers); !status.ok()) return status;
  if (replayed_ != nullptr) {
    if (absl::Status status = replayed_->Start(o_.layers); !status.ok()) return status;
    if (absl::Status status = replayed_->memory().Grow(graphs_->Largest()); !status.ok()) return status;
  }
  if (absl::Status status = times_.Start(); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<void>> reports = stream_->AllocatePinned(kStepsInFlight * sizeof(StepReport));
  if (!reports.ok()) return reports.status();
  reports_ = *std::move(reports);
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
  eager_.set_joint(table, layout_);
  if (replayed_ != nullptr) replayed_->set_joint(table, layout_);
  return absl::OkStatus();
}

// ---- Steps ----

absl::Status CudaDevice::BeginStep(const StepPlan& plan, uint64_t page_bytes, const GraphShape* shape,
                                   CUstream_st* stream) {
  if (!dead_.ok()) return Dead();
  CudaGraph* graph = nullptr;
  if (shape != nullptr) {
    absl::StatusOr<CudaGraph*> found = graphs_->Find(*shape);
    if (!found.ok()) return found.status();
    graph = *found;
  }
  if (absl::Status status = Die(FreePart(stream)); !status.ok()) return status;
  CudaHostPart& part = *parts_[1 - parity_];
  Build(plan, page_bytes, graph, part.step());
  if (graph == nullptr) return Die(TakeUp(Begun::kEager));
  if (absl::Status status = graphs_->Pad(*graph, part.step()); !status.ok()) return status;
  for (size_t i = 0; i < graph->layers.size(); ++i) {
    part.SetLayer(static_cast<int>(i), graph->layers[i]);
    CountReads(graph->layers[i].layer, graph->layers[i].pages, part.step());
  }
  return Die(TakeUp(Begun::kReplay));
}

absl::Status CudaDevice::CheckReplay(const StepPlan& plan, const GraphShape& shape) {
  absl::StatusOr<CudaGraph*> graph = graphs_->Find(shape);
  if (!graph.ok()) return graph.status();
  Build(plan, limits_.page_bytes, *graph, asked_);
  return graphs_->Pad(**graph, asked_);
}

absl::Status CudaDevice::BeginCapture(const GraphShape& shape, uint64_t page_bytes, CUstream_st* stream) {
  if (!dead_.ok()) return Dead();
  absl::StatusOr<CudaGraph*> graph = graphs_->Make(shape);
  if (!graph.ok()) return graph.status();
  captured_ = *graph;
  if (absl::Status status = Die(FreePart(stream)); !status.ok()) return status;
  CudaStep& step = parts_[1 - parity_]->step();
  Build(StepPlan(), page_bytes, captured_, step);
  step.step = step_ + 1;  // no step is done before this one
  if (absl::Status status = graphs_->Pad(*captured_, step); !status.ok()) return status;
  return Die(TakeUp(Begun::kCapture));
}

// Until the part, sources and joint plan of the step after this one are free: the step before the present one used
// them.
absl::Status CudaDevice::FreePart(CUstream_st* stream) {
  if (absl::Status status = CheckNotCaptured(stream); !status.ok()) return status;
  if (absl::Status status = stream_->SwitchTo(stream); !status.ok()) return status;
  if (absl::Status status = EndStep(); !status.ok()) return status;
  while (open_.size() >= kStepsInFlight) {
    if (absl::Status status = WaitFor(open_.front()); !status.ok()) return status;
  }
  return absl::OkStatus();
}

void CudaDevice::Build(const StepPlan& plan, uint64_t page_bytes, const CudaGraph* graph, CudaStep& step) {
  limits_.page_bytes = page_bytes;
  limits_.rows = graph == nullptr ? 0 : graph->shape.num_tokens;
  BuildCudaStep(plan, limits_, step);
}

// Queues what the next part's step, which has been built, brings to the device, and makes it the present one.
absl::Status CudaDevice::TakeUp(Begun begun) {
  const std::shared_ptr<CudaHostPart>& part = parts_[1 - parity_];
  const CudaStep& built = part->step();
  if (!built.calls.empty() && joint_ == nullptr) {
    return absl::InternalError("cuda device: the plan names host pages, and the device was made without host tiers");
  }
  part->Reserve(query_heads_);
  CudaStepMemory& memory = LayersOf(begun).memory();
  if (!built.streamed.rounds.empty()) {
    if (absl::Status status = streaming_.Reserve(o_.ring_pages, limits_.page_bytes); !status.ok()) return status;
  }
  if (begun == Begun::kEager && !memory.Holds(built)) {
    if (absl::Status status = TryDrain(); !status.ok()) return status;
    if (absl::Status status = memory.Grow(built); !status.ok()) return status;
  }
  parity_ = 1 - parity_;
  if (absl::Status status = memory.Upload(built, parity_); !status.ok()) return status;
  if (!built.calls.empty()) {
    if (absl::Status status = BeginJoint(part); !status.ok()) return status;
  } else if (begun != Begun::kEager && joint_ != nullptr) {  // the graph's calls do nothing
    const JointPlan* const idle = &joint_->memory().idle_plan();
    if (absl::Status status = stream_->CopyToDevice(plan_memory_.get(), idle, sizeof(*idle)); !status.ok()) {
      return status;
    }
  }
  begun_ = begun;
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
    if (plan.ok()) return stream_->CopyToDevice(plan_memory_.get(), *plan, sizeof(JointPlan));
    // The device has passed the step before the last, so its answers are out; the dispatcher is about to put it away.
    if (!joint_->status().ok() || std::chrono::steady_clock::now() > deadline) return plan.status();
    std::this_thread::yield();
  }
}

absl::Status CudaDevice::EndStep() {
  if (begun_ == Begun::kNothing) return absl::OkStatus();
  const int layers = static_cast<int>(o_.layers.size());
  if (begun_ == Begun::kEager && !step().calls.empty() && layers_run_ != layers) {
    return absl::FailedPreconditionError(absl::StrCat("forward: step ", step_, " was left after ", layers_run_, " of ",
                                                      layers, " layers; run every layer of a plan once, in order"));
  }
  StepReport* const report = static_cast<StepReport*>(reports_.get()) + parity_;
  const void* const word = LayersOf(begun_).status_word();
  if (absl::Status status = stream_->CopyToHost(&report->status, word, sizeof(report->status)); !status.ok()) {
    return status;
  }
  if (joint_ != nullptr && begun_ == Begun::kReplay) {
    const uint64_t* const runs = &static_cast<const JointPlan*>(plan_memory_.get())->runs;
    if (absl::Status status = stream_->CopyToHost(&report->runs, runs, sizeof(*runs)); !status.ok()) return status;
  }
  absl::StatusOr<StreamMark> mark = stream_->Mark();
  if (!mark.ok()) return mark.status();
  open_.push_back({step_, parity_, begun_, *mark, std::exchange(step_bytes_, {})});
  begun_ = Begun::kNothing;
  return absl::OkStatus();
}

// What the device says of a step that is done.
absl::Status CudaDevice::Note(const OpenStep& step) {
  const StepReport& report = static_cast<const StepReport*>(reports_.get())[step.parity];
  if (joint_ != nullptr && step.begun == Begun::kReplay && report.runs != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("begin step: the graph of step ", step.step, " was queued ", report.runs,
                     " times before the next call; queue it once, right behind the begin"));
  }
  for (int tier = 0; tier < kNumTiers; ++tier) read_bytes_[tier] += step.read_bytes[tier];
  if (absl::Status noted = times_.Note(step.parity); !noted.ok()) return noted;
  if ((report.status & cuda::kStatusInfiniteLogit) == 0) return absl::OkStatus();
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
  // An eager step with calls to come is not over.
  if (begun_ != Begun::kEager || step().calls.empty() || layers_run_ == static_cast<int>(o_.layers.size())) {
    if (absl::Status status = EndStep(); !status.ok()) return status;
  }
  absl::StatusOr<StreamMark> mark = stream_->Mark();
  if (!mark.ok()) return mark.status();
  if (absl::Status status = Wait(*mark); !status.ok()) return status;
  return NoteCompleted();
}

// ---- Creation ----

absl::Status CheckCudaModel(DType dtype, DType kv_dtype, int head_size, int page_tokens) {
  cuda::AttendParams p;
  p.query_heads = p.geometry.kv_heads = 1;
  p.dtype = dtype;
  p.geometry.dtype = kv_dtype;
  p.geometry.head_size = head_size;
  p.geometry.page_tokens = page_tokens;
  const cuda::LaunchStatus status = cuda::Check(p);
  std::string field;
  switch (status) {
    case cuda::LaunchStatus::kOk:
      return absl::OkStatus();
    case cuda::LaunchStatus::kUnsupportedDType:
      field = absl::StrCat("dtype is ", DTypeName(dtype), " and kv_dtype ", DTypeName(kv_dtype));
      break;
    case cuda::LaunchStatus::kUnsupportedHeadSize:
      field = absl::StrCat("head_size is ", head_size);
      break;
    default:  // nothing else is asked
      field = absl::StrCat("block_size is ", page_tokens);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("create backend: ", field, " with device_kind cuda: ", cuda::LaunchStatusText(status)));
}

absl::StatusOr<std::unique_ptr<DeviceWorker>> CreateCudaDevice(const CudaDeviceOptions& options,
                                                               std::shared_ptr<DeviceStream> stream) {
  if (options.layers.empty()) return absl::FailedPreconditionError("cuda device: no layer; add the layers first");
  if (options.ring_pages < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("cuda device: ring_pages is ", options.ring_pages, "; accepted: 1 or more"));
  }
  if (options.max_call_rows < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("cuda device: max_call_rows is ", options.max_call_rows, "; accepted: 1 or more"));
  }
  if (options.graph_tokens > options.max_call_rows) {
    return absl::InvalidArgumentError(absl::StrCat("cuda device: graph_tokens is ", options.graph_tokens,
                                                   "; accepted: up to max_call_rows, ", options.max_call_rows,
                                                   ", as a layer of a graph is one call"));
  }
  auto device = std::make_unique<CudaDevice>(options, std::move(stream));
  if (absl::Status status = device->Start(); !status.ok()) return status;
  return device;
}

}  // namespace hybridgen
