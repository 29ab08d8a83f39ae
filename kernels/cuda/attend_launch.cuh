// Launching attention for one element type; one .cu per type instantiates it, so that they compile side by side.
#ifndef KERNELS_CUDA_ATTEND_LAUNCH_CUH_
#define KERNELS_CUDA_ATTEND_LAUNCH_CUH_

#include "kernels/cuda/chosen.cuh"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/prefill.cuh"

namespace hybridgen::cuda {

// Blocks of a call whose tiles take `rows` query rows.
inline dim3 AttendGrid(const AttendParams& p, int rows) {
  return dim3(p.num_items, p.geometry.kv_heads, (MaxRows(p) + rows - 1) / rows);
}

template <typename T>
struct AttendLauncher {
  static LaunchStatus Decode(const AttendParams& p, CUstream_st* stream) {
    return DispatchDecode<T>(p, [&](auto type) {
      using Tile = typename decltype(type)::type;
      using Shape = DecodeShape<Tile>;
      return Enqueue(&DecodeKernel<Tile>, p, AttendGrid(p, Tile::kRows), Shape::kThreads, Shape::kSharedBytes, stream);
    });
  }

  static LaunchStatus Chosen(const ChosenParams& p, CUstream_st* stream) {
    return DispatchDecode<T>(p.attend, [&](auto type) {
      using Tile = typename decltype(type)::type;
      using Shape = DecodeShape<Tile>;
      return Enqueue(&ChosenKernel<Tile>, p, AttendGrid(p.attend, Tile::kRows), Shape::kThreads, Shape::kSharedBytes,
                     stream);
    });
  }

  static LaunchStatus Prefill(const AttendParams& p, CUstream_st* stream) {
    return DispatchHeadSize<T>(p.geometry.head_size, [&](auto head_size) {
      using Tile = MmaTile<T, decltype(head_size)::value>;
      using Shape = PrefillShape<Tile>;
      return Enqueue(&PrefillKernel<Tile>, p, AttendGrid(p, Shape::kRows), Shape::kThreads, Shape::kSharedBytes,
                     stream);
    });
  }

  static LaunchStatus Load() {
    for (int head_size : {64, 96, 128, 256}) {
      const LaunchStatus status = DispatchHeadSize<T>(head_size, [](auto size) {
        constexpr int kHeadSize = decltype(size)::value;
        using Prefill = MmaTile<T, kHeadSize>;
        for (int rows : {1, 4, 16}) {
          const LaunchStatus status = DispatchTile<T, kHeadSize>(rows, [](auto type) {
            using Tile = typename decltype(type)::type;
            const LaunchStatus status = Prepare(&DecodeKernel<Tile>, DecodeShape<Tile>::kSharedBytes);
            if (status != LaunchStatus::kOk) return status;
            return Prepare(&ChosenKernel<Tile>, DecodeShape<Tile>::kSharedBytes);
          });
          if (status != LaunchStatus::kOk) return status;
        }
        return Prepare(&PrefillKernel<Prefill>, PrefillShape<Prefill>::kSharedBytes);
      });
      if (status != LaunchStatus::kOk) return status;
    }
    return LaunchStatus::kOk;
  }
};

extern template struct AttendLauncher<arch::Float16>;
extern template struct AttendLauncher<arch::BFloat16>;

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_ATTEND_LAUNCH_CUH_
