// A planner over tiers with the copies of its device kind and page digests, for tests: its steps are planned and
// written, but not attended.
#ifndef BACKEND_PLANNED_TIERS_H_
#define BACKEND_PLANNED_TIERS_H_

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "backend/attention_worker.h"
#include "backend/block_digests.h"
#include "backend/copy_sink.h"
#include "backend/emulated_device.h"
#include "backend/pool_executor.h"
#include "backend/step_planner.h"
#include "backend/tiered_binding.h"
#include "gtest/gtest.h"
#include "kernels/cpu_features.h"
#include "kernels/kernel_table.h"
#include "kernels/testing/red_zone.h"

namespace hybridgen {

constexpr int kLayers = 3;  // the last one shares the first one's KV
constexpr int kStoredLayers = 2;
constexpr int kHeadSize = 24;  // padded to 32
constexpr int kBlockSize = 16;

// Executes copies at once and keeps them from being finished until they are let go.
class HeldCopies final : public CopySink {
 public:
  HeldCopies(const PageCopier* copier, Executor* executor) : copies_(copier, executor) {}
  absl::Status Start(std::vector<CopyTask> tasks) override { return copies_.Start(std::move(tasks)); }
  std::vector<CopyTask> TakeFinished() override {
    std::vector<CopyTask> tasks;
    if (!held) tasks = copies_.TakeFinished();
    for (CopyTask& task : tasks) task.outcome = outcome;
    return tasks;
  }
  absl::Status Drain() override { return absl::OkStatus(); }

  bool held = false;
  CopyOutcome outcome = CopyOutcome::kComplete;

 private:
  InlineCopies copies_;
};

struct TierSetting {
  DeviceKind kind = DeviceKind::kCpu;
  DType dtype = DType::kFloat32;
  std::optional<DType> kv_dtype = std::nullopt;
  int kv_heads = 2;
  int head_groups = 1;
  int64_t dram_blocks = 32;
  int64_t cxl_blocks = 0;
  bool planning_thread_builds = false;
  int device_pages = 6;
  int num_blocks = 33;
  bool held_copies = false;  // HeldCopies in place of the kind's
};

class PlannedTiers {
 public:
  explicit PlannedTiers(const TierSetting& s) : s_(s), kernels_(SelectKernels(DetectCpuFeatures())) {
    options_.device_kind = s.kind;
    options_.binding = Binding::kTiered;
    options_.dtype = s.dtype;
    options_.kv_dtype = s.kv_dtype;
    options_.num_kv_heads = s.kv_heads;
    options_.head_size = kHeadSize;
    options_.block_size = kBlockSize;
    options_.placement = PlacementChoice::kRole;
    options_.page_digests = PageDigests::kOnPublish;
    const int64_t host_block = 2 * kStoredLayers * PackedPageBytes(options_.kv(), s.kv_heads, kBlockSize, kHeadSize);
    options_.dram_bytes = s.dram_blocks * host_block;
    options_.cxl_bytes = s.cxl_blocks * host_block;
    HeadGroups groups;
    groups.count = s.head_groups;
    groups.nodes.assign(s.head_groups, -1);
    regions_.assign(kStoredLayers, std::vector<uint8_t>(s.device_pages * DevicePageBytes(options_), 0xff));
    TieredPool pool;
    for (int l = 0; l < kLayers; ++l) pool.data.push_back(regions_[l % kStoredLayers].data());
    pool.bytes = static_cast<int64_t>(regions_[0].size());
    pool.num_blocks = s.num_blocks;
    absl::StatusOr<std::unique_ptr<TieredBinding>> binding = BindTieredPool(options_, groups, kernels_, pool, kLayers);
    if (!binding.ok()) {
      ADD_FAILURE() << binding.status();
      return;
    }
    binding_ = *std::move(binding);
    PoolExecutorOptions threads;
    threads.num_workers = 2;
    executor_ = CreatePoolExecutor(threads).value();
    worker_ = std::make_unique<AttentionWorker>(executor_.get(), kernels_, s.dtype, kHeadSize, s.kv_heads);
    if (s.kind == DeviceKind::kEmulated) {
      EmulatedDeviceOptions device;
      device.dtype = s.dtype;
      device.head_size = kHeadSize;
      device.num_kv_heads = s.kv_heads;
      device.kernels = kernels_;
      device.host = worker_.get();
      device.copier = binding_->copier;
      device_ = CreateEmulatedDevice(device).value();
      copies_ = std::make_unique<DeviceCopies>(device_.get());
    } else if (s.held_copies) {
      auto copies = std::make_unique<HeldCopies>(binding_->copier.get(), executor_.get());
      held_ = copies.get();
      copies_ = std::move(copies);
    } else {
      copies_ = std::make_unique<InlineCopies>(binding_->copier.get(), executor_.get());
    }
    knobs_.publish_blocks = knobs_.recall_blocks = 4;
    TieredPlannerOptions planner;
    planner.block_size = kBlockSize;
    planner.num_blocks = s.num_blocks;
    planner.blocks = binding_->blocks.get();
    planner.host = binding_->host.get();
    planner.mirror = binding_->mirror.get();
    planner.copies = copies_.get();
    planner.knobs = &knobs_;
    planner.device = device_.get();
    planner.digests = binding_->digests.get();
    if (!s.planning_thread_builds) planner.executor = executor_.get();
    planner_ = CreateTieredPlanner(planner);
  }

  BlockManager& blocks() { return *binding_->blocks; }
  BlockTableMirror& mirror() { return *binding_->mirror; }
  const BlockDigests& digests() const { return *binding_->digests; }
  HeldCopies& held() { return *held_; }
  BlockState StateOf(int32_t block) const { return binding_->blocks->state(block); }
  absl::Status Drain() { return copies_->Drain(); }
  bool ok() const { return planner_ != nullptr; }

  // Sequences as (request, tokens computed before, tokens of the step).
  struct Tokens {
    uint64_t request;
    int computed;
    int count;
  };

  absl::Status Plan(const std::vector<Tokens>& sequences) {
    std::vector<uint64_t> requests;
    std::vector<int32_t> query_start = {0}, seq_lens;
    for (const Tokens& s : sequences) {
      requests.push_back(s.request);
      query_start.push_back(query_start.back() + s.count);
      seq_lens.push_back(s.computed + s.count);
    }
    StepBatch batch;
    batch.query_start = query_start;
    batch.seq_lens = seq_lens;
    batch.requests = requests;
    return planner_->Plan(batch, LayerLimits(), plan_);
  }

  // Writes the planned step's K and V, elements as `element` gives them.
  absl::Status Write(absl::FunctionRef<float()> element) {
    const int64_t row = int64_t{s_.kv_heads} * kHeadSize;
    const int64_t count = plan_.num_tokens * row;
    for (int l = 0; l < kStoredLayers; ++l) {
      std::vector<uint8_t> tensors[2];
      for (std::vector<uint8_t>& tensor : tensors) {
        tensor.resize(count * DTypeSize(s_.dtype));
        for (int64_t i = 0; i < count; ++i) WriteElement(s_.dtype, tensor.data(), i, element());
      }
      LayerParams params;
      params.num_query_heads = s_.kv_heads;
      LayerCall call;
      call.plan = &plan_;
      call.params = &params;
      call.pages = &binding_->pages[l];
      call.key = {tensors[0].data(), row, kHeadSize};
      call.value = {tensors[1].data(), row, kHeadSize};
      for (const std::vector<WriteRun>* runs : {&plan_.pool_writes, &plan_.host_writes}) {
        if (absl::Status status = worker_->Write(call, *runs); !status.ok()) return status;
      }
    }
    return absl::OkStatus();
  }

  absl::Status Step(const std::vector<Tokens>& sequences, absl::FunctionRef<float()> element) {
    absl::Status status = Plan(sequences);
    return status.ok() ? Write(element) : status;
  }

  // Runs a copy that the test has planned.
  absl::Status Copy(const CopyTask& task) {
    if (absl::Status status = binding_->copier->Run({&task, 1}, *executor_); !status.ok()) return status;
    return blocks().FinishCopy(task);
  }

  // What the kernel makes of the block's host pages now, by stored layer and head group.
  std::vector<std::string> FromHostPages(int32_t block) {
    const Residency at = blocks().Where(block);
    std::vector<std::string> all;
    for (const LayerPages& layer : binding_->copier->layers()) {
      for (int group = 0; group < s_.head_groups; ++group) {
        RedZoned<char> digest(digests().layout().bytes);
        std::memset(digest.data(), 0, digest.size());  // as an arena's: the kernel leaves gaps of the layout alone
        kernels_.selection.build_digest(
            layer.host, binding_->host->Address(PageRole::kKey, at.k) + layer.HostOffset(PageRole::kKey, group),
            binding_->host->Address(PageRole::kValue, at.v) + layer.HostOffset(PageRole::kValue, group),
            at.valid_tokens, digest.data());
        all.emplace_back(digest.data(), digest.size());
      }
    }
    return all;
  }

  // The digests of what the block holds now; empty: there are none.
  std::vector<std::string> Found(int32_t block) {
    std::vector<std::string> all;
    int missing = 0;
    for (int layer = 0; layer < kStoredLayers; ++layer) {
      for (int group = 0; group < s_.head_groups; ++group) {
        const void* const digest = digests().Find(layer, group, block, blocks().generation(block));
        missing += digest == nullptr;
        if (digest == nullptr) continue;
        EXPECT_EQ(reinterpret_cast<uintptr_t>(digest) % 64, 0u);
        all.emplace_back(static_cast<const char*>(digest), digests().layout().bytes);
      }
    }
    EXPECT_TRUE(all.empty() || missing == 0) << "block " << block << " has digests of some layers and groups only";
    return all;
  }

 private:
  const TierSetting s_;
  const KernelSet kernels_;
  BackendOptions options_;
  std::vector<std::vector<uint8_t>> regions_;  // [stored layer]
  std::unique_ptr<TieredBinding> binding_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<AttentionWorker> worker_;
  std::unique_ptr<EmulatedDevice> device_;
  HeldCopies* held_ = nullptr;
  std::unique_ptr<CopySink> copies_;
  StepKnobs knobs_;
  std::unique_ptr<StepPlanner> planner_;
  StepPlan plan_;
};

}  // namespace hybridgen

#endif  // BACKEND_PLANNED_TIERS_H_
