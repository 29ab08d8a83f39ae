// Launching decode for one element type; one .cu per type instantiates it, so that they compile side by side.
#ifndef KERNELS_CUDA_DECODE_LAUNCH_CUH_
#define KERNELS_CUDA_DECODE_LAUNCH_CUH_

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/enqueue.cuh"

namespace hybridgen::cuda {

template <typename T>
LaunchStatus LaunchDecodeOf(const AttendParams& p, CUstream_st* stream) {
  return DispatchDecode<T>(p, [&](auto type) {
    using Tile = typename decltype(type)::type;
    const dim3 grid(p.num_items, p.geometry.kv_heads, (MaxRows(p) + Tile::kRows - 1) / Tile::kRows);
    return Enqueue(&DecodeKernel<Tile>, p, grid, DecodeShape<Tile>::kThreads, DecodeShape<Tile>::kSharedBytes, stream);
  });
}

template <typename T>
LaunchStatus LoadDecodeOf() {
  for (int head_size : {64, 96, 128, 256}) {
    for (int rows : {1, 4, 16}) {
      const LaunchStatus status = DispatchHeadSize<T>(head_size, [&](auto size) {
        return DispatchTile<T, decltype(size)::value>(rows, [](auto type) {
          using Tile = typename decltype(type)::type;
          return Prepare(&DecodeKernel<Tile>, DecodeShape<Tile>::kSharedBytes);
        });
      });
      if (status != LaunchStatus::kOk) return status;
    }
  }
  return LaunchStatus::kOk;
}

extern template LaunchStatus LaunchDecodeOf<arch::Float16>(const AttendParams&, CUstream_st*);
extern template LaunchStatus LaunchDecodeOf<arch::BFloat16>(const AttendParams&, CUstream_st*);
extern template LaunchStatus LoadDecodeOf<arch::Float16>();
extern template LaunchStatus LoadDecodeOf<arch::BFloat16>();

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_DECODE_LAUNCH_CUH_
