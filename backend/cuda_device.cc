#include "backend/cuda_device.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "backend/cuda_copies.h"
#include "backend/cuda_graphs.h"
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

// What the device says of a step behind it: a copy of the words that its kernels write.
struct StepReport {
  uint64_t runs;    // JointPlan::runs
  uint32_t status;  // AttendParams::status
};

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
        eager_(stream_.get(), query_heads_, options.dtype, options.head_size, options.num_kv_heads),
        streaming_(stream_.get(), &eager_.memory()),
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
    const int layers = static_cast<int>(o_.layers.size());
    graphs_ = std::make_unique<CudaGraphs>(CudaGraphLimits{o_.graph_tokens, o_.graph_pages, limits_.decode_tokens,
                                                           stream_->num_processors(), limits_.windows.size(), layers,
                                                           o_.host_tiers != nullptr});
    if (o_.graph_tokens == 0) return;
    replayed_ = std::make_unique<CudaLayers>(stream_.get(), query_heads_, o_.dtype, o_.head_size, o_.num_kv_heads);
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
    return Die(call.capture == nullptr ? TryRunLayer(call) : TryCaptureLayer(call));
  }

  absl::Status BeginStep(const StepPlan& plan, uint64_t page_bytes, const GraphShape* graph,
                         CUstream_st* stream) override;
  absl::Status CheckReplay(const StepPlan& plan, const GraphShape& graph) override;
  absl::Status BeginCapture(const GraphShape& graph, uint64_t page_bytes, CUstream_st* stream) override;

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
    return begun_ != Begun::kNothing ? std::min(newest, step_ - 1) : newest;
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
  // How the layers of the present step come.
  enum class Begun : uint8_t {
    kNothing,  // there is no present step
    kEager,    // by RunLayer
    kReplay,   // in a graph that the caller queues
    kCapture,  // a step without tokens, for a capture
  };
  // A step whose layers are all queued, and the place behind them.
  struct OpenStep {
    int64_t step = 0;
    int parity = 0;
    Begun begun = Begun::kEager;
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
  absl::Status TryCaptureLayer(const LayerCall& call);
  absl::Status CheckNotCaptured(CUstream_st* stream);
  absl::Status CheckPages(const LayerCall& call) const;
  absl::Status FreePart(CUstream_st* stream);
  void Build(const StepPlan& plan, uint64_t page_bytes, const CudaGraph* graph, CudaStep& step);
  absl::Status TakeUp(Begun begun);
  absl::Status EndStep();
  absl::Status BeginJoint(const std::shared_ptr<CudaHostPart>& part);
  absl::Status NoteCompleted();
  absl::Status TryDrain();
  absl::Status WaitFor(const OpenStep& step);
  absl::Status Wait(StreamMark mark);
  absl::Status Note(const OpenStep& step);

  CudaStep& step() { return parts_[parity_]->step(); }
  CudaLayers& LayersOf(Begun begun) { return begun == Begun::kEager ? eager_ : *replayed_; }
  void CountReads(int layer, const LayerPages& pages, const CudaStep& step) {
    const int64_t token = o_.num_kv_heads * o_.head_size * static_cast<int64_t>(DTypeSize(pages.pool.dtype));
    for (int tier = 0; tier < kNumTiers; ++tier) {
      step_bytes_[tier] += step.read_tokens[window_of_[layer]][tier] * token;
    }
  }

  const CudaDeviceOptions o_;
  const std::shared_ptr<DeviceStream> stream_;
  const int query_heads_;  // the most of all layers
  CudaLayers eager_;
  std::unique_ptr<CudaLayers> replayed_;  // of graphs, with tables that never grow; null without graphs
  std::unique_ptr<CudaGraphs> graphs_;
  CudaStreaming streaming_;  // of eager steps
  LayerTimes times_;         // of eager steps
  const CallLayout layout_;
  CudaPlanLimits limits_;
  std::vector<int> window_of_;                           // [layer] in limits_.windows
  std::unique_ptr<CudaCopies> copies_;                   // null without host tiers
  std::shared_ptr<CudaHostPart> parts_[kStepsInFlight];  // by parity of the step; the joint's work owns them too
  std::shared_ptr<void> plan_memory_;                    // JointPlan, device
  std::shared_ptr<void> reports_;                        // pinned StepReport [parity]
  std::unique_ptr<JointDispatcher> joint_;               // null without host tiers

  absl::Status dead_;
  bool untold_ = false;  // nobody has been told of it
  Begun begun_ = Begun::kNothing;
  int64_t step_ = 0;  // the present step, or the last one
  int parity_ = 1;
  int layers_run_ = 0;             // of the present step
  CudaGraph* captured_ = nullptr;  // with kCapture
  CudaStep asked_;                 // of CheckReplay
  std::deque<OpenStep> open_;
  // Of the present step, and of those that are done: bytes count when the times that they took do.
  std::array<int64_t, kNumTiers> step_bytes_ = {};
  std::array<int64_t, kNumTiers> read_bytes_ = {};
  double wait_seconds_ = 0;
};

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

// ---- Layers ----

absl::Status CudaDevice::CheckNotCaptured(CUstream_st* stream) {
  absl::StatusOr<bool> capturing = stream_->Capturing(stream);
  if (!capturing.ok() || !*capturing) return capturing.status();
  return absl::FailedPreconditionError(
      "forward: the stream is captured in a graph, and this plan is of one step; accepted: layers of a plan made for a "
      "capture (graph_tokens of the backend), or eager launches (piecewise graphs leave attention out)");
}

absl::Status CudaDevice::CheckPages(const LayerCall& call) const {
  if (call.pages->pool_page_bytes == limits_.page_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("cuda device: blocks of layer ", call.layer, " are ", call.pages->pool_page_bytes,
                   " bytes apart; accepted: ", limits_.page_bytes, ", as in the other layers"));
}

absl::Status CudaDevice::TryRunLayer(const LayerCall& call) {
  if (absl::Status status = CheckNotCaptured(call.stream); !status.ok()) return status;
  if (begun_ != Begun::kEager || call.plan->step != step_) {
    if (begun_ == Begun::kReplay && call.plan->step == step_) {
      return absl::FailedPreconditionError(
          absl::StrCat("forward: step ", step_, " was begun for a graph; queue the graph, or begin without one"));
    }
    if (absl::Status status = BeginStep(*call.plan, call.pages->pool_page_bytes, nullptr, call.stream); !status.ok()) {
      return status;
    }
  } else if (absl::Status status = stream_->SwitchTo(call.stream); !status.ok()) {
    return status;
  }
  const CudaStep& step = this->step();
  if (absl::Status status = CheckPages(call); !status.ok()) return status;
  if (!step.calls.empty() && layers_run_ == static_cast<int>(o_.layers.size())) {
    return absl::FailedPreconditionError(absl::StrCat("forward: all ", layers_run_, " layers of step ", step.step,
                                                      " have run; run every layer of a plan once, in order"));
  }
  if (!step.calls.empty()) {
    parts_[parity_]->SetLayer(layers_run_, {call.layer, *call.pages, call.key.data != nullptr});
  }
  if (absl::Status status = eager_.Run(call, step, window_of_[call.layer], layers_run_, {&streaming_, &times_});
      !status.ok()) {
    return status;
  }
  CountReads(call.layer, *call.pages, step);
  ++layers_run_;
  return absl::OkStatus();
}

// A layer of a graph: launched for the graph's counts, into the capture or, to warm up, with the step without tokens.
absl::Status CudaDevice::TryCaptureLayer(const LayerCall& call) {
  const int layers = static_cast<int>(o_.layers.size());
  if (begun_ != Begun::kCapture || captured_->shape.num_tokens != call.capture->num_tokens ||
      captured_->shape.query_tokens != call.capture->query_tokens || layers_run_ == layers) {
    return absl::FailedPreconditionError(absl::StrCat(
        "forward: layer ", call.layer, " of the capture of ", call.capture->num_tokens,
        " tokens does not follow its plan; plan the capture, then run its ", layers, " layers once, in order"));
  }
  if (absl::Status status = CheckPages(call); !status.ok()) return status;
  const HostLayer layer = {call.layer, *call.pages, call.key.data != nullptr};
  if (static_cast<size_t>(layers_run_) == captured_->layers.size()) captured_->layers.emplace_back();
  captured_->layers[layers_run_] = layer;
  absl::StatusOr<bool> capturing = stream_->Capturing(call.stream);
  if (!capturing.ok()) return capturing.status();
  if (*capturing) {
    stream_->BeginCapture(call.stream);
  } else if (absl::Status status = stream_->SwitchTo(call.stream); !status.ok()) {
    return status;
  }
  const absl::Status status = replayed_->Run(call, captured_->launches, window_of_[call.layer], layers_run_++, {});
  if (*capturing) stream_->EndCapture();
  return status;
}

}  // namespace

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
