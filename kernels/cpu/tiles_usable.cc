// Permission for matrix tiles, and a check of their arithmetic before a kernel relies on it.
#include "kernels/cpu/tiles_usable.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/cpu/tile_amx.h"

namespace hybridgen {
namespace {

// Of Linux's arch_prctl; the headers of older distributions lack them.
constexpr int kRequestStatePermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
constexpr int kTileData = 18;                    // XFEATURE_XTILE_DATA

constexpr uint16_t kBF16Small[] = {0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100};  // 0 to 8

}  // namespace

std::string JudgeTiles(const TileConfig& written, const TileConfig& read, const float (&product)[2][2]) {
  if (std::memcmp(&written, &read, sizeof(written)) != 0) return "the tile configuration reads back changed";
  const float expected[2][2] = {{1 * 5 + 2 * 6, 1 * 7 + 2 * 8}, {3 * 5 + 4 * 6, 3 * 7 + 4 * 8}};
  for (int row = 0; row < 2; ++row) {
    for (int column = 0; column < 2; ++column) {
      if (product[row][column] != expected[row][column]) return "a product of tiles that is known comes out wrong";
    }
  }
  return "";
}

std::string WhyTilesAreUnusable() {
  if (syscall(SYS_arch_prctl, kRequestStatePermission, kTileData) != 0) {
    const int error = errno;
    std::string reason = std::string("arch_prctl(ARCH_REQ_XCOMP_PERM, 18) failed: ") + std::strerror(error);
    if (error == ENOSPC) reason += "; a thread has an alternate signal stack that is too small for tile registers";
    if (error == EINVAL) reason += "; Linux before 5.16 lacks it";
    return reason;
  }
  TileConfig config = {};
  config.palette = 1;
  config.rows[0] = config.rows[1] = 2;  // C and A: 2 rows of 2 columns, or of one pair
  config.rows[2] = 1;                   // B: one pair of rows
  config.row_bytes[0] = config.row_bytes[2] = 8;
  config.row_bytes[1] = 4;
  const uint16_t a[2][2] = {{kBF16Small[1], kBF16Small[2]}, {kBF16Small[3], kBF16Small[4]}};
  const uint16_t b[2][2] = {{kBF16Small[5], kBF16Small[6]}, {kBF16Small[7], kBF16Small[8]}};  // by column
  float product[2][2] = {};
  TileConfigure(config);
  const TileConfig read = TileConfiguration();
  TileZero<0>();
  TileLoad<1>(a, sizeof(a[0]));
  TileLoad<2>(b, sizeof(b));
  TileDot<0, 1, 2>();
  TileStore<0>(product, sizeof(product[0]));
  TileRelease();
  return JudgeTiles(config, read, product);
}

}  // namespace hybridgen
