// The launchers, and the kernels that move data.
#include "kernels/cuda/attend_launch.h"
#include "kernels/cuda/dispatch_element.cuh"
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/repack.cuh"
#include "kernels/cuda/write_kv.cuh"

namespace hybridgen::cuda {
namespace {

template <Repack kDirection>
LaunchStatus LaunchRepack(const RepackParams& p, CUstream_st* stream) {
  const LaunchStatus status = Check(p);
  if (status != LaunchStatus::kOk) return status;
  const PageGeometry& g = p.geometry;
  const dim3 grid(p.num_jobs * (g.page_tokens / kPackedTokenGroup), g.kv_heads, 2);
  return DispatchElement(g.dtype, [&](auto element) {
    return Enqueue(&RepackKernel<typename decltype(element)::type, kDirection>, p, grid, kRepackThreads,
                   RepackSharedBytes(g.head_size), stream);
  });
}

}  // namespace

LaunchStatus LoadKernels() {
  // The kernels that move data need no more shared memory than any kernel has; being asked for loads them.
  for (const LaunchStatus status :
       {Prepare(&WriteKvKernel, 0), Prepare(&MergeKernel, 0),
        Prepare(&RepackKernel<arch::Float16, Repack::kPack>, RepackSharedBytes(kMaxHeadSize)),
        Prepare(&RepackKernel<arch::Float16, Repack::kUnpack>, RepackSharedBytes(kMaxHeadSize)),
        Prepare(&RepackKernel<arch::BFloat16, Repack::kPack>, RepackSharedBytes(kMaxHeadSize)),
        Prepare(&RepackKernel<arch::BFloat16, Repack::kUnpack>, RepackSharedBytes(kMaxHeadSize)),
        AttendLauncher<arch::Float16>::Load(), AttendLauncher<arch::BFloat16>::Load()}) {
    if (status != LaunchStatus::kOk) return status;
  }
  return LaunchStatus::kOk;
}

LaunchStatus LaunchWriteKv(const WriteKvParams& p, CUstream_st* stream) {
  const LaunchStatus status = Check(p);
  if (status != LaunchStatus::kOk) return status;
  return Enqueue(&WriteKvKernel, p, dim3(WriteKvBlocks(p)), kWriteKvThreads, 0, stream);
}

LaunchStatus LaunchDecode(const AttendParams& p, CUstream_st* stream) {
  const LaunchStatus status = Check(p);
  if (status != LaunchStatus::kOk) return status;
  return DispatchElement(p.geometry.dtype, [&](auto element) {
    return AttendLauncher<typename decltype(element)::type>::Decode(p, stream);
  });
}

LaunchStatus LaunchPrefill(const AttendParams& p, CUstream_st* stream) {
  const LaunchStatus status = Check(p);
  if (status != LaunchStatus::kOk) return status;
  return DispatchElement(p.geometry.dtype, [&](auto element) {
    return AttendLauncher<typename decltype(element)::type>::Prefill(p, stream);
  });
}

LaunchStatus LaunchChosen(const ChosenParams& p, CUstream_st* stream) {
  const LaunchStatus status = Check(p);
  if (status != LaunchStatus::kOk) return status;
  return DispatchElement(p.attend.geometry.dtype, [&](auto element) {
    return AttendLauncher<typename decltype(element)::type>::Chosen(p, stream);
  });
}

LaunchStatus LaunchMerge(const MergeParams& p, CUstream_st* stream) {
  const LaunchStatus status = Check(p);
  if (status != LaunchStatus::kOk) return status;
  return Enqueue(&MergeKernel, p, dim3(MergeBlocks(p)), kMergeThreads, 0, stream);
}

LaunchStatus LaunchPackPages(const RepackParams& p, CUstream_st* stream) {
  return LaunchRepack<Repack::kPack>(p, stream);
}

LaunchStatus LaunchUnpackPages(const RepackParams& p, CUstream_st* stream) {
  return LaunchRepack<Repack::kUnpack>(p, stream);
}

}  // namespace hybridgen::cuda
