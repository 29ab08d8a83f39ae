// The configuration of the matrix tiles (AMX, palette 1), as the instructions read and write it.
#ifndef KERNELS_CPU_TILE_CONFIG_H_
#define KERNELS_CPU_TILE_CONFIG_H_

#include <cstdint>

namespace hybridgen {

// A tile has up to 16 rows of up to 64 bytes.
constexpr int kTileRows = 16;
constexpr int kTileRowBytes = 64;
constexpr int kTileBytes = kTileRows * kTileRowBytes;
constexpr int kNumTiles = 8;

// Operand of LDTILECFG and STTILECFG (Intel SDM, volume 1, chapter "Programming with Intel AMX").
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;  // where an interrupted load goes on; 0 otherwise
  uint8_t reserved[14];
  uint16_t row_bytes[16];  // per tile; "colsb" in the manual. Of palette 1 the first kNumTiles are used
  uint8_t rows[16];        // per tile
};
static_assert(sizeof(TileConfig) == 64, "as the manual has it");

}  // namespace hybridgen

#endif  // KERNELS_CPU_TILE_CONFIG_H_
