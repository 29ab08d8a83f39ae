// What one layer of a planned step hands to its workers.
#ifndef BACKEND_LAYER_CALL_H_
#define BACKEND_LAYER_CALL_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "backend/step_plan.h"
#include "kernels/dtype.h"
#include "kernels/page_format.h"
#include "memory/tier.h"

struct CUstream_st;  // of cudaStream_t

namespace hybridgen {

// Parameters of one attention layer.
struct LayerParams {
  int num_query_heads = 0;
  float scale = 1.0f;
  float soft_cap = 0.0f;            // 0: none
  int32_t sliding_window = 0;       // tokens a query sees, itself included; 0: unlimited
  std::vector<float> alibi_slopes;  // [num_query_heads] or empty
  std::vector<float> sinks;         // [num_query_heads] or empty
  // Of float8 KV: key = k_scale * what a page stores, value = v_scale * the same. Else 1.
  float k_scale = 1.0f;
  float v_scale = 1.0f;
};

// InvalidArgument naming field, value and accepted values.
absl::Status CheckLayer(const LayerParams& params, int num_kv_heads, DType kv_dtype);

// Where a layer's pages lie.
struct LayerPages {
  // Pages of the engine's tensor: K of page p at pool_k + p * pool_page_bytes.
  PageGeometry pool;
  uint64_t pool_k = 0;
  uint64_t pool_v = 0;
  uint64_t pool_page_bytes = 0;
  int64_t pool_pages = 0;  // 0: not bound
  // Host pages: a page's data of this layer lies at its address + host_k (K) or + host_v (V).
  PageGeometry host;
  uint64_t host_k = 0;
  uint64_t host_v = 0;
  // KV heads form this many groups of equal size, each with pages of its own, which hold host.kv_heads heads: those of
  // group g lie g * head_group_stride bytes behind those of group 0.
  int head_groups = 1;
  uint64_t head_group_stride = 0;

  // From a host page's address to its data of this layer and head group.
  uint64_t HostOffset(PageRole role, int head_group) const {
    return (role == PageRole::kKey ? host_k : host_v) + head_group * head_group_stride;
  }
};

// [tokens][heads][head_size], dims contiguous, strides in elements. Borrowed for the call.
struct TensorView {
  void* data = nullptr;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};

// Partials of all splits: o[row][query head][head_size], lse[row][query head], float32.
struct PartialWorkspace {
  float* o = nullptr;
  float* lse = nullptr;
};

// A graph that holds the layers of a step: what its launches are for.
struct GraphShape {
  int32_t num_tokens = 0;    // rows of the step's tensors
  int32_t query_tokens = 1;  // of a sequence, at most
};

struct LayerCall {
  const StepPlan* plan = nullptr;
  const LayerParams* params = nullptr;
  const LayerPages* pages = nullptr;
  TensorView query;
  TensorView key;  // null data: nothing is written
  TensorView value;
  TensorView output;
  PartialWorkspace partials;      // unused by a device that has its own
  int layer = 0;                  // 0, 1, ... in the order in which a step runs them
  CUstream_st* stream = nullptr;  // of a CUDA device: the engine's, on which the tensors are valid
  // Not null: the layer is captured for this shape, and `plan` is not looked at.
  const GraphShape* capture = nullptr;
};

}  // namespace hybridgen

#endif  // BACKEND_LAYER_CALL_H_
