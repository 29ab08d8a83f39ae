// Which instance of a kernel answers a call: one rule, for the launchers and for the tests that run the same source on
// the host.
#ifndef KERNELS_CUDA_DISPATCH_CUH_
#define KERNELS_CUDA_DISPATCH_CUH_

#include <type_traits>

#include "kernels/cuda/arch.h"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/dispatch_element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma_tile.cuh"
#include "kernels/cuda/vector_tile.cuh"

namespace hybridgen::cuda {

// f(Type<Tile>) for the tile that takes `rows` query rows of T over K and V of Kv. Up to 4 rows the multiply-adds of
// 16-bit K and V are cheaper than their bytes on every GPU in question (docs/cuda_kernels.md), and weights stay
// float32; from there on, and for float8, tensor cores.
template <typename T, typename Kv, int kHeadSize, typename F>
LaunchStatus DispatchTile(int rows, F f) {
  if constexpr (!kIsFp8<Kv>) {
    if (rows == 1) return f(Type<VectorTile<T, kHeadSize, 1>>());
    if (rows <= 4) return f(Type<VectorTile<T, kHeadSize, 4>>());
  }
  return f(Type<MmaTile<T, Kv, kHeadSize>>());
}

template <typename F>
LaunchStatus DispatchHeadSize(int head_size, F f) {
  switch (head_size) {
    case 64:
      return f(std::integral_constant<int, 64>());
    case 96:
      return f(std::integral_constant<int, 96>());
    case 128:
      return f(std::integral_constant<int, 128>());
    default:
      return f(std::integral_constant<int, 256>());
  }
}

// Query rows of the largest item, of one KV head.
inline int MaxRows(const AttendParams& p) { return p.max_item_tokens * (p.query_heads / p.geometry.kv_heads); }

template <typename T, typename Kv, typename F>
LaunchStatus DispatchDecode(const AttendParams& p, F f) {
  return DispatchHeadSize(p.geometry.head_size, [&](auto head_size) {
    return DispatchTile<T, Kv, decltype(head_size)::value>(MaxRows(p), f);
  });
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_DISPATCH_CUH_
