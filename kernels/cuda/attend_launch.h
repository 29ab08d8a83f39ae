// Launching attention for a pair of element types: several .cu define it for some each, so that they compile side by
// side.
#ifndef KERNELS_CUDA_ATTEND_LAUNCH_H_
#define KERNELS_CUDA_ATTEND_LAUNCH_H_

#include "kernels/cuda/launch.h"

namespace hybridgen::cuda {

// T of q and o: arch::Float16 or arch::BFloat16. Kv: T or one of float8. Arguments have passed Check.
template <typename T, typename Kv>
struct AttendLauncher {
  static LaunchStatus Decode(const AttendParams& p, CUstream_st* stream);
  static LaunchStatus Prefill(const AttendParams& p, CUstream_st* stream);
  static LaunchStatus Chosen(const ChosenParams& p, CUstream_st* stream);
  static LaunchStatus Load();
};

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_ATTEND_LAUNCH_H_
