// The AMX instructions. Assembly of our own, because GCC 12 declares 8 of the 64 bytes that _tile_loadconfig reads, so
// that the stores of the rest are dropped at -O2, and gives _tile_loadd no memory operand at all. No compiler flag is
// needed; whoever calls them has asked CpuFeatures. tile_emulated.h has the same functions in C++.
#ifndef KERNELS_CPU_TILE_AMX_H_
#define KERNELS_CPU_TILE_AMX_H_

#include <cstdint>

#include "kernels/cpu/tile_config.h"

#define HG_TILE_INLINE static inline __attribute__((always_inline))

namespace hybridgen {
namespace {

// Configures and zeroes all tiles of this thread.
HG_TILE_INLINE void TileConfigure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }

HG_TILE_INLINE TileConfig TileConfiguration() {
  TileConfig config;
  asm volatile("sttilecfg %0" : "=m"(config));
  return config;
}

// Back to the initial state, in which the kernel has no tiles to save.
HG_TILE_INLINE void TileRelease() { asm volatile("tilerelease"); }

template <int kTile>
HG_TILE_INLINE void TileZero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// Row r of the tile is at p + r * stride; stride in bytes.
template <int kTile>
HG_TILE_INLINE void TileLoad(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
HG_TILE_INLINE void TileStore(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}

// C[m][n] += sum over k of A[m][2 k] * B[k][2 n] + A[m][2 k + 1] * B[k][2 n + 1]; C float32, A and B bfloat16.
template <int kC, int kA, int kB>
HG_TILE_INLINE void TileDot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_TILE_AMX_H_
