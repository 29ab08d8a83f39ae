// 16 query rows of one warp against chunks of 16 tokens, on tensor cores: S = Q K^T and O += P V by mma.m16n8k16, the
// softmax between them in the registers where S lies.
#ifndef KERNELS_CUDA_MMA_TILE_CUH_
#define KERNELS_CUDA_MMA_TILE_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/attend_tile.cuh"

namespace hybridgen::cuda {

// P is rounded to T for the second product, as K and V are of T or become so in registers; the denominator sums
// unrounded weights. A NaN in V makes all 16 rows NaN, also those that do not see its token (0 * NaN).
//
// Float8 is read from shared memory by the same instructions, which take two of its elements for one of 16 bits:
//   K   A lane gets dims 4t + {0, 1, 2, 3} of a token where the product wants 2t + {0, 1} and 2t + {8, 9} (t = lane %
//   4).
//       The order of dims in a sum is free: the queries' are permuted to match when they are loaded (LoadQuery).
//   V   Transposed are pairs of dims: a lane gets dims 2g + {0, 1} of tokens 2t + {0, 1} (g = lane / 4). The lower
//       bytes are the operand for the even dims of 16, the upper for the odd.
template <typename Element, typename KvElement, int kDims>
class MmaTile {
 public:
  using T = Element;
  using Kv = KvElement;
  static constexpr int kHeadSize = kDims;
  static constexpr int kRows = 16;

  HG_DEVICE void Clear() {
    HG_UNROLL
    for (int h = 0; h < 2; ++h) {
      max_[h] = kEmptyLse;
      sum_[h] = 0.0f;
    }
    HG_UNROLL
    for (int i = 0; i < kDims / 8; ++i) {
      HG_UNROLL
      for (int j = 0; j < 4; ++j) acc_[i][j] = 0.0f;
    }
  }

  // The tile is rows first_row + [0, kRows) of the item. Wanted by Attend.
  HG_DEVICE void LoadRanges(const AttendParams& p, const AttendItem& item, int kv_head, int first_row) {
    HG_UNROLL
    for (int h = 0; h < 2; ++h) range_[h] = LoadRow(p, item, kv_head, first_row + arch::LaneIndex() / 4 + 8 * h);
  }

  HG_DEVICE void Attend(const AttendParams& p, arch::Shared<arch::Vec16> q, arch::Shared<arch::Vec16> stage,
                        const Chunk& chunk) {
    constexpr int kQueryStride = TileRows<T, kDims>::kStride, kStride = TileRows<Kv, kDims>::kStride;
    constexpr int kSteps = sizeof(T) / sizeof(Kv);  // of 16 dims, in two units of K
    const int lane = arch::LaneIndex();

    // s[n]: the lane's 2 x 2 products with tokens 8n + [0, 8).
    float s[2][4] = {};
    HG_UNROLL
    for (int unit = 0; unit < TileRows<Kv, kDims>::kUnits; unit += 2) {
      uint32_t k[4];
      arch::LdMatrixX4(k, stage.At((lane / 16 * 8 + lane % 8) * kStride + unit + lane / 8 % 2));
      HG_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        uint32_t a[4];
        arch::LdMatrixX4(a, q.At(lane % 16 * kQueryStride + kSteps * unit + 2 * step + lane / 16));
        HG_UNROLL
        for (int n = 0; n < 2; ++n) {
          if constexpr (kIsFp8<Kv>) {
            const uint32_t x = k[2 * n + step];
            const uint32_t b[2] = {WidenPair<T, Kv>(x), WidenPair<T, Kv>(x >> 16)};
            arch::Mma<T>(s[n], a, b);
          } else {
            const uint32_t b[2] = {k[2 * n], k[2 * n + 1]};
            arch::Mma<T>(s[n], a, b);
          }
        }
      }
    }

    const int position = chunk.position + lane % 4 * 2;
    HG_UNROLL
    for (int i = 0; i < 8; ++i) {
      float& x = s[i / 4][i % 4];
      const int key = position + i / 4 * 8 + i % 2;
      x = key < chunk.end ? Logit(p, range_[i / 2 % 2], key, x) : kEmptyLse;
    }
    Fold(s, stage);
  }

  // The same with logits that are there already: given(row of the tile, token of the chunk).
  template <typename Given>
  HG_DEVICE void AttendGiven(Given given, arch::Shared<arch::Vec16> stage) {
    const int lane = arch::LaneIndex();
    float s[2][4];
    HG_UNROLL
    for (int i = 0; i < 8; ++i) {
      s[i / 4][i % 4] = given(lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i / 4 * 8 + i % 2);
    }
    Fold(s, stage);
  }

  // Calls f(row, max, sum, first) on all lanes of a row, `first` on one of them, then g(row, dim, low, high) for the
  // lane's pairs of un-normalised dims of that row; row after row.
  template <typename F, typename G>
  HG_DEVICE void ForEachRow(F f, G g) {
    const int lane = arch::LaneIndex();
    HG_UNROLL
    for (int h = 0; h < 2; ++h) {
      float sum = sum_[h];
      for (int lanes = 1; lanes < 4; lanes *= 2) sum += arch::ShflXor(arch::kFullMask, sum, lanes);
      f(lane / 4 + 8 * h, max_[h], sum, lane % 4 == 0);
      HG_UNROLL
      for (int i = 0; i < kDims / 8; ++i) {
        if constexpr (kIsFp8<Kv>) {
          const int dim = i / 2 * 16 + lane % 4 * 4 + i % 2 * 2, j = 2 * h + i % 2;
          g(lane / 4 + 8 * h, dim, acc_[i / 2 * 2][j], acc_[i / 2 * 2 + 1][j]);
        } else {
          g(lane / 4 + 8 * h, i * 8 + lane % 4 * 2, acc_[i][2 * h], acc_[i][2 * h + 1]);
        }
      }
    }
  }

 private:
  // Logits of one chunk, and its V in the stage, into the running state.
  HG_DEVICE void Fold(float (&s)[2][4], arch::Shared<arch::Vec16> stage) {
    constexpr int kStride = TileRows<Kv, kDims>::kStride;
    const int lane = arch::LaneIndex();
    float decay[2];
    HG_UNROLL
    for (int h = 0; h < 2; ++h) {
      float max = max_[h];
      HG_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float x = s[i / 2][2 * h + i % 2];
        max = x > max ? x : max;
      }
      // The four lanes that share the row.
      for (int lanes = 1; lanes < 4; lanes *= 2) {
        const float other = arch::ShflXor(arch::kFullMask, max, lanes);
        max = other > max ? other : max;
      }
      decay[h] = arch::Exp2((max_[h] - Reference(max)) * arch::kLog2E);
      max_[h] = max;
      sum_[h] *= decay[h];
      HG_UNROLL
      for (int i = 0; i < 4; ++i) {
        float& x = s[i / 2][2 * h + i % 2];
        x = arch::Exp2((x - Reference(max)) * arch::kLog2E);
        sum_[h] += x;  // of this lane's tokens; the row's other lanes join at the end
      }
    }

    // S's registers are where the first operand of the next product wants them.
    const uint32_t weights[4] = {arch::Pack2<T>(s[0][0], s[0][1]), arch::Pack2<T>(s[0][2], s[0][3]),
                                 arch::Pack2<T>(s[1][0], s[1][1]), arch::Pack2<T>(s[1][2], s[1][3])};
    const auto add = [&](float(&acc)[4], uint32_t low, uint32_t high) {
      HG_UNROLL
      for (int i = 0; i < 4; ++i) acc[i] *= decay[i / 2];
      const uint32_t b[2] = {low, high};
      arch::Mma<T>(acc, weights, b);
    };
    const auto stage_v = stage.At(Stage<Kv, kDims>::kRoleUnits);
    HG_UNROLL
    for (int unit = 0; unit < TileRows<Kv, kDims>::kUnits; unit += 2) {
      uint32_t v[4];
      arch::LdMatrixX4Trans(v, stage_v.At(lane % 16 * kStride + unit + lane / 16));
      HG_UNROLL
      for (int u = 0; u < 2; ++u) {
        if constexpr (kIsFp8<Kv>) {
          // Lower bytes to the lower half, upper to the upper.
          const uint32_t first = arch::BytePermute(v[2 * u], 0, 0x3120);
          const uint32_t second = arch::BytePermute(v[2 * u + 1], 0, 0x3120);
          add(acc_[2 * (unit + u)], WidenPair<T, Kv>(first), WidenPair<T, Kv>(second));
          add(acc_[2 * (unit + u) + 1], WidenPair<T, Kv>(first >> 16), WidenPair<T, Kv>(second >> 16));
        } else {
          add(acc_[unit + u], v[2 * u], v[2 * u + 1]);
        }
      }
    }
  }

  // Rows lane / 4 and lane / 4 + 8.
  RowRange range_[2];
  float max_[2];
  float sum_[2];
  // Dims 8i + 2 * (lane % 4) + {0, 1} of both rows; float8: 16 * (i / 2) + 4 * (lane % 4) + {0, 2} + i % 2.
  float acc_[kDims / 8][4];
};

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_MMA_TILE_CUH_
