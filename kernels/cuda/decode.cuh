// Split-KV decode attention: a thread block attends the query rows of one (item, KV head), so that K and V are read
// once for the whole group. Each warp walks chunks of its own, with a pipeline of its own; their running states are
// joined at the end.
#ifndef KERNELS_CUDA_DECODE_CUH_
#define KERNELS_CUDA_DECODE_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/attend_tile.cuh"

namespace hybridgen::cuda {

// Shape of a block and its shared memory: [query rows][per warp: stages], the latter used again to join the warps.
template <typename Tile>
struct DecodeShape {
  static constexpr int kHeadSize = Tile::kHeadSize;
  static constexpr int kWarps = kHeadSize <= 128 ? 4 : 2;  // a block's stages then fit the 99 KiB of sm_120
  static constexpr int kThreads = kWarps * arch::kWarpSize;
  static constexpr int kStages = 2;
  static constexpr int kQueryBytes = TileRows<typename Tile::T, kHeadSize>::Bytes(Tile::kRows);
  static constexpr int kStageBytes = Stage<typename Tile::Kv, kHeadSize>::kBytes;
  static constexpr int kSharedBytes = kQueryBytes + kWarps * kStages * kStageBytes;
  // Joining: o [warp][row][kJoinStride], then max and sum [warp][row], float32.
  static constexpr int kJoinStride = kHeadSize + 8;
  static constexpr int kJoinRows = kWarps * Tile::kRows;
  static_assert((kJoinRows * (kJoinStride + 2)) * 4 <= kWarps * kStages * kStageBytes,
                "warps are joined in the stages");
};

// o and lse of the block's rows from the tiles of its warps:
//   m = max(max_w, sink); w = e^(max_w - m); o = v_scale sum w o_w / L; L = sum w sum_w + e^(sink - m); lse = m + ln L.
// No warp may be using its stages any more.
template <typename Tile>
HG_DEVICE void JoinWarps(const AttendParams& p, const AttendItem& item, int kv_head, int first_row, Tile& tile) {
  using Shape = DecodeShape<Tile>;
  const auto o = arch::DynamicShared<float>(Shape::kQueryBytes);
  const auto max = o.At(Shape::kJoinRows * Shape::kJoinStride);
  const auto sum = max.At(Shape::kJoinRows);
  const int mine = arch::WarpIndex() * Tile::kRows;
  tile.ForEachRow(
      [&](int row, float row_max, float row_sum, bool first) {
        if (!first) return;
        max.Store(mine + row, row_max);
        sum.Store(mine + row, row_sum);
      },
      [&](int row, int dim, float low, float high) {
        o.Store((mine + row) * Shape::kJoinStride + dim, low);
        o.Store((mine + row) * Shape::kJoinStride + dim + 1, high);
      });
  arch::SyncThreads();

  constexpr int kPairs = Tile::kHeadSize / 2;
  const int rows = item.num_tokens * (p.query_heads / p.geometry.kv_heads) - first_row;
  for (int i = arch::ThreadIndex(); i < Tile::kRows * kPairs; i += Shape::kThreads) {
    const int row = i / kPairs, dim = i % kPairs * 2;
    if (row >= rows) return;
    const float sink = SinkLogit(p, item, kv_head, first_row + row);
    float m = sink;
    for (int warp = 0; warp < Shape::kWarps; ++warp) {
      const float x = max.Load(warp * Tile::kRows + row);
      m = x > m ? x : m;
    }
    float total = arch::Exp2((sink - Reference(m)) * arch::kLog2E);
    float low = 0.0f, high = 0.0f;
    for (int warp = 0; warp < Shape::kWarps; ++warp) {
      const int at = warp * Tile::kRows + row;
      const float weight = arch::Exp2((max.Load(at) - Reference(m)) * arch::kLog2E);
      total += weight * sum.Load(at);
      low += weight * o.Load(at * Shape::kJoinStride + dim);
      high += weight * o.Load(at * Shape::kJoinStride + dim + 1);
    }
    const float scale = m == kEmptyLse ? 0.0f : p.v_scale / total;
    const RowSink to = SinkOf(p, item, kv_head, first_row + row);
    StorePair<typename Tile::T>(to, dim, low * scale, high * scale);
    if (dim == 0) {
      if (to.lse != nullptr) *to.lse = m == kEmptyLse ? kEmptyLse : m + arch::Log(total);
      if (m == -kEmptyLse) arch::AtomicOr(p.status, kStatusInfiniteLogit);
    }
  }
}

// Grid: (items, KV heads, tiles of rows of the largest item). Items of more rows than a tile read their pages once per
// tile: a plan makes them no larger than it must.
template <typename Tile>
HG_KERNEL HG_LAUNCH_BOUNDS(DecodeShape<Tile>::kThreads) DecodeKernel(AttendParams p) {
  using Shape = DecodeShape<Tile>;
  constexpr int kHeadSize = Tile::kHeadSize;
  const arch::Index3 block = arch::BlockIndex();
  const AttendItem item = p.items[block.x];
  const int kv_head = block.y;
  const int first_row = block.z * Tile::kRows;
  if (first_row >= item.num_tokens * (p.query_heads / p.geometry.kv_heads)) return;

  const int warp = arch::WarpIndex(), lane = arch::LaneIndex();
  const auto q = arch::DynamicShared<arch::Vec16>(0);
  const auto stages = arch::DynamicShared<arch::Vec16>(Shape::kQueryBytes + warp * Shape::kStages * Shape::kStageBytes);
  const auto stage = [&](int i) { return stages.At(i % Shape::kStages * (Shape::kStageBytes / 16)); };

  // Chunk i of this warp is chunk warp + i * kWarps of the item. The page of the chunk after the next is fetched a turn
  // ahead, so that no copy waits for its address.
  const KeyRange seen = SeenByTile(p, item, first_row, Tile::kRows);
  const int page_chunks = p.geometry.page_tokens / kChunkTokens;
  const int chunks = (item.num_pages * page_chunks - warp + Shape::kWarps - 1) / Shape::kWarps;
  const KvPage* const pages = p.pages + item.first_page;
  const auto page_of = [&](int i) {
    return i < chunks ? pages[(warp + i * Shape::kWarps) / page_chunks] : KvPage{0, 0, 0, 0};
  };
  const auto load = [&](int i, const KvPage& page) {
    const int chunk = (warp + i * Shape::kWarps) % page_chunks;
    return LoadChunk<typename Tile::Kv, kHeadSize>(p, page, chunk, kv_head, seen, stage(i), lane, arch::kWarpSize);
  };

  Chunk next;
  if (chunks > 0) next = load(0, page_of(0));
  arch::CpAsyncCommit();
  KvPage page = page_of(1);
  LoadQuery<Tile>(p, item, kv_head, first_row, Tile::kRows, q, arch::ThreadIndex(), Shape::kThreads);
  Tile tile;
  tile.Clear();
  tile.LoadRanges(p, item, kv_head, first_row);
  arch::SyncThreads();

  for (int i = 0; i < chunks; ++i) {
    const Chunk chunk = next;
    if (i + 1 < chunks) next = load(i + 1, page);
    arch::CpAsyncCommit();
    page = page_of(i + 2);
    arch::CpAsyncWait<1>();
    arch::SyncWarp(arch::kFullMask);
    tile.Attend(p, q, stage(i), chunk);
    arch::SyncWarp(arch::kFullMask);
  }
  arch::CpAsyncWait<0>();
  arch::SyncThreads();

  JoinWarps(p, item, kv_head, first_row, tile);
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_DECODE_CUH_
