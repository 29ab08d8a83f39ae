// Definitions of attend_launch.h, for the .cu files that instantiate them.
#ifndef KERNELS_CUDA_ATTEND_LAUNCH_CUH_
#define KERNELS_CUDA_ATTEND_LAUNCH_CUH_

#include "kernels/cuda/attend_launch.h"
#include "kernels/cuda/chosen.cuh"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/prefill.cuh"

namespace hybridgen::cuda {

// Blocks of a call whose tiles take `rows` query rows.
inline dim3 AttendGrid(const AttendParams& p, int rows) {
  return dim3(p.num_items, p.geometry.kv_heads, (MaxRows(p) + rows - 1) / rows);
}

template <typename T, typename Kv>
LaunchStatus AttendLauncher<T, Kv>::Decode(const AttendParams& p, CUstream_st* stream) {
  return DispatchDecode<T, Kv>(p, [&](auto type) {
    using Tile = typename decltype(type)::type;
    using Shape = DecodeShape<Tile>;
    return Enqueue(&DecodeKernel<Tile>, p, AttendGrid(p, Tile::kRows), Shape::kThreads, Shape::kSharedBytes, stream);
  });
}

template <typename T, typename Kv>
LaunchStatus AttendLauncher<T, Kv>::Chosen(const ChosenParams& p, CUstream_st* stream) {
  return DispatchDecode<T, Kv>(p.attend, [&](auto type) {
    using Tile = typename decltype(type)::type;
    using Shape = DecodeShape<Tile>;
    return Enqueue(&ChosenKernel<Tile>, p, AttendGrid(p.attend, Tile::kRows), Shape::kThreads, Shape::kSharedBytes,
                   stream);
  });
}

template <typename T, typename Kv>
LaunchStatus AttendLauncher<T, Kv>::Prefill(const AttendParams& p, CUstream_st* stream) {
  return DispatchHeadSize(p.geometry.head_size, [&](auto head_size) {
    using Tile = MmaTile<T, Kv, decltype(head_size)::value>;
    using Shape = PrefillShape<Tile>;
    return Enqueue(&PrefillKernel<Tile>, p, AttendGrid(p, Shape::kRows), Shape::kThreads, Shape::kSharedBytes, stream);
  });
}

// Prepares kernels until one fails.
template <typename T, typename Kv, int kHeadSize>
LaunchStatus LoadHeadSize() {
  for (int rows : {1, 4, 16}) {
    const LaunchStatus status = DispatchTile<T, Kv, kHeadSize>(rows, [](auto type) {
      using Tile = typename decltype(type)::type;
      const LaunchStatus decode = Prepare(&DecodeKernel<Tile>, DecodeShape<Tile>::kSharedBytes);
      return decode != LaunchStatus::kOk ? decode : Prepare(&ChosenKernel<Tile>, DecodeShape<Tile>::kSharedBytes);
    });
    if (status != LaunchStatus::kOk) return status;
  }
  using Tile = MmaTile<T, Kv, kHeadSize>;
  return Prepare(&PrefillKernel<Tile>, PrefillShape<Tile>::kSharedBytes);
}

template <typename T, typename Kv>
LaunchStatus AttendLauncher<T, Kv>::Load() {
  for (int head_size : {64, 96, 128, 256}) {
    const LaunchStatus status =
        DispatchHeadSize(head_size, [](auto size) { return LoadHeadSize<T, Kv, decltype(size)::value>(); });
    if (status != LaunchStatus::kOk) return status;
  }
  return LaunchStatus::kOk;
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_ATTEND_LAUNCH_CUH_
