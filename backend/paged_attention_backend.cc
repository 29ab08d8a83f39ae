#include "backend/paged_attention_backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "backend/attention_worker.h"
#include "backend/copy_sink.h"
#include "backend/cuda_device.h"
#include "backend/cuda_stream.h"
#include "backend/emulated_device.h"
#include "backend/mover.h"
#include "backend/pacer.h"
#include "backend/statistics.h"
#include "kernels/cpu_features.h"
#include "kernels/kernel_table.h"
#include "memory/node_probe.h"
#include "memory/topology.h"
#include "scheduler/step_knobs.h"

namespace hybridgen {
namespace {

using Clock = std::chrono::steady_clock;

// Bytes of KV that one step may publish or recall: about one step's worth of a prefill chunk.
constexpr int64_t kCopyBytesPerStep = 64 << 20;

// The device copies from and to any page of the host tiers, so it must reach them all.
absl::Status CheckRegistered(const HostTiers& tiers) {
  for (const TierArena& arena : tiers.arenas()) {
    if (arena.pin.failures == 0) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "bind tiered: ", arena.pin.failed_bytes, " bytes of the ", TierName(arena.tier), " ", PageRoleName(arena.role),
        " pages could not be registered with the device: ", arena.pin.first_error.message(),
        "; accepted with device_kind cuda: host tiers that fit what may be pinned (RLIMIT_MEMLOCK, the container's "
        "limits); lower dram_bytes or cxl_bytes"));
  }
  return absl::OkStatus();
}

// How the CPU worker's reads of each tier are paced.
TierPacers CpuPacers(const BackendOptions& options) {
  TierPacers pacers;
  const auto pacer = [](double rate) { return rate > 0 ? std::make_shared<Pacer>(rate) : nullptr; };
  pacers.of[Index(Tier::kDram)] = pacer(options.dram_gigabytes_per_second);
  pacers.of[Index(Tier::kCxl)] = pacer(options.cxl_gigabytes_per_second);
  // In the `cpu` kind the engine's tensor is DRAM too.
  if (options.device_kind == DeviceKind::kCpu) pacers.of[Index(Tier::kDevice)] = pacers.of[Index(Tier::kDram)];
  return pacers;
}

// The CPU worker with the threads that it runs on.
struct CpuWorker {
  CpuWorker(const BackendOptions& options, const KernelSet& kernels, std::unique_ptr<Executor> threads,
            const HeadGroups& head_groups)
      : executor(std::move(threads)),
        attention(executor.get(), kernels, options.dtype, options.head_size, options.num_kv_heads, CpuPacers(options),
                  head_groups) {}
  const std::unique_ptr<Executor> executor;
  AttentionWorker attention;
};

// What a CPU thread touches that the joint runs; one that is stuck is left behind with it.
struct KeptForWorker {
  std::shared_ptr<DeviceStream> stream;  // with which the tiers are registered
  std::shared_ptr<CpuWorker> cpu;
  std::shared_ptr<TieredBinding> tiered;
};

class BackendImpl final : public PagedAttentionBackend {
 public:
  BackendImpl(const BackendOptions& options, const KernelSet& kernels, std::unique_ptr<Executor> executor,
              const HeadGroups& head_groups, std::shared_ptr<DeviceStream> stream)
      : o_(options),
        id_(NextId()),
        kernels_(kernels),
        head_groups_(head_groups),
        stream_(std::move(stream)),
        cpu_owner_(std::make_shared<CpuWorker>(options, kernels, std::move(executor), head_groups)),
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
    if (absl::Status status = CheckLayer(params, o_.num_kv_heads); !status.ok()) return status;
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
    if (planner_ == nullptr) {
      return absl::FailedPreconditionError("plan step: the backend is not bound yet; call bind tiered first");
    }
    if (device_ == nullptr) {  // with the identity binding a device starts here, when the layers are known
      if (absl::Status status = StartDevice(nullptr); !status.ok()) return status;
    }
    BackendOf(plan) = 0;  // not runnable unless planning succeeds
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

  using PagedAttentionBackend::Forward;
  absl::Status Forward(Plan& plan, int layer, const TensorView& query, const TensorView& key, const TensorView& value,
                       const TensorView& output, CUstream_st* stream) override;

  absl::Status SetStreamingShare(double share) override {
    if (!(share >= 0 && share <= 1)) {
      return absl::InvalidArgumentError(absl::StrCat("set streaming share: value is ", share, "; accepted: 0 to 1"));
    }
    if (o_.device_kind == DeviceKind::kCuda && share != 0) {
      return absl::UnimplementedError(
          absl::StrCat("set streaming share: value is ", share, "; accepted with device_kind cuda: 0"));
    }
    StepKnobs knobs = knobs_;
    knobs.streaming_share = share;
    SetKnobs(knobs);
    return absl::OkStatus();
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

  absl::Status StartEmulatedDevice(const std::shared_ptr<TieredBinding>& tiered);
  absl::Status StartCudaDevice(const std::shared_ptr<TieredBinding>& tiered);
  StepTimings TakeTimings();

  BackendOptions o_;
  const uint64_t id_;
  const KernelSet kernels_;
  const HeadGroups head_groups_;
  const std::shared_ptr<DeviceStream> stream_;  // null but for kind cuda; outlives what is registered with it
  const std::shared_ptr<CpuWorker> cpu_owner_;  // with a device that may hold on to it
  Executor* const executor_;
  AttentionWorker& cpu_;
  std::vector<Layer> layers_;
  LayerLimits limits_;
  std::unique_ptr<KnobPolicy> policy_;
  StepKnobs knobs_;    // of the newest step
  StepTimings timed_;  // totals at the last plan
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
  device.max_call_rows = o_.max_call_rows;
  if (tiered != nullptr) {
    if (absl::Status status = CheckRegistered(*tiered->host); !status.ok()) return status;
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

absl::Status BackendImpl::Forward(Plan& plan, int index, const TensorView& query, const TensorView& key,
                                  const TensorView& value, const TensorView& output, CUstream_st* stream) {
  const StepPlan& step = StepOf(plan);
  if (BackendOf(plan) != id_) {
    return absl::InvalidArgumentError("forward: the plan is of another backend, or its planning failed");
  }
  if (o_.binding == Binding::kTiered && step.step != newest_step_) {
    return absl::FailedPreconditionError(absl::StrCat("forward: the plan is of step ", step.step, ", the newest is ",
                                                      newest_step_, "; its pages may have moved: plan again"));
  }
  if (index < 0 || index >= static_cast<int>(layers_.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("forward: layer is ", index, "; accepted: 0 to ", static_cast<int>(layers_.size()) - 1));
  }
  const Layer& layer = layers_[index];
  if (!layer.bound) {
    return absl::FailedPreconditionError(absl::StrCat("forward: layer ", index, " is not bound to a KV tensor yet"));
  }
  ++forward_calls_;
  if (step.num_tokens == 0 && step.tokens_written == 0) return absl::OkStatus();
  if (query.data == nullptr || output.data == nullptr) {
    return absl::InvalidArgumentError("forward: query or output data is null; accepted: [tokens][heads][head_size]");
  }
  if ((key.data == nullptr) != (value.data == nullptr)) {
    return absl::InvalidArgumentError("forward: only one of key and value is null; accepted: both or neither");
  }
  if (o_.binding == Binding::kIdentity && step.max_block >= layer.pages.pool_pages) {
    return absl::InvalidArgumentError(absl::StrCat("forward: the plan names block id ", step.max_block,
                                                   "; accepted: 0 to ", layer.pages.pool_pages - 1,
                                                   " in the tensor of layer ", index));
  }
  if (step.window_tokens > 0 &&
      (layer.params.sliding_window == 0 || layer.params.sliding_window > step.window_tokens)) {
    return absl::FailedPreconditionError(absl::StrCat("forward: layer ", index, " sees more tokens than the ",
                                                      step.window_tokens,
                                                      " that the plan was made for; plan after adding all layers"));
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
  StepTimings step;
  step.device_seconds = now.device_seconds - timed_.device_seconds;
  step.cpu_seconds = now.cpu_seconds - timed_.cpu_seconds;
  step.transfer_seconds = now.transfer_seconds - timed_.transfer_seconds;
  step.device_bytes = now.device_bytes - timed_.device_bytes;
  step.cpu_bytes = now.cpu_bytes - timed_.cpu_bytes;
  timed_ = now;
  return step;
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
    for (const Layer& layer : layers_) {
      device.capacity_bytes += layer.pages.pool_pages * DevicePageBytes(o_);
    }
    return s.ToJson();
  }
  AddTieredStatistics(o_, *tiered_, s);
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
    if (absl::Status status = CheckCudaModel(options.dtype, options.head_size, options.block_size); !status.ok()) {
      return status;
    }
  }
  const CpuFeatures features = DetectCpuFeatures();
  KernelSet kernels = SelectKernels(features);
  if (!options.isa_is_auto) {
    absl::StatusOr<KernelSet> wanted = FindKernels(features, options.isa);
    if (!wanted.ok()) return wanted.status();
    kernels = *wanted;
  }
  absl::StatusOr<std::unique_ptr<Executor>> executor = CreateTeam(options);
  if (!executor.ok()) return executor.status();
  HeadGroups head_groups;
  if (options.binding == Binding::kTiered) {
    HeadGroupRequest request;
    request.wanted = options.head_groups;
    request.num_kv_heads = options.num_kv_heads;
    request.dram_node = options.dram_node;
    request.allowed_cpus = *executor != nullptr   ? CpusOf(**executor)
                           : options.cpus.empty() ? AllowedCpus()
                                                  : options.cpus;
    absl::StatusOr<HeadGroups> chosen = ChooseHeadGroups(request, ReadTopology());
    if (!chosen.ok()) return chosen.status();
    head_groups = *std::move(chosen);
  }
  if (*executor == nullptr) executor = CreatePool(options, head_groups);
  if (!executor.ok()) return executor.status();
  return std::make_unique<BackendImpl>(options, kernels, *std::move(executor), head_groups, std::move(stream));
}

}  // namespace hybridgen
