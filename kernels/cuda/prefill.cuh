// Prefill attention: a thread block attends 64 query rows of one (item, KV head), 16 to a warp; the warps share tiles
// of K and V, so that each byte of them is read once for 64 rows. Long prompts are compute-bound, tensor cores
// throughout.
#ifndef KERNELS_CUDA_PREFILL_CUH_
#define KERNELS_CUDA_PREFILL_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/attend_tile.cuh"
#include "kernels/cuda/mma_tile.cuh"

namespace hybridgen::cuda {

template <typename Tile>
struct PrefillShape {
  static constexpr int kHeadSize = Tile::kHeadSize;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * arch::kWarpSize;
  static constexpr int kRows = kWarps * Tile::kRows;
  static constexpr int kChunks = kHeadSize <= 128 ? 4 : 2;  // of 16 tokens, loaded at a time
  static constexpr int kStages = 2;
  static constexpr int kQueryBytes = TileRows<typename Tile::T, kHeadSize>::Bytes(kRows);
  static constexpr int kChunkBytes = Stage<typename Tile::Kv, kHeadSize>::kBytes;
  static constexpr int kSharedBytes = kQueryBytes + kStages * kChunks * kChunkBytes;
  static_assert(kSharedBytes <= 99 * 1024, "what a block of sm_120 has");
};

// The first of the pages, which are in the order of their positions, that begins at `position` or later.
HG_DEVICE int FirstPageFrom(const KvPage* pages, int num_pages, int position) {
  int begin = 0, end = num_pages;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (pages[middle].first_position < position) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// Grid: (items, KV heads, tiles of 64 rows of the largest item). Pages of an item are in the order of their positions;
// those that none of a block's rows sees are passed over.
template <typename Tile>
HG_KERNEL HG_LAUNCH_BOUNDS(PrefillShape<Tile>::kThreads) PrefillKernel(AttendParams p) {
  using Shape = PrefillShape<Tile>;
  constexpr int kHeadSize = Tile::kHeadSize;
  const arch::Index3 block = arch::BlockIndex();
  const AttendItem item = p.items[block.x];
  const int kv_head = block.y;
  const int first_row = block.z * Shape::kRows;
  const int rows = item.num_tokens * (p.query_heads / p.geometry.kv_heads);
  if (first_row >= rows) return;

  const int warp_row = first_row + arch::WarpIndex() * Tile::kRows;
  const auto q = arch::DynamicShared<arch::Vec16>(0);
  const auto chunk_at = [&](int i) {
    return arch::DynamicShared<arch::Vec16>(Shape::kQueryBytes +
                                            i % (Shape::kStages * Shape::kChunks) * Shape::kChunkBytes);
  };

  const KeyRange seen = SeenByTile(p, item, first_row, Shape::kRows);
  const KeyRange mine = SeenByTile(p, item, warp_row, Tile::kRows);
  const KvPage* const pages = p.pages + item.first_page;
  const int page_tokens = p.geometry.page_tokens;
  const int page_chunks = page_tokens / kChunkTokens;
  const int first_page = FirstPageFrom(pages, item.num_pages, seen.begin - page_tokens + 1);
  const int end_page = seen.begin < seen.end ? FirstPageFrom(pages, item.num_pages, seen.end) : first_page;
  const int chunks = (end_page - first_page) * page_chunks;
  const int turns = chunks > 0 ? (chunks + Shape::kChunks - 1) / Shape::kChunks : 0;
  const auto load = [&](int turn) {
    for (int i = turn * Shape::kChunks; i < (turn + 1) * Shape::kChunks && i < chunks; ++i) {
      LoadChunk<typename Tile::Kv, kHeadSize>(p, pages[first_page + i / page_chunks], i % page_chunks, kv_head, seen,
                                              chunk_at(i), arch::ThreadIndex(), Shape::kThreads);
    }
    arch::CpAsyncCommit();
  };

  load(0);
  LoadQuery<Tile>(p, item, kv_head, first_row, Shape::kRows, q, arch::ThreadIndex(), Shape::kThreads);
  Tile tile;
  tile.Clear();
  tile.LoadRanges(p, item, kv_head, warp_row);
  const auto warp_q = q.At(arch::WarpIndex() * Tile::kRows * TileRows<typename Tile::T, kHeadSize>::kStride);
  for (int turn = 0; turn < turns; ++turn) {
    load(turn + 1);
    arch::CpAsyncWait<1>();
    arch::SyncThreads();
    for (int i = turn * Shape::kChunks; i < (turn + 1) * Shape::kChunks && i < chunks; ++i) {
      const Chunk chunk = ChunkOf(pages[first_page + i / page_chunks], i % page_chunks, seen);
      if (chunk.position >= mine.end || chunk.position + kChunkTokens <= mine.begin) continue;
      tile.Attend(p, warp_q, chunk_at(i), chunk);
    }
    arch::SyncThreads();
  }
  arch::CpAsyncWait<0>();

  float scale = 0.0f;
  tile.ForEachRow(
      [&](int row, float max, float sum, bool first) {
        if (warp_row + row >= rows) return;
        const float sink = SinkLogit(p, item, kv_head, warp_row + row);
        const float m = sink > max ? sink : max;
        const float decay = arch::Exp2((max - Reference(m)) * arch::kLog2E);
        const float total = sum * decay + arch::Exp2((sink - Reference(m)) * arch::kLog2E);
        scale = m == kEmptyLse ? 0.0f : p.v_scale * decay / total;
        if (!first) return;
        const RowSink to = SinkOf(p, item, kv_head, warp_row + row);
        if (to.lse != nullptr) *to.lse = m == kEmptyLse ? kEmptyLse : m + arch::Log(total);
        if (m == -kEmptyLse) arch::AtomicOr(p.status, kStatusInfiniteLogit);
      },
      [&](int row, int dim, float low, float high) {
        if (warp_row + row >= rows) return;
        StorePair<typename Tile::T>(SinkOf(p, item, kv_head, warp_row + row), dim, low * scale, high * scale);
      });
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_PREFILL_CUH_
