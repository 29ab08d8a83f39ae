// Paged attention over a KV cache that spans tiers: the library's one interface above its parts.
//
// Life: Create, AddLayer for each layer, bind the engine's tensor (identity or tiered), then per engine step
// PlanStep once and Forward for each layer. Planning may allocate; running does not. One thread drives a backend.
#ifndef BACKEND_PAGED_ATTENTION_BACKEND_H_
#define BACKEND_PAGED_ATTENTION_BACKEND_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "backend/backend_options.h"
#include "backend/device_stream.h"
#include "backend/identity_binding.h"
#include "backend/layer_call.h"
#include "backend/step_planner.h"
#include "backend/tiered_binding.h"

namespace hybridgen {

class PagedAttentionBackend;

// A step's plan with the memory that running it needs. Made by PlanStep, refilled by later ones.
class Plan {
 public:
  const StepPlan& step() const { return step_; }

 private:
  friend class PagedAttentionBackend;
  StepPlan step_;
  std::optional<GraphShape> capture_;  // made by PlanCapture: of no step
  uint64_t backend_id_ = 0;
  std::vector<float> partial_o_;
  std::vector<float> partial_lse_;
};

class PagedAttentionBackend {
 public:
  // `stream` is the accelerator of device_kind cuda; null: the CUDA runtime's device options.cuda_device.
  // Errors: InvalidArgument naming field, value and accepted values; Unimplemented for what this build lacks;
  // Unavailable without a CUDA device.
  static absl::StatusOr<std::unique_ptr<PagedAttentionBackend>> Create(const BackendOptions& options,
                                                                       std::shared_ptr<DeviceStream> stream = nullptr);
  virtual ~PagedAttentionBackend() = default;

  // Returns the layer's index: 0, 1, ...
  virtual absl::StatusOr<int> AddLayer(const LayerParams& params) = 0;

  // Idempotent and cheap.
  virtual absl::Status BindIdentity(const IdentityPool& pool) = 0;
  // Once per backend, after the layers are added. Reserves the host tiers in full.
  // Errors: ResourceExhausted with the sizes when all tiers together cannot hold num_blocks.
  virtual absl::Status BindTiered(const TieredPool& pool) = 0;

  // The host mirror of the block tables (tiered binding).
  // Errors: FailedPrecondition before BindTiered; else as BlockTableMirror.
  virtual absl::StatusOr<BlockTableMirror*> Mirror() = 0;

  // Fills `plan`. In the tiered binding only the newest plan can be run: a later one may have moved its pages.
  virtual absl::Status PlanStep(const StepBatch& batch, Plan& plan) = 0;

  // One layer of a planned step: writes key/value (null key data: nothing), then attends query into output.
  // device_kind cuda: the tensors are device memory, the work is queued on `stream` (null: the default stream), and
  // every layer of a plan runs once, in order; errors of the work are told by later calls.
  absl::Status Forward(Plan& plan, int layer, const TensorView& query, const TensorView& key, const TensorView& value,
                       const TensorView& output) {
    return Forward(plan, layer, query, key, value, output, nullptr);
  }
  virtual absl::Status Forward(Plan& plan, int layer, const TensorView& query, const TensorView& key,
                               const TensorView& value, const TensorView& output, CUstream_st* stream) = 0;

  // Optional, ahead of the plan's first layer: takes the step up, so that layers only queue work. With `graph`, the
  // step's layers are those of the graph that was captured for the shape; the caller queues the graph on `stream` next,
  // once, and calls no other function of the backend before (docs/cuda_device.md).
  // Errors: as Forward; FailedPrecondition, after which the step may be begun without the graph, for a step that the
  // graph does not serve.
  virtual absl::Status BeginStep(Plan& plan, const GraphShape* graph, CUstream_st* stream) = 0;
  // Whether BeginStep would take the plan up for the graph.
  virtual absl::Status CheckReplay(const Plan& plan, const GraphShape& graph) = 0;
  // Makes a plan with which every layer runs once, in order, while its stream is captured, or to warm up: it stands for
  // any step of the shape and writes nothing itself. Not while `stream` is captured. The tensors of the layers have
  // graph.num_tokens rows. device_kind cuda with BackendOptions::graph_tokens.
  // Errors: FailedPrecondition without graphs; InvalidArgument for the shape.
  virtual absl::Status PlanCapture(const GraphShape& graph, Plan& plan, CUstream_st* stream) = 0;

  // For the steps planned from now on. Errors: InvalidArgument outside [0, 1].
  virtual absl::Status SetStreamingShare(double share) = 0;

  // Digest (kernels/page_digest.h) of what a block holds now, of a layer and KV head group, which exist; null: there is
  // none, as page_digests is none or what it holds has not been published. Valid until the next plan.
  virtual const void* FindDigest(int layer, int head_group, int32_t block) const = 0;

  // docs/statistics.md
  virtual std::string StatisticsJson() const = 0;

 protected:
  // Access to Plan for the implementation.
  static StepPlan& StepOf(Plan& plan) { return plan.step_; }
  static uint64_t& BackendOf(Plan& plan) { return plan.backend_id_; }
  static uint64_t BackendOf(const Plan& plan) { return plan.backend_id_; }
  static std::optional<GraphShape>& CaptureOf(Plan& plan) { return plan.capture_; }
  static const std::optional<GraphShape>& CaptureOf(const Plan& plan) { return plan.capture_; }
  // Workspace for `rows` partial rows of `heads` query heads; grows, never shrinks.
  static PartialWorkspace WorkspaceOf(Plan& plan, int64_t rows, int heads, int head_size);
};

}  // namespace hybridgen

#endif  // BACKEND_PAGED_ATTENTION_BACKEND_H_
