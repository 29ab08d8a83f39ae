#include "backend/paged_attention_backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "backend/copy_sink.h"
#include "backend/cpu_worker.h"
#include "backend/cuda_device.h"
#include "backend/cuda_stream.h"
#include "backend/emulated_device.h"
#include "backend/mover.h"
#include "backend/statistics.h"
#include "scheduler/step_knobs.h"

namespace hybridgen {
namespace {

using Clock = std::chrono::steady_clock;

// Bytes of KV that one step may publish or recall: about one step's worth of a prefill chunk.
constexpr int64_t kCopyBytesPerStep = 64 << 20;

// What a CPU thread touches that the joint runs; one that is stuck is left behind with it.
struct KeptForWorker {
  std::shared_ptr<DeviceStream> stream;  // with which the tiers are registered
  std::shared_ptr<CpuWorker> cpu;
  std::shared_ptr<TieredBinding> tiered;
};

class BackendImpl final : public PagedAttentionBackend {
 public:
  BackendImpl(const BackendOptions& options, std::shared_ptr<CpuWorker> cpu, std::shared_ptr<DeviceStream> stream)
      : o_(options),
        id_(NextId()),
        stream_(std::move(stream)),
        cpu_owner_(std::move(cpu)),
        kernels_(cpu_owner_->kernels),
        head_groups_(cpu_owner_->head_groups),
        executor_(cpu_owner_->executor.get()),
        cpu_(cpu_owner_->attention) {
    StepKnobs knobs;
    knobs.streaming_share = o_.streaming_share;
    SetKnobs(knobs);
    if (o_.binding == Binding::kIdentity) planner_ = CreateIdentityPlanner(o_.block_size);
  }

  // `tiered`: null in the identity binding.
  absl::Status StartDevice(const std::shared_ptr<TieredBinding>& tiered) {
    if (o_.device_kind == DeviceKind::kEmulated) return StartEmulatedDevice(tiered);
    if (o_.device_kind == DeviceKind::kCuda) return StartCudaDevice(tiered);
    return absl::OkStatus();
  }

  absl::StatusOr<int> AddLayer(const LayerParams& params) override {
    if (absl::Status status = CheckLayer(params, o_.num_kv_heads, o_.kv()); !status.ok()) return status;
    if (o_.device_kind == DeviceKind::kCuda && device_ != nullptr) {
      return absl::FailedPreconditionError(
          "add layer: the device has been started; add all layers before the bind (tiered) or the first plan");
    }
    layers_.push_back({params, {}, false});
    limits_.split.group = std::max(limits_.split.group, params.num_query_heads / o_.num_kv_heads);
    // One layer that sees everything makes every table entry wanted.
    const int32_t window = params.sliding_window;
    const bool bounded = window > 0 && (layers_.size() == 1 || limits_.widest_window > 0);
    limits_.widest_window = bounded ? std::max(limits_.widest_window, window) : 0;
    return static_cast<int>(layers_.size()) - 1;
  }

  absl::Status BindIdentity(const IdentityPool& pool) override;
  absl::Status BindTiered(const TieredPool& pool) override;

  absl::StatusOr<BlockTableMirror*> Mirror() override {
    if (tiered_ == nullptr) {
      return absl::FailedPreconditionError("update requests: the backend is not bound yet; call bind tiered first");
    }
    return tiered_->mirror.get();
  }

  absl::Status PlanStep(const StepBatch& batch, Plan& plan) override {
    if (absl::Status status = BeReadyToPlan("plan step"); !status.ok()) return status;
    BackendOf(plan) = 0;  // not runnable unless planning succeeds
    CaptureOf(plan).reset();
    if (tiered_ != nullptr) tiered_->watch->Tick(Clock::now());
    knobs_ = policy_->Next(TakeTimings());
    limits_.split.num_kv_heads = o_.num_kv_heads;
    limits_.split.head_groups = head_groups_.count;
    limits_.split.cpu_workers = executor_->num_workers();
    limits_.split.device_workers = device_ == nullptr ? 0 : device_->num_workers();
    limits_.split.max_tile_rows = kMaxTileRows;
    StepPlan& step = StepOf(plan);
    if (absl::Status status = planner_->Plan(batch, limits_, step); !status.ok()) return status;
    newest_step_ = step.step;
    BackendOf(plan) = id_;
    ++steps_;
    tokens_written_ += step.tokens_written;
    return absl::OkStatus();
  }

  absl::Status BeginStep(Plan& plan, const GraphShape* graph, CUstream_st* stream) override;
  absl::Status CheckReplay(const Plan& plan, const GraphShape& graph) override;
  absl::Status PlanCapture(const GraphShape& graph, Plan& plan, CUstream_st* stream) override;

  using PagedAttentionBackend::Forward;
  absl::Status Forward(Plan& plan, int layer, const TensorView& query, const TensorView& key, const TensorView& value,
                       const TensorView& output, CUstream_st* stream) override;

  absl::Status SetStreamingShare(double share) override {
    if (!(share >= 0 && share <= 1)) {
      return absl::InvalidArgumentError(absl::StrCat("set streaming share: value is ", share, "; accepted: 0 to 1"));
    }
    if (share > 0 && !not_streamed_.empty()) return absl::FailedPreconditionError(not_streamed_);
    StepKnobs knobs = knobs_;
    knobs.streaming_share = share;
    SetKnobs(knobs);
    return absl::OkStatus();
  }

  const void* FindDigest(int layer, int head_group, int32_t block) const override {
    return tiered_ == nullptr ? nullptr : tiered_->FindDigest(layer, head_group, block);
  }
  std::string StatisticsJson() const override;

 private:
  struct Layer {
    LayerParams params;
    LayerPages pages;
    bool bound = false;
  };

  static uint64_t NextId() {
    static std::atomic<uint64_t> next{1};
    return next.fetch_add(1, std::memory_order_relaxed);
  }

  void SetKnobs(const StepKnobs& knobs) {
    knobs_ = knobs;
    policy_ = std::make_unique<FixedKnobs>(knobs);
  }

  absl::Status BeReadyToPlan(const char* operation);
  // Whether the plan is of a step that may run now, and layer `index` of it.
  absl::Status CheckPlan(const char* operation, const Plan& plan) const;
  absl::Status CheckLayerOf(const char* operation, const StepPlan& step, int index) const;
  absl::Status StartEmulatedDevice(const std::shared_ptr<TieredBinding>& tiered);
  absl::Status StartCudaDevice(const std::shared_ptr<TieredBinding>& tiered);
  StepTimings TakeTimings();

  BackendOptions o_;
  const uint64_t id_;
  const std::shared_ptr<DeviceStream> stream_;  // null but for kind cuda; outlives what is registered with it
  const std::shared_ptr<CpuWorker> cpu_owner_;  // with a device that may hold on to it
  const KernelSet& kernels_;
  const HeadGroups& head_groups_;
  Executor* const executor_;
  AttentionWorker& cpu_;
  std::vector<Layer> layers_;
  LayerLimits limits_;
  std::unique_ptr<KnobPolicy> policy_;
  StepKnobs knobs_;           // of the newest step
  StepTimings timed_;         // totals at the last plan
  std::string not_streamed_;  // why streaming_share stays 0; empty: it need not
  int64_t newest_step_ = 0;
  int64_t steps_ = 0;
  int64_t tokens_written_ = 0;
  int64_t forward_calls_ = 0;
  double cpu_seconds_ = 0;  // attending without a device
  // In order of construction.
  std::shared_ptr<TieredBinding> tiered_;  // null in the identity binding, and before the bind
  std::unique_ptr<DeviceWorker> device_;   // null in the `cpu` kind
  std::unique_ptr<InlineCopies> inline_copies_;
  std::unique_ptr<CopySink> device_copies_;
  std::unique_ptr<Mover> mover_;  // null: no migrations
  std::unique_ptr<StepPlanner> planner_;
};

absl::Status BackendImpl::StartEmulatedDevice(const std::shared_ptr<TieredBinding>& tiered) {
  EmulatedDeviceOptions device;
  device.num_threads = o_.device_threads;
  device.dtype = o_.dtype;
  device.head_size = o_.head_size;
  device.num_kv_heads = o_.num_kv_heads;
  device.gigabytes_per_second = o_.device_gigabytes_per_second;
  device.timeout = o_.timeout;
  device.kernels = kernels_;
  device.host = &cpu_;
  if (tiered != nullptr) device.copier = tiered->copier;
  absl::StatusOr<std::unique_ptr<EmulatedDevice>> worker = CreateEmulatedDevice(device);
  if (!worker.ok()) return worker.status();
  device_ = *std::move(worker);
  return absl::OkStatus();
}

absl::Status BackendImpl::StartCudaDevice(const std::shared_ptr<TieredBinding>& tiered) {
  CudaDeviceOptions device;
  device.dtype = o_.dtype;
  device.head_size = o_.head_size;
  device.num_kv_heads = o_.num_kv_heads;
  device.page_tokens = o_.block_size;
  for (const Layer& layer : layers_) device.layers.push_back(layer.params);
  device.timeout = o_.timeout;
  device.max_call_rows = std::max(o_.max_call_rows, o_.graph_tokens);  // a layer of a graph is one call
  device.graph_tokens = o_.graph_tokens;
  device.graph_pages = o_.graph_pages;
  device.ring_pages = o_.ring_pages;
  device.staging_bytes = o_.staging_bytes;
  if (tiered != nullptr) {
    const auto kept = std::make_shared<KeptForWorker>(KeptForWorker{stream_, cpu_owner_, tiered});
    device.host = std::shared_ptr<AttentionWorker>(kept, &cpu_);
    device.host_tiers = tiered->host.get();
    device.head_groups = head_groups_.count;
    device.stored_layers = tiered->copier->layers();
  }
  absl::StatusOr<std::unique_ptr<DeviceWorker>> worker = CreateCudaDevice(device, stream_);
  if (!worker.ok()) return worker.status();
  device_ = *std::move(worker);
  return absl::OkStatus();
}

absl::Status BackendImpl::BindIdentity(const IdentityPool& pool) {
  if (o_.binding != Binding::kIdentity) {
    return absl::FailedPreconditionError("bind identity: the backend was created for the tiered binding");
  }
  absl::StatusOr<LayerPages> pages = PagesOfIdentityPool(o_, pool, static_cast<int>(layers_.size()));
  if (!pages.ok()) return pages.status();
  Layer& layer = layers_[pool.layer];
  layer.pages = *std::move(pages);
  layer.bound = true;
  return absl::OkStatus();
}

absl::Status BackendImpl::BindTiered(const TieredPool& pool) {
  if (o_.binding != Binding::kTiered) {
    return absl::FailedPreconditionError("bind tiered: the backend was created for the identity binding");
  }
  if (tiered_ != nullptr) {
    // The engine may bind the same tensor again; anything else would move pages under running requests.
    if (pool == tiered_->pool) return absl::OkStatus();
    return absl::FailedPreconditionError("bind tiered: already bound to another tensor; create a new backend");
  }
  TieredSystem system;
  if (stream_ != nullptr) system.registrar = &stream_->registrar();
  absl::StatusOr<std::unique_ptr<TieredBinding>> binding =
      BindTieredPool(o_, head_groups_, kernels_, pool, static_cast<int>(layers_.size()), system);
  if (!binding.ok()) return binding.status();
  std::shared_ptr<TieredBinding> tiered = *std::move(binding);
  if (absl::Status status = StartDevice(tiered); !status.ok()) return status;
  tiered_ = std::move(tiered);
  for (size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].pages = tiered_->pages[i];
    layers_[i].bound = true;
  }
  StepKnobs knobs = knobs_;
  not_streamed_ = tiered_->host->WhyNotStreamed();
  if (!not_streamed_.empty()) knobs.streaming_share = 0;
  knobs.publish_blocks = knobs.recall_blocks =
      static_cast<int>(std::clamp<int64_t>(kCopyBytesPerStep / tiered_->host->block_bytes(), 1, 4096));
  SetKnobs(knobs);
  TieredPlannerOptions planner;
  planner.block_size = o_.block_size;
  planner.num_blocks = pool.num_blocks;
  planner.blocks = tiered_->blocks.get();
  planner.host = tiered_->host.get();
  planner.mirror = tiered_->mirror.get();
  planner.knobs = &knobs_;
  planner.device = device_.get();
  planner.digests = tiered_->digests.get();
  // With a CUDA device the CPU worker may be at the layers of earlier steps while a step is planned.
  if (o_.device_kind != DeviceKind::kCuda) planner.executor = executor_;
  if (device_ != nullptr) {
    device_copies_ = std::make_unique<DeviceCopies>(device_.get());
    planner.copies = device_copies_.get();
  } else {
    inline_copies_ = std::make_unique<InlineCopies>(tiered_->copier.get(), executor_);
    planner.copies = inline_copies_.get();
  }
  if (o_.mover_gigabytes_per_second > 0) {
    MoverOptions mover;
    mover.bytes_per_second = o_.mover_gigabytes_per_second * 1e9;
    mover.timeout = o_.timeout;
    mover_ = std::make_unique<Mover>(tiered_->copier, mover);
    planner.mover = mover_.get();
  }
  planner_ = CreateTieredPlanner(planner);
  return absl::OkStatus();
}

absl::Status BackendImpl::BeReadyToPlan(const char* operation) {
  if (planner_ == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(operation, ": the backend is not bound yet; call bind tiered first"));
  }
  // With the identity binding a device starts here, when the layers are known.
  return device_ == nullptr ? StartDevice(nullptr) : absl::OkStatus();
}

absl::Status BackendImpl::CheckPlan(const char* operation, const Plan& plan) const {
  if (BackendOf(plan) != id_) {
    return absl::InvalidArgumentError(
        absl::StrCat(operation, ": the plan is of another backend, or its planning failed"));
  }
  const int64_t step = plan.step().step;
  if (o_.binding == Binding::kTiered && !CaptureOf(plan).has_value() && step != newest_step_) {
    return absl::FailedPreconditionError(absl::StrCat(operation, ": the plan is of step ", step, ", the newest is ",
                                                      newest_step_, "; its pages may have moved: plan again"));
  }
  return absl::OkStatus();
}

absl::Status BackendImpl::CheckLayerOf(const char* operation, const StepPlan& step, int index) const {
  if (index < 0 || index >= static_cast<int>(layers_.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat(operation, ": layer is ", index, "; accepted: 0 to ", static_cast<int>(layers_.size()) - 1));
  }
  const Layer& layer = layers_[index];
  if (!layer.bound) {
    return absl::FailedPreconditionError(
        absl::StrCat(operation, ": layer ", index, " is not bound to a KV tensor yet"));
  }
  if (o_.binding == Binding::kIdentity && step.max_block >= layer.pages.pool_pages) {
    return absl::InvalidArgumentError(absl::StrCat(operation, ": the plan names block id ", step.max_block,
                                                   "; accepted: 0 to ", layer.pages.pool_pages - 1,
                                                   " in the tensor of layer ", index));
  }
  if (step.window_tokens > 0 &&
      (layer.params.sliding_window == 0 || layer.params.sliding_window > step.window_tokens)) {
    return absl::FailedPreconditionError(absl::StrCat(operation, ": layer ", index, " sees more tokens than the ",
                                                      step.window_tokens,
                                                      " that the plan was made for; plan after adding all layers"));
  }
  return absl::OkStatus();
}

absl::Status BackendImpl::BeginStep(Plan& plan, const GraphShape* graph, CUstream_st* stream) {
  if (absl::Status status = CheckPlan("begin step", plan); !status.ok()) return status;
  const StepPlan& step = StepOf(plan);
  if (step.num_tokens == 0 && step.tokens_written == 0 && graph == nullptr) return absl::OkStatus();
  for (int i = 0; i < static_cast<int>(layers_.size()); ++i) {
    if (absl::Status status = CheckLayerOf("begin step", step, i); !status.ok()) return status;
  }
  if (device_ == nullptr) return graph == nullptr ? absl::OkStatus() : DeviceWorker::NoGraphs();
  return device_->BeginStep(step, layers_[0].pages.pool_page_bytes, graph, stream);
}

absl::Status BackendImpl::CheckReplay(const Plan& plan, const GraphShape& graph) {
  if (absl::Status status = CheckPlan("check replay", plan); !status.ok()) return status;
  return device_ == nullptr ? DeviceWorker::NoGraphs() : device_->CheckReplay(plan.step(), graph);
}

absl::Status BackendImpl::PlanCapture(const GraphShape& graph, Plan& plan, CUstream_st* stream) {
  BackendOf(plan) = 0;
  if (absl::Status status = BeReadyToPlan("plan capture"); !status.ok()) return status;
  if (device_ == nullptr) return DeviceWorker::NoGraphs();
  StepOf(plan).Clear();
  for (int i = 0; i < static_cast<int>(layers_.size()); ++i) {
    if (absl::Status status = CheckLayerOf("plan capture", plan.step(), i); !status.ok()) return status;
  }
  absl::Status status = device_->BeginCapture(graph, layers_[0].pages.pool_page_bytes, stream);
  if (!status.ok()) return status;
  CaptureOf(plan) = graph;
  BackendOf(plan) = id_;
  return absl::OkStatus();
}

absl::Status BackendImpl::Forward(Plan& plan, int index, const TensorView& query, const TensorView& key,
                                  const TensorView& value, const TensorView& output, CUstream_st* stream) {
  const StepPlan& step = StepOf(plan);
  const std::optional<GraphShape>& capture = CaptureOf(plan);
  if (absl::Status status = CheckPlan("forward", plan); !status.ok()) return status;
  if (absl::Status status = CheckLayerOf("forward", step, index); !status.ok()) return status;
  const Layer& layer = layers_[index];
  ++forward_calls_;
  if (step.num_tokens == 0 && step.tokens_written == 0 && !capture.has_value()) return absl::OkStatus();
  if (query.data == nullptr || output.data == nullptr) {
    return absl::InvalidArgumentError("forward: query or output data is null; accepted: [tokens][heads][head_size]");
  }
  if ((key.data == nullptr) != (value.data == nullptr)) {
    return absl::InvalidArgumentError("forward: only one of key and value is null; accepted: both or neither");
  }

  LayerCall call;
  call.plan = &step;
  call.params = &layer.params;
  call.pages = &layer.pages;
  call.query = query;
  call.key = key;
  call.value = value;
  call.output = output;
  call.layer = index;
  call.stream = stream;
  call.capture = capture.has_value() ? &*capture : nullptr;
  if (o_.device_kind != DeviceKind::kCuda)
    call.partials = WorkspaceOf(plan, step.partial_rows, layer.params.num_query_heads, o_.head_size);

  const Mover::Yield yield(mover_.get());
  if (device_ == nullptr) {
    if (absl::Status status = cpu_.Write(call, step.pool_writes); !status.ok()) return status;
    if (absl::Status status = cpu_.Write(call, step.host_writes); !status.ok()) return status;
    const Clock::time_point begin = Clock::now();
    absl::Status status = cpu_.Attend(call, step.cpu_items, step.cpu_group_ends);
    cpu_seconds_ += std::chrono::duration<double>(Clock::now() - begin).count();
    if (!status.ok()) return status;
    return cpu_.Merge(call, step.merges);
  }
  return device_->RunLayer(call);
}

// What the last step took: totals now less totals at the last plan.
StepTimings BackendImpl::TakeTimings() {
  if (device_ != nullptr) device_->CompletedStep(newest_step_);  // what is done by now counts
  StepTimings now;
  now.cpu_seconds = cpu_seconds_ + (device_ == nullptr ? 0 : device_->seconds().host);
  for (int t = 0; t < kNumTiers; ++t) {
    now.cpu_bytes += cpu_.read_bytes(static_cast<Tier>(t));
    if (device_ != nullptr) now.device_bytes += device_->read_bytes(static_cast<Tier>(t));
  }
  if (device_ != nullptr) {
    now.device_seconds = device_->seconds().attend;
    now.transfer_seconds = device_->seconds().transfer;
  } else if (inline_copies_ != nullptr) {
    now.transfer_seconds = inline_copies_->seconds();
  }
  return now - std::exchange(timed_, now);
}

std::string BackendImpl::StatisticsJson() const {
  BackendStatistics s;
  s.device_kind = DeviceKindName(o_.device_kind);
  s.binding = o_.binding == Binding::kIdentity ? "identity" : "tiered";
  s.kernels = kernels_.name;
  s.executor = executor_->description();
  s.steps = steps_;
  s.tokens_written = tokens_written_;
  s.forward_calls = forward_calls_;
  s.cpu_seconds = cpu_seconds_;
  s.streaming_share = knobs_.streaming_share;
  if (device_ != nullptr) {
    const DeviceSeconds seconds = device_->seconds();
    s.cpu_seconds = seconds.host;
    s.wait_seconds = seconds.wait;
    s.device_seconds = seconds.attend;
    s.merge_seconds = seconds.merge;
    s.transfer_seconds = seconds.transfer;
  } else if (inline_copies_ != nullptr) {
    s.transfer_seconds = inline_copies_->seconds();
  }
  for (int t = 0; t < kNumTiers; ++t) {
    s.tiers[t].cpu_read_bytes = cpu_.read_bytes(static_cast<Tier>(t));
    if (device_ != nullptr) s.tiers[t].device_read_bytes = device_->read_bytes(static_cast<Tier>(t));
  }
  TierStatistics& device = s.tiers[static_cast<int>(Tier::kDevice)];
  device.configured = true;
  device.emulated = o_.device_kind == DeviceKind::kEmulated;
  if (tiered_ == nullptr) {
    for (const Layer& layer : layers_) device.capacity_bytes += layer.pages.pool_pages * DevicePageBytes(o_);
    return s.ToJson();
  }
  AddTieredStatistics(o_, *tiered_, s);
  if (o_.streaming_share > 0 && !not_streamed_.empty()) s.placement.notes.push_back(not_streamed_);
  if (mover_ != nullptr) s.mover = mover_->statistics();
  s.head_groups_reason = head_groups_.reason;
  for (int group = 0; group < head_groups_.count; ++group) {
    s.head_groups.push_back(
        {head_groups_.nodes[group], head_groups_.emulated, cpu_.items(group), cpu_.remote_items(group)});
  }
  return s.ToJson();
}

}  // namespace

PartialWorkspace PagedAttentionBackend::WorkspaceOf(Plan& plan, int64_t rows, int heads, int head_size) {
  const size_t lse = static_cast<size_t>(rows) * heads;
  if (plan.partial_lse_.size() < lse) {
    plan.partial_lse_.resize(lse);
    plan.partial_o_.resize(lse * head_size);
  }
  return {plan.partial_o_.data(), plan.partial_lse_.data()};
}

absl::StatusOr<std::unique_ptr<PagedAttentionBackend>> PagedAttentionBackend::Create(
    const BackendOptions& options, std::shared_ptr<DeviceStream> stream) {
  if (absl::Status status = Validate(options); !status.ok()) return status;
  if (options.device_kind == DeviceKind::kCuda) {
    if (stream == nullptr) {
      absl::StatusOr<std::shared_ptr<DeviceStream>> created = CreateCudaStream(options.cuda_device);
      if (!created.ok()) return created.status();
      stream = *std::move(created);
    }
    absl::Status served = CheckCudaModel(options.dtype, options.kv(), options.head_size, options.block_size);
    if (!served.ok()) return served;
  }
  absl::StatusOr<std::shared_ptr<CpuWorker>> cpu = CreateCpuWorker(options);
  if (!cpu.ok()) return cpu.status();
  return std::make_unique<BackendImpl>(options, *std::move(cpu), std::move(stream));
}

}  // namespace hybridgen
