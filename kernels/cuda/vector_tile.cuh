// A few query rows of one warp against chunks of 16 tokens, without tensor cores: lanes are tokens for the products
// with K (two lanes a token), dims for the sum of V. All arithmetic is float32, the weights included. K and V are of
// the queries' type: with float8 MmaTile has less or little more to do even for one row (docs/cuda_kernels.md).
#ifndef KERNELS_CUDA_VECTOR_TILE_CUH_
#define KERNELS_CUDA_VECTOR_TILE_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/attend_tile.cuh"

namespace hybridgen::cuda {

template <typename Element, int kDims, int kTileRows>
class VectorTile {
 public:
  using T = Element;
  using Kv = Element;
  static constexpr int kHeadSize = kDims;
  static constexpr int kRows = kTileRows;

  HG_DEVICE void Clear() {
    HG_UNROLL
    for (int r = 0; r < kRows; ++r) {
      max_[r] = kEmptyLse;
      sum_[r] = 0.0f;
      HG_UNROLL
      for (int j = 0; j < kPairs; ++j) acc_[r][j][0] = acc_[r][j][1] = 0.0f;
    }
  }

  // The tile is rows first_row + [0, kRows) of the item. Wanted by Attend.
  HG_DEVICE void LoadRanges(const AttendParams& p, const AttendItem& item, int kv_head, int first_row) {
    HG_UNROLL
    for (int r = 0; r < kRows; ++r) range_[r] = LoadRow(p, item, kv_head, first_row + r);
  }

  HG_DEVICE void Attend(const AttendParams& p, arch::Shared<arch::Vec16> q, arch::Shared<arch::Vec16> stage,
                        const Chunk& chunk) {
    constexpr int kStride = TileRows<T, kDims>::kStride;
    const int lane = arch::LaneIndex();
    const int token = lane % kChunkTokens;

    float s[kRows] = {};
    HG_UNROLL_BY(2)
    for (int unit = lane / kChunkTokens; unit < TileRows<T, kDims>::kUnits; unit += 2) {
      const arch::Vec16 k = stage.Load(token * kStride + unit);
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const arch::Vec16 x = q.Load(r * kStride + unit);
        HG_UNROLL
        for (int i = 0; i < 4; ++i) {
          s[r] += arch::Low<T>(x.x[i]) * arch::Low<T>(k.x[i]);
          s[r] += arch::High<T>(x.x[i]) * arch::High<T>(k.x[i]);
        }
      }
    }

    const int key = chunk.position + token;
    HG_UNROLL
    for (int r = 0; r < kRows; ++r) {
      s[r] += arch::ShflXor(arch::kFullMask, s[r], kChunkTokens);
      s[r] = key < chunk.end ? Logit(p, range_[r], key, s[r]) : kEmptyLse;
    }
    Fold(s, stage);
  }

  // The same with logits that are there already: given(row of the tile, token of the chunk).
  template <typename Given>
  HG_DEVICE void AttendGiven(Given given, arch::Shared<arch::Vec16> stage) {
    float s[kRows];
    HG_UNROLL
    for (int r = 0; r < kRows; ++r) s[r] = given(r, arch::LaneIndex() % kChunkTokens);
    Fold(s, stage);
  }

  // Calls f(row, max, sum, first) on all lanes of a row, `first` on one of them, then g(row, dim, low, high) for the
  // lane's pairs of un-normalised dims of that row; row after row.
  template <typename F, typename G>
  HG_DEVICE void ForEachRow(F f, G g) {
    const int lane = arch::LaneIndex();
    HG_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float sum = sum_[r];
      for (int lanes = 1; lanes < kChunkTokens; lanes *= 2) sum += arch::ShflXor(arch::kFullMask, sum, lanes);
      f(r, max_[r], sum, lane == 0);
      HG_UNROLL
      for (int j = 0; j < kPairs; ++j) {
        const int pair = lane + j * arch::kWarpSize;
        if (pair < kDims / 2) g(r, 2 * pair, acc_[r][j][0], acc_[r][j][1]);
      }
    }
  }

 private:
  // Logits of one chunk, of token lane % 16, and its V in the stage, into the running state.
  HG_DEVICE void Fold(float (&s)[kRows], arch::Shared<arch::Vec16> stage) {
    constexpr int kStride = TileRows<T, kDims>::kStride;
    const int lane = arch::LaneIndex();
    HG_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float max = s[r] > max_[r] ? s[r] : max_[r];
      for (int lanes = 1; lanes < kChunkTokens; lanes *= 2) {
        const float other = arch::ShflXor(arch::kFullMask, max, lanes);
        max = other > max ? other : max;
      }
      const float decay = arch::Exp2((max_[r] - Reference(max)) * arch::kLog2E);
      max_[r] = max;
      s[r] = arch::Exp2((s[r] - Reference(max)) * arch::kLog2E);
      sum_[r] = sum_[r] * decay + s[r];  // both lanes of a token hold it; the halves are summed apart at the end
      HG_UNROLL
      for (int j = 0; j < kPairs; ++j) {
        acc_[r][j][0] *= decay;
        acc_[r][j][1] *= decay;
      }
    }

    const auto v = stage.At(Stage<T, kDims>::kRoleUnits).template As<uint32_t>();
    HG_UNROLL_BY(4)
    for (int t = 0; t < kChunkTokens; ++t) {
      float weight[kRows];
      HG_UNROLL
      for (int r = 0; r < kRows; ++r) weight[r] = arch::Shfl(arch::kFullMask, s[r], t);
      HG_UNROLL
      for (int j = 0; j < kPairs; ++j) {
        const int pair = lane + j * arch::kWarpSize;
        if (pair >= kDims / 2) continue;
        const uint32_t x = v.Load(t * kStride * 4 + pair);
        HG_UNROLL
        for (int r = 0; r < kRows; ++r) {
          acc_[r][j][0] += weight[r] * arch::Low<T>(x);
          acc_[r][j][1] += weight[r] * arch::High<T>(x);
        }
      }
    }
  }

  static constexpr int kPairs = (kDims / 2 + arch::kWarpSize - 1) / arch::kWarpSize;  // of dims, of a lane

  RowRange range_[kRows];
  float max_[kRows];
  float sum_[kRows];
  float acc_[kRows][kPairs][2];
};

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_VECTOR_TILE_CUH_
