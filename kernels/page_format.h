// Formats of a KV page, versioned in one place, with element offsets and conversions between them.
//
// A page holds the K (or V) of `page_tokens` consecutive tokens for all KV heads of one layer.
//   kStrided    the engine's tensor, read and written by strides; K and V of a token may share a row.
//   kPackedV1   host pages for the CPU kernels, head-major, one contiguous run per KV head:
//     K  [kv_head][token / 16][dim / lane][16 tokens][lane]     lane = dims stored together per token
//     V  [kv_head][dim / 16][token / lane][16 dims][lane]       lane = tokens stored together per dim
//     lane is 2 for bfloat16 (pairs widen by shift and mask, and are what vdpbf16ps and AMX read) and 1 for the
//     others (a float16 pair would need a shuffle per load before FMA, and float8 widens in order).
//     page_tokens is a multiple of 16. head_size is a multiple of 8 and is padded to 16 with zeros in both roles.
#ifndef KERNELS_PAGE_FORMAT_H_
#define KERNELS_PAGE_FORMAT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/dtype.h"

namespace hybridgen {

enum class PageFormat : uint8_t { kStrided = 0, kPackedV1 = 1 };

enum class KvRole : uint8_t { kKey = 0, kValue = 1 };

// Geometry shared by all pages of one call. Strides are in elements and used by kStrided only; dims of one
// head and token are contiguous there.
struct PageGeometry {
  PageFormat format = PageFormat::kStrided;
  DType dtype = DType::kFloat32;
  int page_tokens = 0;
  int kv_heads = 0;
  int head_size = 0;
  int64_t k_head_stride = 0;
  int64_t k_token_stride = 0;
  int64_t v_head_stride = 0;
  int64_t v_token_stride = 0;
};

constexpr int kPackedTokenGroup = 16;
constexpr int kPackedDimGroup = 16;

constexpr int PackedLane(DType dtype) { return dtype == DType::kBFloat16 ? 2 : 1; }

constexpr int PaddedHeadSize(int head_size) {
  return (head_size + kPackedDimGroup - 1) / kPackedDimGroup * kPackedDimGroup;
}

// Bytes of one packed page of one role and one layer.
constexpr size_t PackedPageBytes(DType dtype, int kv_heads, int page_tokens, int head_size) {
  return DTypeSize(dtype) * kv_heads * page_tokens * PaddedHeadSize(head_size);
}

// Element offset of (kv_head, token, dim) inside a packed page of either role.
constexpr size_t PackedKeyOffset(DType dtype, int page_tokens, int head_size, int kv_head, int token, int dim) {
  const int lane = PackedLane(dtype);
  const size_t padded = PaddedHeadSize(head_size);
  return (static_cast<size_t>(kv_head) * page_tokens + token / 16 * 16) * padded +
         static_cast<size_t>(dim / lane) * 16 * lane + token % 16 * lane + dim % lane;
}

constexpr size_t PackedValueOffset(DType dtype, int page_tokens, int head_size, int kv_head, int token, int dim) {
  const int lane = PackedLane(dtype);
  const size_t padded = PaddedHeadSize(head_size);
  return static_cast<size_t>(kv_head) * page_tokens * padded + static_cast<size_t>(dim / 16) * 16 * page_tokens +
         static_cast<size_t>(token / lane) * 16 * lane + dim % 16 * lane + token % lane;
}

}  // namespace hybridgen

#endif  // KERNELS_PAGE_FORMAT_H_
