// The functions of tile_amx.h in plain C++, for tests on CPUs without AMX: rounding, order of the sums and faults as
// the manual defines them (Intel SDM, volume 2: LDTILECFG, TILELOADD, TILESTORED, TDPBF16PS). What would be an
// exception on the CPU ends the process with the reason.
#ifndef KERNELS_CPU_TILE_EMULATED_H_
#define KERNELS_CPU_TILE_EMULATED_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/cpu/tile_config.h"

namespace hybridgen {
namespace {

struct TileMachine {
  bool configured;  // TILES_CONFIGURED
  TileConfig config;
  uint8_t data[kNumTiles][kTileRows][kTileRowBytes];
  int64_t dots;  // TileDot since the thread began
};
thread_local TileMachine tile_machine = {};

[[noreturn]] inline void TileFault(const char* reason) {
  std::fprintf(stderr, "emulated tiles: %s\n", reason);
  std::abort();
}

inline void TileRequire(bool condition, const char* reason) {
  if (!condition) TileFault(reason);
}

inline void TileRelease() {
  const int64_t dots = tile_machine.dots;
  tile_machine = {};
  tile_machine.dots = dots;
}

inline void TileConfigure(const TileConfig& config) {
  TileRelease();
  if (config.palette == 0) return;
  TileRequire(config.palette == 1, "#GP: no such palette");
  for (uint8_t byte : config.reserved) TileRequire(byte == 0, "#GP: a reserved byte of the configuration is set");
  TileRequire(config.start_row == 0, "start_row, which only an interrupted load leaves behind");
  for (int i = 0; i < 16; ++i) {
    const bool used = config.row_bytes[i] != 0 || config.rows[i] != 0;
    TileRequire(!used || i < kNumTiles, "#GP: the palette has 8 tiles");
    TileRequire(config.row_bytes[i] <= kTileRowBytes, "#GP: more than 64 bytes in a row");
    TileRequire(config.rows[i] <= kTileRows, "#GP: more than 16 rows");
    TileRequire((config.row_bytes[i] == 0) == (config.rows[i] == 0), "#GP: rows without bytes or bytes without rows");
  }
  tile_machine.configured = true;
  tile_machine.config = config;
}

inline TileConfig TileConfiguration() { return tile_machine.configured ? tile_machine.config : TileConfig{}; }

inline void TileRequireConfigured(int tile) {
  TileRequire(tile_machine.configured, "#UD: tiles are not configured");
  TileRequire(tile_machine.config.rows[tile] != 0, "#UD: this tile is not configured");
}

template <int kTile>
inline void TileZero() {
  static_assert(kTile >= 0 && kTile < kNumTiles);
  TileRequireConfigured(kTile);
  std::memset(tile_machine.data[kTile], 0, kTileBytes);
}

// Rows and bytes behind the configured ones become zero.
template <int kTile>
inline void TileLoad(const void* p, int64_t stride) {
  TileZero<kTile>();
  for (int row = 0; row < tile_machine.config.rows[kTile]; ++row) {
    std::memcpy(tile_machine.data[kTile][row], static_cast<const char*>(p) + row * stride,
                tile_machine.config.row_bytes[kTile]);
  }
}

template <int kTile>
inline void TileStore(void* p, int64_t stride) {
  static_assert(kTile >= 0 && kTile < kNumTiles);
  TileRequireConfigured(kTile);
  for (int row = 0; row < tile_machine.config.rows[kTile]; ++row) {
    std::memcpy(static_cast<char*>(p) + row * stride, tile_machine.data[kTile][row],
                tile_machine.config.row_bytes[kTile]);
  }
}

// Subnormal numbers are zeros of their sign, as operands and as results (DAZ = FTZ = 1, whatever MXCSR says).
inline float TileFlush(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }

inline float TileFromBF16(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, sizeof(half));
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return TileFlush(x);
}

template <int kC, int kA, int kB>
inline void TileDot() {
  static_assert(kC != kA && kC != kB && kA != kB, "#UD: three different tiles");
  TileRequireConfigured(kC);
  TileRequireConfigured(kA);
  TileRequireConfigured(kB);
  TileMachine& m = tile_machine;
  const TileConfig& config = m.config;
  TileRequire(config.row_bytes[kC] % 4 == 0 && config.row_bytes[kA] % 4 == 0 && config.row_bytes[kB] % 4 == 0,
              "#UD: rows are not whole pairs");
  TileRequire(config.rows[kC] == config.rows[kA], "#UD: C and A differ in their rows");
  TileRequire(config.row_bytes[kA] / 4 == config.rows[kB], "#UD: B has another number of rows than A has pairs");
  TileRequire(config.row_bytes[kC] == config.row_bytes[kB], "#UD: C and B differ in their columns");
  ++m.dots;
  const int columns = config.row_bytes[kC] / 4;
  for (int row = 0; row < config.rows[kA]; ++row) {
    // Even and odd members of the pairs are summed apart, by fused multiply-adds, and joined at the end.
    float even[kTileRowBytes / 4] = {};
    float odd[kTileRowBytes / 4] = {};
    for (int k = 0; k < config.rows[kB]; ++k) {
      const float a_even = TileFromBF16(&m.data[kA][row][4 * k]);
      const float a_odd = TileFromBF16(&m.data[kA][row][4 * k + 2]);
      for (int column = 0; column < columns; ++column) {
        even[column] = TileFlush(__builtin_fmaf(a_even, TileFromBF16(&m.data[kB][k][4 * column]), even[column]));
        odd[column] = TileFlush(__builtin_fmaf(a_odd, TileFromBF16(&m.data[kB][k][4 * column + 2]), odd[column]));
      }
    }
    for (int column = 0; column < columns; ++column) {
      float c;
      std::memcpy(&c, &m.data[kC][row][4 * column], sizeof(c));
      c = TileFlush(TileFlush(c) + TileFlush(even[column] + odd[column]));
      std::memcpy(&m.data[kC][row][4 * column], &c, sizeof(c));
    }
  }
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_TILE_EMULATED_H_
