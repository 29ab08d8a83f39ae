// The last step of every launcher.
#ifndef KERNELS_CUDA_ENQUEUE_CUH_
#define KERNELS_CUDA_ENQUEUE_CUH_

#include "kernels/cuda/launch.h"

namespace hybridgen::cuda {

template <typename Params>
LaunchStatus Enqueue(void (*kernel)(Params), const Params& params, dim3 grid, int threads, int shared_bytes,
                     CUstream_st* stream) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return LaunchStatus::kOk;
  kernel<<<grid, threads, shared_bytes, stream>>>(params);
  return cudaPeekAtLastError() == cudaSuccess ? LaunchStatus::kOk : LaunchStatus::kDriver;
}

// Loads the kernel on the current device and lets it have its shared memory.
template <typename Params>
LaunchStatus Prepare(void (*kernel)(Params), int shared_bytes) {
  const void* const entry = reinterpret_cast<const void*>(kernel);
  return cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) == cudaSuccess
             ? LaunchStatus::kOk
             : LaunchStatus::kDriver;
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_ENQUEUE_CUH_
