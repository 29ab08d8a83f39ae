// For tests: whether a page digest is of given K and V, by its definition (kernels/page_digest.h).
#ifndef BACKEND_DIGEST_CHECK_H_
#define BACKEND_DIGEST_CHECK_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "backend/engine_device.h"
#include "backend/paged_attention_backend.h"
#include "gtest/gtest.h"
#include "kernels/dtype.h"
#include "kernels/page_digest.h"
#include "kernels/testing/attend_case.h"

namespace hybridgen {

// One KV head of a digest of `kv_heads`: the box is the least one around K that bfloat16 has, the centroid is the mean
// of V and the radius the largest distance from it. key, value: (token, dim) as the page stores them, finite.
inline void ExpectDigestOf(const void* digest, int kv_heads, int kv_head, int head_size, int num_tokens,
                           absl::FunctionRef<float(int, int)> key, absl::FunctionRef<float(int, int)> value) {
  constexpr double kUnit = 0x1p-24;
  const DigestLayout layout = DigestLayoutOf(kv_heads, head_size);
  const char* const begin = static_cast<const char*>(digest);
  const char* const box = begin + layout.box + kv_head * layout.box_bytes;
  const char* const centroid = begin + layout.centroid + kv_head * layout.centroid_floats * sizeof(float);
  std::vector<double> squares(num_tokens);
  for (int dim = 0; dim < head_size; ++dim) {
    float least = key(0, dim), largest = least;
    double sum = 0, magnitude = 0;
    const double center = ReadElement(DType::kFloat32, centroid, dim);
    for (int t = 0; t < num_tokens; ++t) {
      least = std::min(least, key(t, dim));
      largest = std::max(largest, key(t, dim));
      const double v = value(t, dim);
      sum += v;
      magnitude = std::max(magnitude, std::abs(v));
      squares[t] += (v - center) * (v - center);
    }
    const float low = ReadElement(DType::kBFloat16, box, 2 * dim);
    const float high = ReadElement(DType::kBFloat16, box, 2 * dim + 1);
    // Neighbours of bfloat16 are at most 2^-7 of either apart.
    ASSERT_TRUE(low <= least && least - low <= std::abs(least) * 0x1p-7f)
        << "KV head " << kv_head << " dim " << dim << ": K from " << least << ", box from " << low;
    ASSERT_TRUE(high >= largest && high - largest <= std::abs(largest) * 0x1p-7f)
        << "KV head " << kv_head << " dim " << dim << ": K to " << largest << ", box to " << high;
    // A rounding for each token, of a sum of at most the magnitude, and that of 1 / num_tokens.
    ASSERT_NEAR(center, sum / num_tokens, (num_tokens + 2) * kUnit * magnitude)
        << "KV head " << kv_head << " dim " << dim;
  }
  const double distance = std::sqrt(*std::max_element(squares.begin(), squares.end()));
  const double radius = ReadElement(DType::kFloat32, begin + layout.radius, kv_head);
  ASSERT_GE(radius, distance) << "KV head " << kv_head;
  // Computed with head_size roundings at most and enlarged by as many.
  ASSERT_LE(radius, distance * (1 + (2 * head_size + 32) * kUnit) + 0x1p-57) << "KV head " << kv_head;
}

// The digests that a backend has of a request's full blocks, in head groups of equal size. Returns their number, by
// layer and KV head.
inline int64_t ExpectPageDigestsOf(const PagedAttentionBackend& backend, const Shape& shape,
                                   const std::vector<LayerParams>& layers, int head_groups, const Request& request) {
  const int group_heads = shape.kv_heads / head_groups;
  int64_t found = 0;
  for (int b = 0; b < request.computed / shape.block_size; ++b) {
    for (int l = 0; l < shape.layers; ++l) {
      for (int h = 0; h < shape.kv_heads; ++h) {
        const void* const digest = backend.FindDigest(l, h / group_heads, request.blocks[b]);
        if (digest == nullptr) continue;
        ++found;
        const auto stored = [&](const std::vector<float>& elements, float scale, int token, int dim) {
          const int64_t position = static_cast<int64_t>(b) * shape.block_size + token;
          const float x = elements[(position * shape.kv_heads + h) * shape.head_size + dim];
          return IsFloat8(shape.kv()) ? RoundTo(shape.kv(), x / scale) : x;
        };
        SCOPED_TRACE(testing::Message() << "digest of block " << request.blocks[b] << " layer " << l);
        ExpectDigestOf(
            digest, group_heads, h % group_heads, shape.head_size, shape.block_size,
            [&](int token, int dim) { return stored(request.k[l], layers[l].k_scale, token, dim); },
            [&](int token, int dim) { return stored(request.v[l], layers[l].v_scale, token, dim); });
      }
    }
  }
  return found;
}

}  // namespace hybridgen

#endif  // BACKEND_DIGEST_CHECK_H_
