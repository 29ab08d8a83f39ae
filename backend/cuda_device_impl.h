// The worker of device kind `cuda`, behind cuda_device.h: its steps are in cuda_device.cc, its layers in
// cuda_device_layers.cc.
#ifndef BACKEND_CUDA_DEVICE_IMPL_H_
#define BACKEND_CUDA_DEVICE_IMPL_H_

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "backend/cuda_copies.h"
#include "backend/cuda_device.h"
#include "backend/cuda_graphs.h"
#include "backend/cuda_host_part.h"
#include "backend/cuda_layers.h"
#include "backend/cuda_plan.h"
#include "backend/cuda_step_memory.h"
#include "backend/cuda_streaming.h"
#include "backend/layer_times.h"

namespace hybridgen {

constexpr int kStepsInFlight = JointMemory::kMaxStepsInFlight;
static_assert(kStepsInFlight == kTableSources, "steps in flight take turns at the tables' sources");
// Query rows of an item up to which decode reads its pages once.
constexpr int kDecodeRows = 16;

// What the device says of a step behind it: a copy of the words that its kernels write.
struct StepReport {
  uint64_t runs;    // JointPlan::runs
  uint32_t status;  // AttendParams::status
};

inline int MostQueryHeads(const CudaDeviceOptions& options) {
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

}  // namespace hybridgen

#endif  // BACKEND_CUDA_DEVICE_IMPL_H_
