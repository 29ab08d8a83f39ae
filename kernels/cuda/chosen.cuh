// The joint softmax's other half: logits that the CPU has computed and the V rows that belong to them, folded into a
// partial in the way of decode, from the logits on.
#ifndef KERNELS_CUDA_CHOSEN_CUH_
#define KERNELS_CUDA_CHOSEN_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/decode.cuh"

namespace hybridgen::cuda {

// Starts to copy V rows [16 * chunk, +16) of `count` into a stage by one warp; the rows beyond become zeros.
template <typename Kv, int kHeadSize>
HG_DEVICE void LoadChosen(const char* v, int chunk, int count, arch::Shared<arch::Vec16> stage) {
  constexpr int kUnits = TileRows<Kv, kHeadSize>::kUnits;
  for (int i = arch::LaneIndex(); i < kChunkTokens * kUnits; i += arch::kWarpSize) {
    const int row = i / kUnits, unit = i % kUnits;
    const int from = chunk * kChunkTokens + row;
    const bool read = from < count;
    arch::CpAsync16(stage.At(Stage<Kv, kHeadSize>::kRoleUnits + row * TileRows<Kv, kHeadSize>::kStride + unit),
                    v + (read ? (from * kUnits + unit) * 16 : 0), read ? 16 : 0);
  }
}

// Grid and shared memory are those of DecodeKernel<Tile>.
template <typename Tile>
HG_KERNEL HG_LAUNCH_BOUNDS(DecodeShape<Tile>::kThreads) ChosenKernel(ChosenParams c) {
  using Shape = DecodeShape<Tile>;
  using Kv = typename Tile::Kv;
  constexpr int kHeadSize = Tile::kHeadSize;
  const AttendParams& p = c.attend;
  const arch::Index3 block = arch::BlockIndex();
  const AttendItem item = p.items[block.x];
  const int kv_head = block.y;
  const int first_row = block.z * Tile::kRows;
  const int group = p.query_heads / p.geometry.kv_heads;
  const int rows = item.num_tokens * group;
  if (first_row >= rows) return;

  const int warp = arch::WarpIndex();
  const auto stages = arch::DynamicShared<arch::Vec16>(Shape::kQueryBytes + warp * Shape::kStages * Shape::kStageBytes);
  const auto stage = [&](int i) { return stages.At(i % Shape::kStages * (Shape::kStageBytes / 16)); };
  const int64_t set = static_cast<int64_t>(block.x) * p.geometry.kv_heads + kv_head;
  const int count = c.counts[set];
  const char* const v = static_cast<const char*>(c.v) + set * c.capacity * kHeadSize * static_cast<int>(sizeof(Kv));
  const float* const logits = c.logits + static_cast<int64_t>(block.x) * p.max_item_tokens * p.query_heads * c.capacity;

  // Chunk i of this warp is chunk warp + i * kWarps of the set.
  const int all = (count + kChunkTokens - 1) / kChunkTokens;
  const int chunks = (all - warp + Shape::kWarps - 1) / Shape::kWarps;
  const auto load = [&](int i) {
    if (i < chunks) LoadChosen<Kv, kHeadSize>(v, warp + i * Shape::kWarps, count, stage(i));
    arch::CpAsyncCommit();
  };
  Tile tile;
  tile.Clear();
  load(0);
  for (int i = 0; i < chunks; ++i) {
    load(i + 1);
    const int first_key = (warp + i * Shape::kWarps) * kChunkTokens;
    arch::CpAsyncWait<1>();
    arch::SyncWarp(arch::kFullMask);
    tile.AttendGiven(
        [&](int row, int key) {
          row += first_row;
          if (row >= rows || first_key + key >= count) return kEmptyLse;
          const int64_t head = static_cast<int64_t>(row / group) * p.query_heads + kv_head * group + row % group;
          return logits[head * c.capacity + first_key + key];
        },
        stage(i));
    arch::SyncWarp(arch::kFullMask);
  }
  arch::CpAsyncWait<0>();
  arch::SyncThreads();
  JoinWarps(p, item, kv_head, first_row, tile);
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_CHOSEN_CUH_
