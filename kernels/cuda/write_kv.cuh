// KV cache write: one warp copies the K and V of one (token, KV head) to its slot by 16-byte accesses.
#ifndef KERNELS_CUDA_WRITE_KV_CUH_
#define KERNELS_CUDA_WRITE_KV_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/params.h"

namespace hybridgen::cuda {

constexpr int kWriteKvThreads = 128;

// Warps of the grid stand for (token, KV head) pairs; see WriteKvBlocks.
HG_KERNEL HG_LAUNCH_BOUNDS(kWriteKvThreads) WriteKvKernel(WriteKvParams p) {
  const PageGeometry& g = p.geometry;
  const int64_t pair =
      static_cast<int64_t>(arch::BlockIndex().x) * (kWriteKvThreads / arch::kWarpSize) + arch::WarpIndex();
  const int token = static_cast<int>(pair / g.kv_heads);
  const int head = static_cast<int>(pair % g.kv_heads);
  if (token >= p.num_tokens) return;
  const int64_t slot = p.slots[token];
  if (slot < 0) return;
  const int64_t page = slot / g.page_tokens;
  const int64_t offset = slot % g.page_tokens;
  const int64_t element = sizeof(uint16_t);

  const char* key =
      static_cast<const char*>(p.key.data) + (token * p.key.token_stride + head * p.key.head_stride) * element;
  const char* value =
      static_cast<const char*>(p.value.data) + (token * p.value.token_stride + head * p.value.head_stride) * element;
  char* k = static_cast<char*>(p.k_cache) +
            (page * p.k_page_stride + head * g.k_head_stride + offset * g.k_token_stride) * element;
  char* v = static_cast<char*>(p.v_cache) +
            (page * p.v_page_stride + head * g.v_head_stride + offset * g.v_token_stride) * element;
  // Lanes take K's units, then V's, so that a head of 128 dims is one access of the whole warp.
  const int units = g.head_size * static_cast<int>(element) / static_cast<int>(sizeof(arch::Vec16));
  for (int i = arch::LaneIndex(); i < 2 * units; i += arch::kWarpSize) {
    const int unit = (i < units ? i : i - units) * static_cast<int>(sizeof(arch::Vec16));
    const arch::Vec16 x = arch::LoadOnce16((i < units ? key : value) + unit);
    *reinterpret_cast<arch::Vec16*>((i < units ? k : v) + unit) = x;
  }
}

inline int WriteKvBlocks(const WriteKvParams& p) {
  const int64_t warps = kWriteKvThreads / arch::kWarpSize;
  return static_cast<int>((static_cast<int64_t>(p.num_tokens) * p.geometry.kv_heads + warps - 1) / warps);
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_WRITE_KV_CUH_
