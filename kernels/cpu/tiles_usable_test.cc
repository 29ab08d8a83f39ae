// Tests of the check that matrix tiles pass before they are used.
#include "kernels/cpu/tiles_usable.h"

#include <cstring>

#include "gtest/gtest.h"
#include "kernels/cpu/tile_amx.h"
#include "kernels/cpu_features.h"

namespace hybridgen {
namespace {

TEST(TilesUsableTest, JudgesTheConfigurationAndEveryNumber) {
  TileConfig config = {};
  config.palette = 1;
  config.rows[0] = 2;
  const float right[2][2] = {{17, 23}, {39, 53}};
  EXPECT_EQ(JudgeTiles(config, config, right), "");
  TileConfig other = config;
  other.rows[0] = 0;  // what GCC 12 makes of _tile_loadconfig
  EXPECT_NE(JudgeTiles(config, other, right), "");
  for (int i = 0; i < 4; ++i) {
    float wrong[2][2];
    std::memcpy(wrong, right, sizeof(wrong));
    wrong[i / 2][i % 2] = 17.5f;
    EXPECT_NE(JudgeTiles(config, config, wrong), "") << i;
  }
}

// On the CPU itself, with every byte of the configuration in use.
TEST(TilesUsableTest, TheCpuReadsTheConfigurationBack) {
  const CpuFeatures features = DetectCpuFeatures();
  if (!Supports(features, Isa::kAmxBf16)) {
    GTEST_SKIP() << "this CPU lacks " << MissingFeatures(features, Isa::kAmxBf16);
  }
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < kNumTiles; ++tile) {
    config.rows[tile] = static_cast<uint8_t>(16 - tile);
    config.row_bytes[tile] = static_cast<uint16_t>(64 - 4 * tile);
  }
  TileConfigure(config);
  const TileConfig read = TileConfiguration();
  TileRelease();
  EXPECT_EQ(std::memcmp(&read, &config, sizeof(config)), 0);
  EXPECT_EQ(TileConfiguration().palette, 0) << "released";
}

}  // namespace
}  // namespace hybridgen
