// The executor's matrix instructions against descriptions of them that share nothing with it: the thread-value layouts
// of CUTLASS (CuTe's MMA_Traits of SM80_16x8x16_F32F16F16F32_TN and its bfloat16 sibling), and the inverse maps,
// element to lane, of tinygrad's emulator of the instruction. An author who had the layout wrong would have to have it
// wrong in three notations.
#include "tests/simt/fragments.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/arch.h"

namespace hybridgen::simt {
namespace {

// A mode list of a CuTe layout. An index is split into coordinates, the first mode running fastest, and each coordinate
// is multiplied by its stride.
struct Mode {
  int size;
  int stride;
};
int Apply(const std::vector<Mode>& modes, int index) {
  int offset = 0;
  for (const Mode& mode : modes) {
    offset += index % mode.size * mode.stride;
    index /= mode.size;
  }
  return offset;
}

// Thread modes and value modes, onto the column-major index of an M x K, N x K or M x N tile.
struct ThreadValueLayout {
  std::vector<Mode> thread;
  std::vector<Mode> value;
  int leading;  // rows of the tile
  Element At(int lane, int i) const {
    const int index = Apply(thread, lane) + Apply(value, i);
    return {index % leading, index / leading};
  }
};

const ThreadValueLayout kCuteA = {{{4, 32}, {8, 1}}, {{2, 16}, {2, 8}, {2, 128}}, 16};  // (m, k)
const ThreadValueLayout kCuteB = {{{4, 16}, {8, 1}}, {{2, 8}, {2, 64}}, 8};             // (n, k)
const ThreadValueLayout kCuteC = {{{4, 32}, {8, 1}}, {{2, 16}, {2, 8}}, 16};            // (m, n)

TEST(FragmentsTest, AgreeWithCutlass) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) {
      EXPECT_EQ(MmaA(lane, i).row, kCuteA.At(lane, i).row) << lane << " " << i;
      EXPECT_EQ(MmaA(lane, i).column, kCuteA.At(lane, i).column) << lane << " " << i;
    }
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(MmaB(lane, i).column, kCuteB.At(lane, i).row) << lane << " " << i;  // CuTe's B is N x K
      EXPECT_EQ(MmaB(lane, i).row, kCuteB.At(lane, i).column) << lane << " " << i;
      EXPECT_EQ(MmaD(lane, i).row, kCuteC.At(lane, i).row) << lane << " " << i;
      EXPECT_EQ(MmaD(lane, i).column, kCuteC.At(lane, i).column) << lane << " " << i;
    }
  }
}

TEST(FragmentsTest, AgreeWithTheInverseMaps) {
  for (int k = 0; k < 16; ++k) {
    for (int row = 0; row < 16; ++row) {
      const Element e = MmaA(k / 2 % 4 + row % 8 * 4, k % 2 + row / 8 * 2 + k / 8 * 4);
      EXPECT_EQ(e.row, row);
      EXPECT_EQ(e.column, k);
    }
    for (int column = 0; column < 8; ++column) {
      const Element e = MmaB(k / 2 % 4 + column * 4, k % 2 + k / 8 * 2);
      EXPECT_EQ(e.row, k);
      EXPECT_EQ(e.column, column);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(MmaD(lane, i).column, i % 2 + lane % 4 * 2);
      EXPECT_EQ(MmaD(lane, i).row, lane / 4 + i / 2 * 8);
    }
  }
}

// One tile product by the way that kernels take: A and a transposed B by ldmatrix, B of rows by ldmatrix.trans. Kernels
// rely on ldmatrix's maps being those of the operands; only the known product can come out if all of them fit.
template <typename T>
void CheckTileProduct(bool transposed) {
  std::mt19937 random(7);
  std::uniform_int_distribution<int> digit(-8, 8);
  float a[16][16], b[16][8];
  for (auto& row : a) {
    for (float& x : row) x = digit(random);
  }
  for (auto& row : b) {
    for (float& x : row) x = digit(random);
  }
  float out[16][8] = {};
  const auto kernel = [&] {
    const int lane = arch::LaneIndex();
    const auto tile_a = arch::DynamicShared<uint16_t>(0), tile_b = arch::DynamicShared<uint16_t>(512);
    for (int i = lane; i < 256; i += 32) tile_a.Store(i, arch::Pack2<T>(a[i / 16][i % 16], 0));
    for (int i = lane; i < 128; i += 32) {
      // [n][k] for the plain load; [k][n], with rows of 8, for the transposing one.
      tile_b.Store(i, arch::Pack2<T>(transposed ? b[i / 8][i % 8] : b[i % 16][i / 16], 0));
    }
    arch::SyncWarp(arch::kFullMask);
    uint32_t fa[4], fb[4];
    arch::LdMatrixX4(fa, tile_a.At((lane % 16) * 16 + lane / 16 * 8).template As<arch::Vec16>());
    if (transposed) {
      arch::LdMatrixX4Trans(fb, tile_b.At(lane % 16 * 8).template As<arch::Vec16>());
    } else {
      arch::LdMatrixX4(fb, tile_b.At(lane % 8 * 16 + lane / 8 % 2 * 8).template As<arch::Vec16>());
    }
    const uint32_t two[2] = {fb[0], fb[1]};
    float d[4] = {};
    arch::Mma<T>(d, fa, two);
    for (int i = 0; i < 4; ++i) out[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = d[i];
  };
  LaunchConfig config;
  config.shared_bytes = 1024;
  ASSERT_EQ(Launch(config, kernel), absl::OkStatus());
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      EXPECT_EQ(out[row][column], sum) << row << " " << column;
    }
  }
}

TEST(FragmentsTest, TileProductThroughLdMatrix) {
  CheckTileProduct<arch::Float16>(false);
  CheckTileProduct<arch::Float16>(true);
  CheckTileProduct<arch::BFloat16>(false);
  CheckTileProduct<arch::BFloat16>(true);
}

TEST(FragmentsTest, SumsAreCutOffNotRounded) {
  float d[4] = {};
  const auto kernel = [&] {
    // Row 0 of A: 1, then 15 times 2^-12; B: ones and 2^-12: 1 + 15 * 2^-24 lies above 1 by less than float32's step.
    const int lane = arch::LaneIndex();
    uint32_t a[4] = {}, b[2] = {};
    for (int i = 0; i < 8; ++i) {
      const Element e = MmaA(lane, i);
      const uint16_t bits = FloatToFloat16(e.row != 0 ? 0.0f : e.column == 0 ? 1.0f : 0x1p-12f);
      a[i / 2] |= static_cast<uint32_t>(bits) << (16 * (i % 2));
    }
    for (int i = 0; i < 4; ++i) {
      const uint16_t bits = FloatToFloat16(MmaB(lane, i).row == 0 ? 1.0f : 0x1p-12f);
      b[i / 2] |= static_cast<uint32_t>(bits) << (16 * (i % 2));
    }
    float mine[4] = {};
    arch::Mma<arch::Float16>(mine, a, b);
    if (lane == 0) d[0] = mine[0];
  };
  ASSERT_EQ(Launch(LaunchConfig(), kernel), absl::OkStatus());
  EXPECT_EQ(d[0], 1.0f);
}

TEST(ArchHostTest, ConversionsRoundAndKeepTheirHalves) {
  EXPECT_EQ(arch::Low<arch::Float16>(arch::Pack2<arch::Float16>(1.5f, -2.0f)), 1.5f);
  EXPECT_EQ(arch::High<arch::Float16>(arch::Pack2<arch::Float16>(1.5f, -2.0f)), -2.0f);
  EXPECT_EQ(arch::Low<arch::BFloat16>(arch::Pack2<arch::BFloat16>(1.00390625f, 3.0f)), 1.0f);  // a tie, to even
  EXPECT_EQ(arch::High<arch::BFloat16>(arch::Pack2<arch::BFloat16>(1.0f, 3.0f)), 3.0f);
  EXPECT_EQ(arch::Exp2(-INFINITY), 0.0f);
  EXPECT_EQ(arch::Exp2(-127.0f), 0.0f);
}

}  // namespace
}  // namespace hybridgen::simt
