// KV cache write: one warp copies the K and V of one (token, KV head) to its slot by 16-byte accesses, or converts them
// to float8.
#ifndef KERNELS_CUDA_WRITE_KV_CUH_
#define KERNELS_CUDA_WRITE_KV_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/params.h"

namespace hybridgen::cuda {

constexpr int kWriteKvThreads = 128;

// One unit of 16 bytes of the cache, from where its elements begin.
template <typename T, typename Kv>
HG_DEVICE arch::Vec16 LoadNewUnit(const char* from, float scale) {
  arch::Vec16 x = arch::LoadOnce16(from);
  if constexpr (kIsFp8<Kv>) {
    const arch::Vec16 y = arch::LoadOnce16(from + 16);
    const auto narrow = [scale](uint32_t two) {
      return NarrowPair<Kv>(arch::Low<T>(two) / scale, arch::High<T>(two) / scale);
    };
    x = {narrow(x.x[0]) | narrow(x.x[1]) << 16, narrow(x.x[2]) | narrow(x.x[3]) << 16,
         narrow(y.x[0]) | narrow(y.x[1]) << 16, narrow(y.x[2]) | narrow(y.x[3]) << 16};
  }
  return x;
}

// Warps of the grid stand for (token, KV head) pairs; see WriteKvBlocks.
template <typename T, typename Kv>
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
  constexpr int kNewSize = sizeof(T), kSize = sizeof(Kv);

  const char* key =
      static_cast<const char*>(p.key.data) + (token * p.key.token_stride + head * p.key.head_stride) * kNewSize;
  const char* value =
      static_cast<const char*>(p.value.data) + (token * p.value.token_stride + head * p.value.head_stride) * kNewSize;
  char* k = static_cast<char*>(p.k_cache) +
            (page * p.k_page_stride + head * g.k_head_stride + offset * g.k_token_stride) * kSize;
  char* v = static_cast<char*>(p.v_cache) +
            (page * p.v_page_stride + head * g.v_head_stride + offset * g.v_token_stride) * kSize;
  // Lanes take K's units, then V's, so that a head of 128 dims is one access of the whole warp.
  const int units = g.head_size * kSize / 16;
  for (int i = arch::LaneIndex(); i < 2 * units; i += arch::kWarpSize) {
    const bool is_key = i < units;
    const int unit = is_key ? i : i - units;
    const char* const from = (is_key ? key : value) + unit * (16 * kNewSize / kSize);
    const arch::Vec16 x = LoadNewUnit<T, Kv>(from, is_key ? p.k_scale : p.v_scale);
    *reinterpret_cast<arch::Vec16*>((is_key ? k : v) + unit * 16) = x;
  }
}

inline int WriteKvBlocks(const WriteKvParams& p) {
  const int64_t warps = kWriteKvThreads / arch::kWarpSize;
  return static_cast<int>((static_cast<int64_t>(p.num_tokens) * p.geometry.kv_heads + warps - 1) / warps);
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_WRITE_KV_CUH_
