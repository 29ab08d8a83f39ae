// Tests of the emulated matrix tiles against the manual: every fault, products by hand, rounding, flushed subnormals.
#include "kernels/cpu/tile_emulated.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/dtype.h"

namespace hybridgen {
namespace {

TileConfig Config(int rows, int row_bytes) {
  TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < kNumTiles; ++i) {
    config.rows[i] = static_cast<uint8_t>(rows);
    config.row_bytes[i] = static_cast<uint16_t>(row_bytes);
  }
  return config;
}

std::vector<uint16_t> Narrow(const std::vector<float>& x) {
  std::vector<uint16_t> bits;
  for (float e : x) bits.push_back(FloatToBFloat16(e));
  return bits;
}

class TileEmulatedTest : public testing::Test {
 protected:
  TileEmulatedTest() { testing::FLAGS_gtest_death_test_style = "threadsafe"; }
  ~TileEmulatedTest() override { TileRelease(); }
};
using TileEmulatedDeathTest = TileEmulatedTest;

TEST_F(TileEmulatedTest, TheConfigurationIsReadBackAndReleased) {
  const TileConfig config = Config(7, 20);
  TileConfigure(config);
  TileConfig read = TileConfiguration();
  EXPECT_EQ(std::memcmp(&read, &config, sizeof(config)), 0);
  TileRelease();
  read = TileConfiguration();
  EXPECT_EQ(read.palette, 0);
  EXPECT_EQ(read.rows[0], 0);
}

TEST_F(TileEmulatedTest, LoadsAndStoresRowsByStrideAndNothingElse) {
  TileConfigure(Config(3, 8));
  std::vector<uint8_t> in(3 * 11), out(3 * 13, 0xee);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint8_t>(i);
  TileLoad<2>(in.data(), 11);
  TileStore<2>(out.data(), 13);
  for (int row = 0; row < 3; ++row) {
    for (int byte = 0; byte < 13; ++byte) EXPECT_EQ(out[row * 13 + byte], byte < 8 ? row * 11 + byte : 0xee);
  }
  TileZero<2>();
  TileStore<2>(out.data(), 13);
  EXPECT_EQ(out[0], 0);
}

// 2 x 2 pairs times 2 pairs x 2 columns.
TEST_F(TileEmulatedTest, MultipliesPairs) {
  TileConfigure(Config(2, 8));
  const std::vector<uint16_t> a = Narrow({1, 2, 3, 4,  //
                                          5, 6, 7, 8});
  // Row k of B: pair (2 k, 2 k + 1) of column 0, then of column 1.
  const std::vector<uint16_t> b = Narrow({1, 10, 2, 20,  //
                                          3, 30, 4, 40});
  std::vector<float> c = {0.5f, 1000, -1, -2};
  TileLoad<0>(c.data(), 8);
  TileLoad<1>(a.data(), 8);
  TileLoad<2>(b.data(), 8);
  TileDot<0, 1, 2>();
  TileStore<0>(c.data(), 8);
  EXPECT_EQ(c[0], 0.5f + 1 * 1 + 2 * 10 + 3 * 3 + 4 * 30);
  EXPECT_EQ(c[1], 1000.f + 1 * 2 + 2 * 20 + 3 * 4 + 4 * 40);
  EXPECT_EQ(c[2], -1.f + 5 * 1 + 6 * 10 + 7 * 3 + 8 * 30);
  EXPECT_EQ(c[3], -2.f + 5 * 2 + 6 * 20 + 7 * 4 + 8 * 40);
}

// One pair of products added to c.
float DotOf(float a0, float b0, float a1, float b1, float c) {
  TileConfigure(Config(1, 4));
  const std::vector<uint16_t> a = Narrow({a0, a1}), b = Narrow({b0, b1});
  TileLoad<5>(&c, 4);
  TileLoad<6>(a.data(), 4);
  TileLoad<7>(b.data(), 4);
  TileDot<5, 6, 7>();
  TileStore<5>(&c, 4);
  return c;
}

TEST_F(TileEmulatedTest, RoundsAndFlushesAsFloat32) {
  EXPECT_EQ(DotOf(1, 0x1p-24f, 0, 0, 1), 1.0f) << "a tie, to even";
  EXPECT_EQ(DotOf(1, 0x1.8p-24f, 0, 0, 1), 1.0f + 0x1p-23f);
  // The two products meet before c: one by one, each would be lost.
  EXPECT_EQ(DotOf(1, 0x1p-24f, 1, 0x1p-24f, 1), 1.0f + 0x1p-23f);
  EXPECT_EQ(DotOf(0x1p-127f, 0x1p127f, 0, 0, 0), 0.0f) << "a subnormal operand";
  EXPECT_EQ(DotOf(0x1p-64f, 0x1p-63f, 0, 0, 0), 0.0f) << "a subnormal product";
  EXPECT_EQ(DotOf(0x1p-63f, 0x1p-63f, 0, 0, 0), 0x1p-126f);
  EXPECT_EQ(DotOf(0, 0, 0, 0, 0x1p-127f), 0.0f) << "a subnormal sum";
  EXPECT_TRUE(std::isinf(DotOf(0x1p127f, 2, 0, 0, 0)));
  EXPECT_TRUE(std::isnan(DotOf(std::numeric_limits<float>::infinity(), 0, 0, 0, 0)));
}

TEST_F(TileEmulatedDeathTest, RefusesWhatTheManualCallsAFault) {
  EXPECT_DEATH(TileZero<0>(), "not configured");
  EXPECT_DEATH(
      {
        TileConfigure(Config(16, 64));
        TileRelease();
        TileZero<0>();
      },
      "not configured");
  const auto configure = [](void (*change)(TileConfig&)) {
    TileConfig config = Config(16, 64);
    change(config);
    TileConfigure(config);
  };
  EXPECT_DEATH(configure([](TileConfig& c) { c.palette = 2; }), "palette");
  EXPECT_DEATH(configure([](TileConfig& c) { c.reserved[13] = 1; }), "reserved");
  EXPECT_DEATH(configure([](TileConfig& c) { c.start_row = 1; }), "start_row");
  EXPECT_DEATH(configure([](TileConfig& c) { c.rows[3] = 17; }), "16 rows");
  EXPECT_DEATH(configure([](TileConfig& c) { c.row_bytes[3] = 65; }), "64 bytes");
  EXPECT_DEATH(configure([](TileConfig& c) { c.rows[3] = 0; }), "bytes without rows");
  EXPECT_DEATH(configure([](TileConfig& c) { c.row_bytes[3] = 0; }), "rows without bytes");
  EXPECT_DEATH(configure([](TileConfig& c) { c.rows[8] = c.row_bytes[8] = 4; }), "8 tiles");

  const auto dot = [&](void (*change)(TileConfig&)) {
    TileConfig config = Config(16, 64);
    change(config);
    TileConfigure(config);
    TileDot<0, 1, 2>();
  };
  dot([](TileConfig& c) { c.rows[0] = c.rows[1] = 3; });
  EXPECT_DEATH(dot([](TileConfig& c) { c.rows[2] = c.row_bytes[2] = 0; }), "this tile is not configured");
  EXPECT_DEATH(dot([](TileConfig& c) { c.rows[1] = 3; }), "C and A");
  EXPECT_DEATH(dot([](TileConfig& c) { c.rows[2] = 8; }), "B has another");
  EXPECT_DEATH(dot([](TileConfig& c) { c.row_bytes[0] = 32; }), "C and B");
  EXPECT_DEATH(dot([](TileConfig& c) { c.row_bytes[1] = 62; }), "whole pairs");
}

}  // namespace
}  // namespace hybridgen
