#include "backend/paged_attention_backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "backend/attention_worker.h"
#include "backend/copy_sink.h"
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

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Bytes of KV that one step may publish or recall: about one step's worth of a prefill chunk.
constexpr int64_t kCopyBytesPerStep = 64 << 20;
// Largest stride with which addresses of a tensor cannot overflow.
constexpr int64_t kMaxStride = int64_t{1} << 30;  // elements

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

class BackendImpl final : public PagedAttentionBackend {
 public:
  BackendImpl(const BackendOptions& options, const KernelSet* kernels, std::unique_ptr<Executor> executor,
              const HeadGroups& head_groups)
      : o_(options),
        id_(NextId()),
        kernels_(kernels),
        head_groups_(head_groups),
        executor_(std::move(executor)),
        cpu_(executor_.get(), kernels, options.dtype, options.head_size, options.num_kv_heads, CpuPacers(options),
             head_groups) {
    StepKnobs knobs;
    knobs.streaming_share = o_.streaming_share;
    SetKnobs(knobs);
    if (o_.binding == Binding::kIdentity) planner_ = CreateIdentityPlanner(o_.block_size);
  }

  // Without host tiers there is nothing to copy, so an identity-bound device can start at once.
  absl::Status StartDevice(std::shared_ptr<const PageCopier> copier) {
    if (o_.device_kind != DeviceKind::kEmulated) return absl::OkStatus();
    EmulatedDeviceOptions device;
    device.num_threads = o_.device_threads;
    device.dtype = o_.dtype;
    device.head_size = o_.head_size;
    device.num_kv_heads = o_.num_kv_heads;
    device.gigabytes_per_second = o_.device_gigabytes_per_second;
    device.timeout = o_.timeout;
    device.kernels = kernels_;
    device.copier = std::move(copier);
    absl::StatusOr<std::unique_ptr<DeviceWorker>> worker = CreateEmulatedDevice(device);
    if (!worker.ok()) return worker.status();
    device_ = *std::move(worker);
    return absl::OkStatus();
  }

  absl::StatusOr<int> AddLayer(const LayerParams& params) override {
    if (params.num_query_heads < 1 || params.num_query_heads % o_.num_kv_heads != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("add layer: num_query_heads is ", params.num_query_heads,
                       "; accepted: positive multiples of num_kv_heads = ", o_.num_kv_heads));
    }
    if (!(params.soft_cap >= 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("add layer: soft_cap is ", params.soft_cap, "; accepted: 0 (none) or more"));
    }
    if (params.sliding_window < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("add layer: sliding_window is ", params.sliding_window, "; accepted: 0 (unlimited) or more"));
    }
    for (float sink : params.sinks) {
      if (std::isnan(sink) || sink == std::numeric_limits<float>::infinity()) {
        return absl::InvalidArgumentError(
            absl::StrCat("add layer: sinks hold ", sink, "; accepted: finite values and -inf"));
      }
    }
    for (float slope : params.alibi_slopes) {
      if (!std::isfinite(slope)) {
        return absl::InvalidArgumentError(
            absl::StrCat("add layer: alibi_slopes hold ", slope, "; accepted: finite values"));
      }
    }
    if (!std::isfinite(params.scale)) {
      return absl::InvalidArgumentError(
          absl::StrCat("add layer: scale is ", params.scale, "; accepted: finite values"));
    }
    layers_.push_back({params, {}, false});
    limits_.split.group = std::max(limits_.split.group, params.num_query_heads / o_.num_kv_heads);
    limits_.widest_window = 0;
    for (const Layer& layer : layers_) {
      if (layer.params.sliding_window == 0) {
        limits_.widest_window = 0;
        break;
      }
      limits_.widest_window = std::max(limits_.widest_window, layer.params.sliding_window);
    }
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

  absl::Status Forward(Plan& plan, int layer, const TensorView& query, const TensorView& key, const TensorView& value,
                       const TensorView& output) override;

  absl::Status SetStreamingShare(double share) override {
    if (!(share >= 0 && share <= 1)) {
      return absl::InvalidArgumentError(absl::StrCat("set streaming share: value is ", share, "; accepted: 0 to 1"));
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

  StepTimings TakeTimings();

  BackendOptions o_;
  const uint64_t id_;
  const KernelSet* const kernels_;
  const HeadGroups head_groups_;
  const std::unique_ptr<Executor> executor_;
  AttentionWorker cpu_;
  std::vector<Layer> layers_;
  LayerLimits limits_;
  std::unique_ptr<KnobPolicy> policy_;
  StepKnobs knobs_;    // of the newest step
  StepTimings timed_;  // totals at the last plan
  int64_t newest_step_ = 0;
  int64_t steps_ = 0;
  int64_t tokens_written_ = 0;
  int64_t forward_calls_ = 0;
  double cpu_seconds_ = 0;
  double wait_seconds_ = 0;
  // In order of construction.
  std::unique_ptr<TieredBinding> tiered_;  // null in the identity binding, and before the bind
  std::unique_ptr<DeviceWorker> device_;   // null in the `cpu` kind
  std::unique_ptr<InlineCopies> inline_copies_;
  std::unique_ptr<CopySink> device_copies_;
  std::unique_ptr<Mover> mover_;  // null: no migrations
  std::unique_ptr<StepPlanner> planner_;
};

absl::Status BackendImpl::BindIdentity(const IdentityPool& pool) {
  if (o_.binding != Binding::kIdentity) {
    return absl::FailedPreconditionError("bind identity: the backend was created for the tiered binding");
  }
  if (pool.layer < 0 || pool.layer >= static_cast<int>(layers_.size())) {
    return absl::InvalidArgumentError(absl::StrCat("bind identity: layer is ", pool.layer, "; accepted: 0 to ",
                                                   static_cast<int>(layers_.size()) - 1));
  }
  if (pool.data == nullptr) return absl::InvalidArgumentError("bind identity: data is null; accepted: the KV tensor");
  if (pool.num_blocks < 1 || pool.num_blocks > kMaxBlocks) {
    return absl::InvalidArgumentError(
        absl::StrCat("bind identity: num_blocks is ", pool.num_blocks, "; accepted: 1 to ", kMaxBlocks));
  }
  const int64_t least_token_stride = 2 * o_.head_size;
  if (pool.block_stride < 1 || pool.head_stride < 1 || pool.token_stride < least_token_stride ||
      std::max({pool.block_stride, pool.head_stride, pool.token_stride}) > kMaxStride) {
    return absl::InvalidArgumentError(absl::StrCat(
        "bind identity: strides are block ", pool.block_stride, ", head ", pool.head_stride, ", token ",
        pool.token_stride, "; accepted: 1 to ", kMaxStride, ", for tokens from 2 * head_size = ", least_token_stride));
  }
  Layer& layer = layers_[pool.layer];
  LayerPages& pages = layer.pages;
  pages.pool = GeometryOf(o_, PageFormat::kStrided);
  pages.pool.k_head_stride = pages.pool.v_head_stride = pool.head_stride;
  pages.pool.k_token_stride = pages.pool.v_token_stride = pool.token_stride;
  pages.pool_k = reinterpret_cast<uint64_t>(pool.data);
  pages.pool_v = pages.pool_k + o_.head_size * DTypeSize(o_.dtype);
  pages.pool_page_bytes = pool.block_stride * DTypeSize(o_.dtype);
  pages.pool_pages = pool.num_blocks;
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
  absl::StatusOr<std::unique_ptr<TieredBinding>> binding =
      BindTieredPool(o_, head_groups_, kernels_, pool, static_cast<int>(layers_.size()));
  if (!binding.ok()) return binding.status();
  if (absl::Status status = StartDevice((*binding)->copier); !status.ok()) return status;
  tiered_ = *std::move(binding);
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
  planner.has_device_worker = device_ != nullptr;
  if (device_ != nullptr) {
    device_copies_ = std::make_unique<DeviceCopies>(device_.get());
    planner.copies = device_copies_.get();
  } else {
    inline_copies_ = std::make_unique<InlineCopies>(tiered_->copier.get(), executor_.get());
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
                                  const TensorView& value, const TensorView& output) {
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
  call.partials = WorkspaceOf(plan, step.partial_rows, layer.params.num_query_heads, o_.head_size);

  const Mover::Yield yield(mover_.get());
  if (device_ == nullptr) {
    if (absl::Status status = cpu_.Write(call, step.pool_writes); !status.ok()) return status;
    if (absl::Status status = cpu_.Write(call, step.host_writes); !status.ok()) return status;
    const Clock::time_point begin = Clock::now();
    absl::Status status = cpu_.Attend(call, step.cpu_items, step.cpu_group_ends);
    cpu_seconds_ += SecondsSince(begin);
    if (!status.ok()) return status;
    return cpu_.Merge(call, step.merges);
  }
  if (absl::Status status = device_->BeginLayer(call); !status.ok()) return status;
  absl::Status status = cpu_.Write(call, step.host_writes);
  device_->HostWritten();
  const Clock::time_point begin = Clock::now();
  if (status.ok()) status = cpu_.Attend(call, step.cpu_items, step.cpu_group_ends);
  const Clock::time_point attended = Clock::now();
  cpu_seconds_ += std::chrono::duration<double>(attended - begin).count();
  device_->HostAttended();
  absl::Status device_status = device_->WaitLayer();
  wait_seconds_ += SecondsSince(attended);
  return status.ok() ? device_status : status;
}

// What the last step took: totals now less totals at the last plan.
StepTimings BackendImpl::TakeTimings() {
  StepTimings now;
  now.cpu_seconds = cpu_seconds_;
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
  s.device_kind = o_.device_kind == DeviceKind::kCpu ? "cpu" : "emulated";
  s.binding = o_.binding == Binding::kIdentity ? "identity" : "tiered";
  s.kernels = kernels_->name;
  s.executor = executor_->description();
  s.steps = steps_;
  s.tokens_written = tokens_written_;
  s.forward_calls = forward_calls_;
  s.cpu_seconds = cpu_seconds_;
  s.wait_seconds = wait_seconds_;
  s.streaming_share = knobs_.streaming_share;
  if (device_ != nullptr) {
    const DeviceSeconds seconds = device_->seconds();
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

absl::StatusOr<std::unique_ptr<PagedAttentionBackend>> PagedAttentionBackend::Create(const BackendOptions& options) {
  if (absl::Status status = Validate(options); !status.ok()) return status;
  const CpuFeatures features = DetectCpuFeatures();
  const KernelSet* kernels = &SelectKernelSet(features);
  if (!options.isa_is_auto) {
    absl::StatusOr<const KernelSet*> wanted = FindKernelSet(features, options.isa);
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
  auto backend = std::make_unique<BackendImpl>(options, kernels, *std::move(executor), head_groups);
  if (options.binding == Binding::kIdentity) {
    if (absl::Status status = backend->StartDevice(nullptr); !status.ok()) return status;
  }
  return backend;
}

}  // namespace hybridgen
