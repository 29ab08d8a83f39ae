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
  return DispatchRepack(g.dtype, [&](auto element) {
    return Enqueue(&RepackKernel<typename decltype(element)::type, kDirection>, p, grid, kRepackThreads,
                   RepackSharedBytes(g.dtype, g.head_size), stream);
  });
}

// What moves pages and is attended for a pair of element types.
LaunchStatus LoadElements(DType dtype, DType kv) {
  return DispatchElements(dtype, kv, [&](auto element, auto kv_element) {
    using T = typename decltype(element)::type;
    using Kv = typename decltype(kv_element)::type;
    // The kernels that move data need no more shared memory than any kernel has; being asked for loads them.
    const LaunchStatus write = Prepare(&WriteKvKernel<T, Kv>, 0);
    if (write != LaunchStatus::kOk) return write;
    const LaunchStatus repack = DispatchRepack(kv, [&](auto moved) {
      using Moved = typename decltype(moved)::type;
      const int shared = RepackSharedBytes(kv, kMaxHeadSize);
      const LaunchStatus pack = Prepare(&RepackKernel<Moved, Repack::kPack>, shared);
      return pack != LaunchStatus::kOk ? pack : Prepare(&RepackKernel<Moved, Repack::kUnpack>, shared);
    });
    return repack != LaunchStatus::kOk ? repack : AttendLauncher<T, Kv>::Load();
  });
}

}  // namespace

LaunchStatus LoadKernels() {
  LaunchStatus status = Prepare(&MergeKernel, 0);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const DType kv : {dtype, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
      if (status == LaunchStatus::kOk) status = LoadElements(dtype, kv);
    }
  }
  return status;
}

LaunchStatus LaunchWriteKv(const WriteKvParams& p, CUstream_st* stream) {
  const LaunchStatus status = Check(p);
  if (status != LaunchStatus::kOk) return status;
  return DispatchElements(p.dtype, p.geometry.dtype, [&](auto element, auto kv) {
    return Enqueue(&WriteKvKernel<typename decltype(element)::type, typename decltype(kv)::type>, p,
                   dim3(WriteKvBlocks(p)), kWriteKvThreads, 0, stream);
  });
}

LaunchStatus LaunchDecode(const AttendParams& p, CUstream_st* stream) {
  const LaunchStatus status = Check(p);
  if (status != LaunchStatus::kOk) return status;
  return DispatchElements(p.dtype, p.geometry.dtype, [&](auto element, auto kv) {
    return AttendLauncher<typename decltype(element)::type, typename decltype(kv)::type>::Decode(p, stream);
  });
}

LaunchStatus LaunchPrefill(const AttendParams& p, CUstream_st* stream) {
  const LaunchStatus status = Check(p);
  if (status != LaunchStatus::kOk) return status;
  return DispatchElements(p.dtype, p.geometry.dtype, [&](auto element, auto kv) {
    return AttendLauncher<typename decltype(element)::type, typename decltype(kv)::type>::Prefill(p, stream);
  });
}

LaunchStatus LaunchChosen(const ChosenParams& p, CUstream_st* stream) {
  const LaunchStatus status = Check(p);
  if (status != LaunchStatus::kOk) return status;
  return DispatchElements(p.attend.dtype, p.attend.geometry.dtype, [&](auto element, auto kv) {
    return AttendLauncher<typename decltype(element)::type, typename decltype(kv)::type>::Chosen(p, stream);
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
