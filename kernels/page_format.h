// Formats of a KV page, versioned in one place, with element offsets and conversions between them.
//
// A page holds the K (or V) of `page_tokens` consecutive tokens for all KV heads of one layer.
//   kStrided    the engine's tensor, read and written by strides; K and V of a token may share a row.
//   kPackedV1   host pages for the CPU kernels, head-major, one contiguous run per KV head:
//     K  [kv_head][token / 16][dim / lane][16 tokens][lane]     lane = dims stored together per token
//     V  [kv_head][dim / 16][token / lane][16 dims][lane]       lane = tokens stored together per dim
//     lane is 2 for bfloat16 (pairs widen by shift and mask, and are what vdpbf16ps and AMX read) and 1 for the
//     others (a float16 pair would need a shuffle per load before FMA, and float8 widens in order).
//   kPackedInt8V1  host pages of 8-bit values for the CPU kernels, head-major, one contiguous run per KV head. A value
//   is n * scale with n in [-127, 127]; each token and KV head has a float32 scale for K and one for V:
//     K  [kv_head][token / 16]{int8 [dim / 4][16 tokens][4 dims], float [16 tokens]}
//     V  [kv_head]{int8 [dim / 16][token / 4][16 dims][4 tokens], float [page_tokens]}
//     A line of 64 bytes thus has four dims (K) or four tokens (V) for each of 16 lanes. `dtype` of the geometry is
//     that of the rows which are written into the page and read back.
// Of both packed formats page_tokens is a multiple of 16, head_size is a multiple of 8 and is padded to 16 with zeros
// in both roles.
#ifndef KERNELS_PAGE_FORMAT_H_
#define KERNELS_PAGE_FORMAT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/dtype.h"

namespace hybridgen {

enum class PageFormat : uint8_t { kStrided = 0, kPackedV1 = 1, kPackedInt8V1 = 2 };

constexpr const char* PageFormatName(PageFormat format) {
  switch (format) {
    case PageFormat::kStrided:
      return "strided";
    case PageFormat::kPackedV1:
      return "packed";
    case PageFormat::kPackedInt8V1:
      return "int8";
  }
  return "unknown";
}

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

// Bytes of one page of kPackedV1 of one role and one layer.
constexpr size_t PackedPageBytes(DType dtype, int kv_heads, int page_tokens, int head_size) {
  return DTypeSize(dtype) * kv_heads * page_tokens * PaddedHeadSize(head_size);
}

// Bytes of one KV head, and of all of them, in a page of kPackedInt8V1 of either role: a multiple of 64.
constexpr size_t Int8HeadBytes(int page_tokens, int head_size) {
  return static_cast<size_t>(page_tokens) * (PaddedHeadSize(head_size) + sizeof(float));
}
constexpr size_t Int8PageBytes(int kv_heads, int page_tokens, int head_size) {
  return kv_heads * Int8HeadBytes(page_tokens, head_size);
}

// Bytes of one page of these of one role and one layer, of either packed format.
constexpr size_t HostPageBytes(PageFormat format, DType dtype, int kv_heads, int page_tokens, int head_size) {
  return format == PageFormat::kPackedInt8V1 ? Int8PageBytes(kv_heads, page_tokens, head_size)
                                             : PackedPageBytes(dtype, kv_heads, page_tokens, head_size);
}
constexpr size_t HostPageBytes(const PageGeometry& g) {
  return HostPageBytes(g.format, g.dtype, g.kv_heads, g.page_tokens, g.head_size);
}

// Element offset of (kv_head, token, dim) inside a page of kPackedV1 of either role.
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

// Byte offset of the value of (kv_head, token, dim), and of the scale of (kv_head, token), in a page of kPackedInt8V1.
constexpr size_t Int8KeyOffset(int page_tokens, int head_size, int kv_head, int token, int dim) {
  return kv_head * Int8HeadBytes(page_tokens, head_size) + token / 16 * Int8HeadBytes(16, head_size) +
         static_cast<size_t>(dim / 4) * 64 + token % 16 * 4 + dim % 4;
}
constexpr size_t Int8KeyScaleOffset(int page_tokens, int head_size, int kv_head, int token) {
  return kv_head * Int8HeadBytes(page_tokens, head_size) + token / 16 * Int8HeadBytes(16, head_size) +
         static_cast<size_t>(PaddedHeadSize(head_size)) * 16 + token % 16 * sizeof(float);
}
constexpr size_t Int8ValueOffset(int page_tokens, int head_size, int kv_head, int token, int dim) {
  return kv_head * Int8HeadBytes(page_tokens, head_size) + static_cast<size_t>(dim / 16) * 16 * page_tokens +
         static_cast<size_t>(token / 4) * 64 + dim % 16 * 4 + token % 4;
}
constexpr size_t Int8ValueScaleOffset(int page_tokens, int head_size, int kv_head, int token) {
  return kv_head * Int8HeadBytes(page_tokens, head_size) +
         static_cast<size_t>(PaddedHeadSize(head_size)) * page_tokens + token * sizeof(float);
}

}  // namespace hybridgen

#endif  // KERNELS_PAGE_FORMAT_H_
