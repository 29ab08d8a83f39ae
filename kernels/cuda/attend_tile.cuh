// What the attention kernels share: which keys a query row sees, the logit, stages of K and V in shared memory, and the
// way that finished rows leave.
#ifndef KERNELS_CUDA_ATTEND_TILE_CUH_
#define KERNELS_CUDA_ATTEND_TILE_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/params.h"
#include "kernels/partial.h"

namespace hybridgen::cuda {

constexpr int kChunkTokens = 16;  // tokens that are loaded and attended at a time; never across pages

// A query row of a tile: row = token * group + head of the group. A row beyond the item's sees nothing.
struct RowRange {
  int begin;  // sees keys at [begin, end)
  int end;
  int position;
  float slope;
};

HG_DEVICE RowRange LoadRow(const AttendParams& p, const AttendItem& item, int kv_head, int row) {
  const int group = p.query_heads / p.geometry.kv_heads;
  const int token = row / group;
  if (token >= item.num_tokens) return {0, 0, 0, 0.0f};
  const int t = item.first_token + token;
  const float slope = p.alibi_slopes == nullptr ? 0.0f : p.alibi_slopes[kv_head * group + row % group];
  return {p.kv_begin[t], p.kv_end[t], p.position[t], slope};
}

// The logit of a product, or -inf where the row does not see the key. The branches are the same for all threads.
HG_DEVICE float Logit(const AttendParams& p, const RowRange& row, int position, float product) {
  if (position < row.begin || position >= row.end) return kEmptyLse;
  float x = product * p.scale;
  if (p.soft_cap > 0.0f) x = p.soft_cap * arch::Tanh(x / p.soft_cap);
  if (p.alibi_slopes != nullptr) x += row.slope * static_cast<float>(position - row.position);
  return x;
}

// Keys that any row of a tile sees; what lies outside is never read.
struct KeyRange {
  int begin;
  int end;
};

HG_DEVICE KeyRange SeenByTile(const AttendParams& p, const AttendItem& item, int first_row, int rows) {
  const int group = p.query_heads / p.geometry.kv_heads;
  KeyRange seen = {INT32_MAX, 0};
  for (int token = first_row / group; token < item.num_tokens && token * group < first_row + rows; ++token) {
    const int begin = p.kv_begin[item.first_token + token];
    const int end = p.kv_end[item.first_token + token];
    if (begin >= end) continue;
    seen.begin = begin < seen.begin ? begin : seen.begin;
    seen.end = end > seen.end ? end : seen.end;
  }
  return seen;
}

// Rows of elements in shared memory, in units of 16 bytes. A row is followed by one unit: their number is then odd
// (head sizes are multiples of 32), so the same unit of 8 consecutive rows lies in 8 different groups of banks.
template <typename T, int kHeadSize>
struct TileRows {
  static constexpr int kUnits = kHeadSize * static_cast<int>(sizeof(T)) / 16;
  static_assert(kUnits % 2 == 0, "two units are taken at a time");
  static constexpr int kStride = kUnits + 1;  // units
  static constexpr int Bytes(int rows) { return rows * kStride * 16; }
};

// One chunk of K and V, as they lie in pages: what is in flight, and read from shared memory, are float8's own bytes.
template <typename Kv, int kHeadSize>
struct Stage {
  static constexpr int kRoleUnits = kChunkTokens * TileRows<Kv, kHeadSize>::kStride;
  static constexpr int kBytes = 2 * kRoleUnits * 16;
};

// Tokens of the chunk that are valid and seen, as positions.
struct Chunk {
  int position = 0;  // of its first token
  int begin = 0;     // only [begin, end) is in shared memory, the rest is zeros
  int end = 0;
};

// Chunk number `chunk` of a page.
HG_DEVICE Chunk ChunkOf(const KvPage& page, int chunk, KeyRange seen) {
  const int position = page.first_position + chunk * kChunkTokens;
  const int valid = page.first_position + page.num_tokens;
  return {position, seen.begin > position ? seen.begin : position, seen.end < valid ? seen.end : valid};
}

// Starts to copy one chunk into a stage, by `threads` threads of which the caller is number `thread`. Tokens that are
// not valid or that nobody sees become zeros and are not read.
template <typename Kv, int kHeadSize>
HG_DEVICE Chunk LoadChunk(const AttendParams& p, const KvPage& page, int chunk, int kv_head, KeyRange seen,
                          arch::Shared<arch::Vec16> stage, int thread, int threads) {
  constexpr int kUnits = TileRows<Kv, kHeadSize>::kUnits;
  constexpr int kSize = sizeof(Kv);
  const PageGeometry& g = p.geometry;
  const int first = chunk * kChunkTokens;
  const Chunk result = ChunkOf(page, chunk, seen);
  const uint64_t k = p.k_base + page.k + (kv_head * g.k_head_stride + first * g.k_token_stride) * kSize;
  const uint64_t v = p.v_base + page.v + (kv_head * g.v_head_stride + first * g.v_token_stride) * kSize;
  for (int i = thread; i < kChunkTokens * kUnits; i += threads) {
    const int token = i / kUnits, unit = i % kUnits;
    const bool read = result.position + token >= result.begin && result.position + token < result.end;
    const int at = token * TileRows<Kv, kHeadSize>::kStride + unit;
    // A copy of no bytes is given an address that exists.
    const uint64_t from_k = k + token * g.k_token_stride * kSize + unit * 16;
    const uint64_t from_v = v + token * g.v_token_stride * kSize + unit * 16;
    arch::CpAsync16(stage.At(at), read ? reinterpret_cast<const void*>(from_k) : p.q.data, read ? 16 : 0);
    arch::CpAsync16(stage.At(Stage<Kv, kHeadSize>::kRoleUnits + at),
                    read ? reinterpret_cast<const void*>(from_v) : p.q.data, read ? 16 : 0);
  }
  return result;
}

// Copies the tile's query rows to shared memory; rows beyond the item's become zeros. Of 16 dims those that lie in the
// lower halves of K's registers go first where K is float8 (MmaTile).
template <typename Tile>
HG_DEVICE void LoadQuery(const AttendParams& p, const AttendItem& item, int kv_head, int first_row, int rows,
                         arch::Shared<arch::Vec16> to, int thread, int threads) {
  using Rows = TileRows<typename Tile::T, Tile::kHeadSize>;
  constexpr int kPairs = Rows::kUnits / 2;  // of units: 16 dims
  const int group = p.query_heads / p.geometry.kv_heads;
  for (int i = thread; i < rows * kPairs; i += threads) {
    const int row = first_row + i / kPairs;
    const int token = row / group, head = kv_head * group + row % group;
    arch::Vec16 x = {}, y = {};
    if (token < item.num_tokens) {
      const int64_t at = (item.first_token + token) * p.q.token_stride + head * p.q.head_stride;
      const char* const from = static_cast<const char*>(p.q.data) + at * 2 + i % kPairs * 32;
      x = arch::LoadOnce16(from);
      y = arch::LoadOnce16(from + 16);
    }
    const auto pair = to.At(i / kPairs * Rows::kStride + i % kPairs * 2);
    if constexpr (kIsFp8<typename Tile::Kv>) {
      pair.Store(0, {x.x[0], x.x[2], y.x[0], y.x[2]});
      pair.Store(1, {x.x[1], x.x[3], y.x[1], y.x[3]});
    } else {
      pair.Store(0, x);
      pair.Store(1, y);
    }
  }
}

// Where a finished row goes: its partial, or the output if the item is complete.
struct RowSink {
  float* partial = nullptr;
  uint16_t* output = nullptr;
  float* lse = nullptr;
};

HG_DEVICE RowSink SinkOf(const AttendParams& p, const AttendItem& item, int kv_head, int row) {
  const int group = p.query_heads / p.geometry.kv_heads;
  const int token = row / group, head = kv_head * group + row % group;
  RowSink sink;
  if (item.partial_row < 0) {
    sink.output =
        static_cast<uint16_t*>(p.o.data) + (item.first_token + token) * p.o.token_stride + head * p.o.head_stride;
    return sink;
  }
  const int64_t at = static_cast<int64_t>(item.partial_row + token) * p.query_heads + head;
  sink.partial = p.partials.o + at * p.geometry.head_size;
  sink.lse = p.partials.lse + at;
  return sink;
}

// Two neighbouring dims, `dim` even.
template <typename T>
HG_DEVICE void StorePair(const RowSink& sink, int dim, float low, float high) {
  if (sink.partial != nullptr) {
    sink.partial[dim] = low;
    sink.partial[dim + 1] = high;
  } else {
    *reinterpret_cast<uint32_t*>(sink.output + dim) = arch::Pack2<T>(low, high);
  }
}

// The sink that enters this row's denominator, or -inf.
HG_DEVICE float SinkLogit(const AttendParams& p, const AttendItem& item, int kv_head, int row) {
  if (p.sinks == nullptr || item.owns_sink == 0) return kEmptyLse;
  const int group = p.query_heads / p.geometry.kv_heads;
  return p.sinks[kv_head * group + row % group];
}

// The maximum to subtract: any finite number does for a row that has seen nothing, and spares -inf - -inf.
HG_DEVICE float Reference(float max) { return max == kEmptyLse ? 0.0f : max; }

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_ATTEND_TILE_CUH_
