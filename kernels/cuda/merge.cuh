// Merge of partials into the output: one warp per (token, query head).
#ifndef KERNELS_CUDA_MERGE_CUH_
#define KERNELS_CUDA_MERGE_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/params.h"
#include "kernels/partial.h"

namespace hybridgen::cuda {

constexpr int kMergeThreads = 128;

struct PartialRow {
  const float* o;
  float lse;
};

// The CPU's partials of the call that is merged.
HG_DEVICE Partials HostPartials(const MergeParams& p) {
  const bool odd = p.first_sequence != nullptr && ((*p.first_sequence + p.call) & 1) != 0;
  return odd ? p.host[1] : p.host[0];
}

HG_DEVICE PartialRow LoadPartial(const MergeParams& p, const Partials& host, const MergeItem& item, int i, int head) {
  const int row = item.row + i * item.stride;
  const bool on_host = row >= p.first_host_row;
  const Partials& from = on_host ? host : p.device;
  const int64_t at = static_cast<int64_t>(on_host ? row - p.first_host_row : row) * p.query_heads + head;
  return {from.o + at * p.head_size, from.lse[at]};
}

HG_DEVICE void StoreElement(void* row, DType dtype, int dim, float x) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(row)[dim] = x;
  } else if (dtype == DType::kFloat16) {
    static_cast<uint16_t*>(row)[dim] = static_cast<uint16_t>(arch::Pack2<arch::Float16>(x, 0.0f));
  } else {
    static_cast<uint16_t*>(row)[dim] = static_cast<uint16_t>(arch::Pack2<arch::BFloat16>(x, 0.0f));
  }
}

// m = max lse; o = sum e^(lse - m) o / sum e^(lse - m); lse = m + ln(that sum). The o of an empty partial is not read.
// An output row may be the place of one of its own partials: a lane reads and writes its own dims.
HG_KERNEL HG_LAUNCH_BOUNDS(kMergeThreads) MergeKernel(MergeParams p) {
  constexpr int kWarps = kMergeThreads / arch::kWarpSize;
  constexpr int kDims = kMaxHeadSize / arch::kWarpSize;  // of a lane
  const int64_t pair = static_cast<int64_t>(arch::BlockIndex().x) * kWarps + arch::WarpIndex();
  if (pair >= static_cast<int64_t>(p.num_items) * p.query_heads) return;
  const MergeItem item = p.items[pair / p.query_heads];
  if (item.count == 0) return;
  const Partials host = HostPartials(p);
  const int head = static_cast<int>(pair % p.query_heads);
  const int lane = arch::LaneIndex();

  float max = kEmptyLse;
  for (int i = 0; i < item.count; ++i) {
    const float lse = LoadPartial(p, host, item, i, head).lse;
    max = lse > max ? lse : max;
  }
  float sum = 0.0f;
  float acc[kDims];
  for (int j = 0; j < kDims; ++j) acc[j] = 0.0f;
  for (int i = 0; i < item.count; ++i) {
    const PartialRow partial = LoadPartial(p, host, item, i, head);
    if (partial.lse == kEmptyLse) continue;
    const float weight = arch::Exp2((partial.lse - max) * arch::kLog2E);
    sum += weight;
    HG_UNROLL
    for (int j = 0; j < kDims; ++j) {
      const int dim = lane + j * arch::kWarpSize;
      if (dim < p.head_size) acc[j] += weight * partial.o[dim];
    }
  }
  const int64_t size = p.dtype == DType::kFloat32 ? 4 : 2;
  char* row = static_cast<char*>(p.o.data) + (item.token * p.o.token_stride + head * p.o.head_stride) * size;
  const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
  HG_UNROLL
  for (int j = 0; j < kDims; ++j) {
    const int dim = lane + j * arch::kWarpSize;
    if (dim < p.head_size) StoreElement(row, p.dtype, dim, acc[j] * scale);
  }
  arch::SyncWarp(arch::kFullMask);  // the row may be one of the partials, whose lse all lanes have read by now
  if (p.lse != nullptr && lane == 0) {
    p.lse[static_cast<int64_t>(item.token) * p.query_heads + head] = sum == 0.0f ? kEmptyLse : max + arch::Log(sum);
  }
}

inline int MergeBlocks(const MergeParams& p) {
  const int64_t warps = kMergeThreads / arch::kWarpSize;
  return static_cast<int>((static_cast<int64_t>(p.num_items) * p.query_heads + warps - 1) / warps);
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_MERGE_CUH_
