// The identity binding: the engine's tensor is the cache, a block id is a page of it.
#ifndef BACKEND_IDENTITY_BINDING_H_
#define BACKEND_IDENTITY_BINDING_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "backend/backend_options.h"
#include "backend/layer_call.h"

namespace hybridgen {

struct IdentityPool {
  int layer = 0;
  void* data = nullptr;
  int64_t num_blocks = 0;
  // K of (block, head, token) begins at data + their sum, in elements; V head_size elements after it.
  int64_t block_stride = 0;
  int64_t head_stride = 0;
  int64_t token_stride = 0;
};

// Where the layer's pages lie. InvalidArgument for a pool that names no layer below `num_layers`, or whose addresses or
// strides cannot be.
absl::StatusOr<LayerPages> PagesOfIdentityPool(const BackendOptions& options, const IdentityPool& pool, int num_layers);

}  // namespace hybridgen

#endif  // BACKEND_IDENTITY_BINDING_H_
