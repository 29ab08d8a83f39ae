// Contract of the CPU attention kernels: pure functions over raw pointers, no allocation, no threads.
//
// One call attends a tile of query rows of ONE KV head over a list of pages of ONE format and folds the result
// into running row states, so that a caller walks pages of several formats and finalises once. All arithmetic is
// float32, results are the same bits on every call with the same arguments.
//
// Arguments are trusted (the planner has checked them): head_size a multiple of 8 up to 256, or 512; page_tokens a
// multiple of 16; elements aligned to their size at least.
#ifndef KERNELS_ATTENTION_H_
#define KERNELS_ATTENTION_H_

#include <cstddef>
#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/page_format.h"

namespace hybridgen {

// One page as a plan stores it: layer-independent. Address of the layer's data = AttendArgs::k_base + k (same for v).
struct KvPage {
  uint64_t k;              // bytes
  uint64_t v;              // bytes
  int32_t first_position;  // absolute position in the sequence of the page's token 0
  int32_t num_tokens;      // valid tokens; the rest of the page is never read into a result
};

// Rows of one tile: row = token * group + g, where g is the query head inside the KV head's group.
constexpr int kMaxTileRows = 128;
constexpr int kMaxHeadSize = 512;

struct QueryTile {
  const void* q = nullptr;        // element (token 0, first query head of the group, dim 0)
  DType dtype = DType::kFloat32;  // of q
  int64_t token_stride = 0;       // elements
  int64_t head_stride = 0;        // elements
  int num_tokens = 0;             // query tokens; num_tokens * group <= kMaxTileRows
  int group = 1;                  // query heads per KV head
  int head_size = 0;
  float scale = 1.0f;     // logit = scale * q.k, then soft cap, then ALiBi
  float soft_cap = 0.0f;  // > 0: logit = cap * tanh(logit / cap)
  // ALiBi: logit += slope * (key position - query position). Null: none. Length `group`.
  const float* alibi_slopes = nullptr;
  const int32_t* query_position = nullptr;  // [num_tokens] absolute positions (used by ALiBi)
  // Key positions that query token t may see: [kv_begin[t], kv_end[t]); causality, window and length in one. May be
  // empty, or reach beyond the pages given.
  const int32_t* kv_begin = nullptr;
  const int32_t* kv_end = nullptr;
};

// Running state of a tile's rows, caller-owned float32 memory, kept between calls. A row that saw no token (or only
// logits of -inf) stays empty: max = -inf, sum = 0, acc = 0.
struct RowState {
  float* max;  // [rows]   running maximum logit, -inf when empty
  float* sum;  // [rows]   sum of exp(logit - max)
  float* acc;  // [rows][PaddedHeadSize(head_size)]  sum of exp(logit - max) * V
};

struct AttendArgs {
  PageGeometry geometry;
  uint64_t k_base = 0;
  uint64_t v_base = 0;
  int kv_head = 0;
  int next_kv_head = -1;  // of the same pages, attended right after this call and therefore fetched ahead; -1: none
  const KvPage* pages = nullptr;
  int num_pages = 0;
};

// kInfiniteLogit: a logit that a row sees is +inf; `state` is then unspecified until rows are initialised again.
enum class KernelResult : uint8_t { kOk = 0, kInfiniteLogit = 1 };

// Folds the pages into `state`. `scratch` is AttendScratchBytes(...) bytes, aligned to 4.
// What no row sees has no influence, NaN included: tokens of a page from num_tokens on, tokens outside a row's range. A
// group of 16 tokens that no row sees is not read at all. A NaN in K, V or q makes exactly the rows that see it NaN
// (their lse too if it is in K or q); a logit of -inf weighs nothing.
using AttendFn = KernelResult (*)(const QueryTile& tile, const AttendArgs& args, RowState state, void* scratch);

// Sets rows to the empty state. sinks: null, or [group] logits (finite, or -inf for none) that enter the denominator;
// pass them to exactly one partial of a sequence.
using InitRowsFn = void (*)(const QueryTile& tile, const float* sinks, RowState state);

// Where finished rows go: either a partial (o float32, lse) or, when the rows are complete, the output itself. Empty
// rows give o = 0, lse = -inf.
struct RowOutput {
  void* o = nullptr;              // element (token 0, head 0 of the group, dim 0)
  DType dtype = DType::kFloat32;  // of o; float32 for partials
  int64_t token_stride = 0;       // elements
  int64_t head_stride = 0;        // elements
  float* lse = nullptr;           // null, or element (token 0, head 0)
  int64_t lse_token_stride = 0;
  int64_t lse_head_stride = 0;
};
using FinalizeRowsFn = void (*)(const QueryTile& tile, RowState state, const RowOutput& out);

// Merges `num_partials` partials of one (token, head) row into out[head_size] of `dtype`. Partial p's o is at
// o[p] (not read if lse[p] is -inf), its lse is lse[p]. Deterministic: in the order given. Returns the merged lse.
using MergeRowsFn = float (*)(const float* const* o, const float* lse, int num_partials, int head_size, void* out,
                              DType dtype);

// Writes the K and V of `num_tokens` consecutive tokens into one page from token offset `offset` on. key/value:
// element (token 0, head 0, dim 0), dtype = geometry.dtype, [token][kv_head][dim] by strides in elements. The other
// tokens of the page keep their content.
struct WriteArgs {
  PageGeometry geometry;
  uint64_t k_page = 0;  // address of the page's K of this layer
  uint64_t v_page = 0;
  int offset = 0;
  int num_tokens = 0;
  const void* key = nullptr;
  const void* value = nullptr;
  int64_t key_token_stride = 0;
  int64_t key_head_stride = 0;
  int64_t value_token_stride = 0;
  int64_t value_head_stride = 0;
};
using WriteKvFn = void (*)(const WriteArgs& args);

// Copies the first `num_tokens` tokens of one role of a page between two formats, all KV heads of one layer; dtype,
// kv_heads and head_size of the geometries agree.
// Slots from num_tokens on are zeroed in a packed destination and left alone in a strided one.
using ConvertPageFn = void (*)(KvRole role, const PageGeometry& from, uint64_t from_page, const PageGeometry& to,
                               uint64_t to_page, int num_tokens);

// Bytes of scratch of one AttendFn call for any tile of up to kMaxTileRows rows.
size_t AttendScratchBytes(int head_size);

}  // namespace hybridgen

#endif  // KERNELS_ATTENTION_H_
