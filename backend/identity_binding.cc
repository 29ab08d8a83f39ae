#include "backend/identity_binding.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "backend/tiered_binding.h"

namespace hybridgen {
namespace {

// Largest stride with which addresses of a tensor cannot overflow.
constexpr int64_t kMaxStride = int64_t{1} << 30;  // elements

}  // namespace

absl::StatusOr<LayerPages> PagesOfIdentityPool(const BackendOptions& options, const IdentityPool& pool,
                                               int num_layers) {
  if (pool.layer < 0 || pool.layer >= num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("bind identity: layer is ", pool.layer, "; accepted: 0 to ", num_layers - 1));
  }
  if (pool.data == nullptr) return absl::InvalidArgumentError("bind identity: data is null; accepted: the KV tensor");
  if (pool.num_blocks < 1 || pool.num_blocks > kMaxBlocks) {
    return absl::InvalidArgumentError(
        absl::StrCat("bind identity: num_blocks is ", pool.num_blocks, "; accepted: 1 to ", kMaxBlocks));
  }
  const int64_t least_token_stride = 2 * options.head_size;
  if (pool.block_stride < 1 || pool.head_stride < 1 || pool.token_stride < least_token_stride ||
      std::max({pool.block_stride, pool.head_stride, pool.token_stride}) > kMaxStride) {
    return absl::InvalidArgumentError(absl::StrCat(
        "bind identity: strides are block ", pool.block_stride, ", head ", pool.head_stride, ", token ",
        pool.token_stride, "; accepted: 1 to ", kMaxStride, ", for tokens from 2 * head_size = ", least_token_stride));
  }
  LayerPages pages;
  pages.pool = GeometryOf(options, PageFormat::kStrided);
  pages.pool.k_head_stride = pages.pool.v_head_stride = pool.head_stride;
  pages.pool.k_token_stride = pages.pool.v_token_stride = pool.token_stride;
  pages.pool_k = reinterpret_cast<uint64_t>(pool.data);
  pages.pool_v = pages.pool_k + options.head_size * DTypeSize(options.kv());
  pages.pool_page_bytes = pool.block_stride * DTypeSize(options.kv());
  pages.pool_pages = pool.num_blocks;
  return pages;
}

}  // namespace hybridgen
