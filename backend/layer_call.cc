#include "backend/layer_call.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hybridgen {

absl::Status CheckLayer(const LayerParams& params, int num_kv_heads, DType kv_dtype) {
  if (params.num_query_heads < 1 || params.num_query_heads % num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("add layer: num_query_heads is ", params.num_query_heads,
                                                   "; accepted: positive multiples of num_kv_heads = ", num_kv_heads));
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
    return absl::InvalidArgumentError(absl::StrCat("add layer: scale is ", params.scale, "; accepted: finite values"));
  }
  for (const auto& [field, scale] : {std::pair{"k_scale", params.k_scale}, {"v_scale", params.v_scale}}) {
    if (!IsFloat8(kv_dtype) && scale != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("add layer: ", field, " is ", scale, "; accepted with KV of ", DTypeName(kv_dtype), ": 1"));
    }
    if (!(scale > 0 && std::isfinite(scale))) {
      return absl::InvalidArgumentError(
          absl::StrCat("add layer: ", field, " is ", scale, "; accepted: positive finite values"));
    }
  }
  return absl::OkStatus();
}

}  // namespace hybridgen
