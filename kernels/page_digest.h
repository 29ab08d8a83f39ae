// Digest of a KV page: per KV head a box around K, and centroid and radius of V, from which a page's part of an
// attention is bounded or estimated without reading the page.
#ifndef KERNELS_PAGE_DIGEST_H_
#define KERNELS_PAGE_DIGEST_H_

#include <cstddef>
#include <cstdint>

#include "kernels/page_format.h"

namespace hybridgen {

// Where the parts of a digest lie, in bytes from its begin, which is aligned to 64. D = PaddedHeadSize(head_size);
// padded dims are zeros.
//   magnitude  float    [kv_head]        largest |bound| of the box; +inf: K is not finite or does not fit bfloat16,
//   and
//                                        the box is zeros and means nothing
//   radius     float    [kv_head]        at least the largest Euclidean distance of a token's V from the centroid; +inf
//                                        (with a centroid of zeros): V is not finite, or too large to square
//   box        bfloat16 [kv_head][D][2]  per dim the least and the largest K, rounded outward
//   centroid   float    [kv_head][D]     mean of V
// Internal linkage for the sake of the ISA sources.
struct DigestLayout {
  size_t magnitude;
  size_t radius;
  size_t box;
  size_t centroid;
  size_t bytes;  // of the digest; a multiple of 64
  // Of one KV head.
  size_t box_bytes;
  size_t centroid_floats;
};

static constexpr DigestLayout DigestLayoutOf(int kv_heads, int head_size) {
  const size_t padded = (head_size + kPackedDimGroup - 1) / kPackedDimGroup * kPackedDimGroup;
  const size_t heads = kv_heads;
  DigestLayout layout = {};
  layout.radius = heads * sizeof(float);
  layout.box = (2 * heads * sizeof(float) + 63) / 64 * 64;
  layout.box_bytes = padded * 2 * sizeof(uint16_t);
  layout.centroid = layout.box + heads * layout.box_bytes;
  layout.centroid_floats = padded;
  layout.bytes = layout.centroid + heads * padded * sizeof(float);
  return layout;
}

}  // namespace hybridgen

#endif  // KERNELS_PAGE_DIGEST_H_
