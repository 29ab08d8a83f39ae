// The joint's launchers.
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/joint.cuh"

namespace hybridgen::cuda {

LaunchStatus LoadJointKernels() {
  const LaunchStatus status = Prepare(&PublishKernel, 0);
  return status != LaunchStatus::kOk ? status : Prepare(&AwaitKernel, 0);
}

LaunchStatus LaunchPublish(const PublishParams& params, CUstream_st* stream) {
  const LaunchStatus status = Check(params);
  if (status != LaunchStatus::kOk) return status;
  PublishParams p = params;
  p.num_blocks = PublishBlocks(p);
  return Enqueue(&PublishKernel, p, dim3(p.num_blocks), kPublishThreads, 0, stream);
}

LaunchStatus LaunchAwait(const AwaitParams& params, CUstream_st* stream) {
  return Enqueue(&AwaitKernel, params, dim3(1), arch::kWarpSize, 0, stream);
}

}  // namespace hybridgen::cuda
