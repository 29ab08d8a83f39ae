// Arguments of the CUDA kernels, as plain data: what a plan made on the host hands to the device.
//
// geometry.dtype is that of K and V in pages: the `dtype` of q, o and new keys, or one of float8.
// All pointers are device addresses (or mapped host memory where said so). Strides are in elements, dims are
// contiguous, and every row of K, V, q, o is aligned to 16 bytes: the launchers refuse what is not. A plan may assume
// that kernels read nothing but what its pages, items and ranges name.
#ifndef KERNELS_CUDA_PARAMS_H_
#define KERNELS_CUDA_PARAMS_H_

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/dtype.h"
#include "kernels/page_format.h"

namespace hybridgen::cuda {

// Rows of q, k, v or o: element (token 0, head 0, dim 0).
struct Rows {
  void* data = nullptr;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};

// Writes each token's K and V to its slot of the engine's tensor.
struct WriteKvParams {
  Rows key;  // [token][kv_head][dim], of dtype
  Rows value;
  DType dtype = DType::kFloat32;
  float k_scale = 1.0f;  // of float8 pages: stored = float8(x / scale), the quotient rounded to float32 first
  float v_scale = 1.0f;
  int num_tokens = 0;
  // [num_tokens] page * page_tokens + offset in the page; negative: the token is not written.
  const int64_t* slots = nullptr;
  PageGeometry geometry;    // kStrided
  void* k_cache = nullptr;  // page 0, KV head 0, token 0
  void* v_cache = nullptr;
  int64_t k_page_stride = 0;
  int64_t v_page_stride = 0;
};

// Query tokens x pages, attended as one unit: all KV heads of it, one thread block each. No tokens: nothing is done.
struct AttendItem {
  int32_t first_token = 0;  // row of q
  int32_t num_tokens = 0;
  int32_t first_page = 0;  // pages[first_page, first_page + num_pages)
  int32_t num_pages = 0;
  int32_t partial_row = -1;  // row of first_token in the partials; -1: the item is complete, write the output
  int32_t owns_sink = 0;     // 1: the sinks enter here; exactly one item per (token, head)
};

// Partials of kernels/partial.h: row r holds all query heads, o [row][head][head_size], lse [row][head].
struct Partials {
  float* o = nullptr;
  float* lse = nullptr;
};

// Bits of the status word, set by kernels and never cleared by them.
constexpr uint32_t kStatusInfiniteLogit = 1;  // a logit was +inf; outputs of that row are unspecified

struct AttendParams {
  Rows q;  // [token][query head][dim], of dtype
  DType dtype = DType::kFloat32;
  int query_heads = 0;
  PageGeometry geometry;  // kStrided, or what the pages' kernel reads
  const KvPage* pages = nullptr;
  uint64_t k_base = 0;  // a page's K of this layer is at k_base + page.k
  uint64_t v_base = 0;
  const AttendItem* items = nullptr;
  int num_items = 0;
  int max_item_tokens = 0;  // largest num_tokens of the items
  // Of query token t (row of q): it sees keys at [kv_begin[t], kv_end[t]) and stands at position[t].
  const int32_t* kv_begin = nullptr;
  const int32_t* kv_end = nullptr;
  const int32_t* position = nullptr;
  float scale = 1.0f;     // logit = scale * q.k, then soft cap, then ALiBi; with the K scale of float8 in it
  float v_scale = 1.0f;   // o is multiplied by it: the V scale of float8
  float soft_cap = 0.0f;  // > 0: logit = cap * tanh(logit / cap)
  const float* alibi_slopes = nullptr;  // null or [query_heads]: logit += slope * (key position - query position)
  const float* sinks = nullptr;         // null or [query_heads]
  Partials partials;
  Rows o;  // [token][query head][dim], of dtype
  uint32_t* status = nullptr;
};

// Keys that the CPU has scored and chosen: their logits, complete (scale, cap, bias), and their V rows become one
// partial, which the merge joins with the device's in one softmax. What was left out is a further partial (o, log of
// its mass).
struct ChosenParams {
  // Of these: items (their pages are not looked at), dtype, query_heads, geometry (dtype, kv_heads, head_size),
  // v_scale, sinks, partials, o, status.
  AttendParams attend;
  int capacity = 0;                 // keys that each (item, KV head) has room for
  const int32_t* counts = nullptr;  // [item][kv_head] chosen keys, up to capacity
  // [item][token of max_item_tokens][query head][capacity]; -inf where the row does not see the key.
  const float* logits = nullptr;
  const void* v = nullptr;  // [item][kv_head][capacity][head_size], device or mapped host memory
};

// The partials of rows row, row + stride, ... are those of one token; the output may replace one of them. Count 0:
// nothing is written.
struct MergeItem {
  int32_t token = 0;  // row of the output
  int32_t row = 0;
  int32_t count = 0;
  int32_t stride = 0;
};

struct MergeParams {
  const MergeItem* items = nullptr;
  int num_items = 0;
  int query_heads = 0;
  int head_size = 0;
  Partials device;
  // Rows from first_host_row on are rows 0, 1, ... here: the CPU's partials, in device or mapped host memory. A call of
  // the joint has those of its sequence's parity; first_sequence + call is that sequence, read by the device, so that
  // the arguments are the same for every step. Null: host[0].
  Partials host[2];
  const uint64_t* first_sequence = nullptr;
  uint32_t call = 0;
  int32_t first_host_row = INT32_MAX;
  Rows o;
  DType dtype = DType::kFloat32;  // of o
  float* lse = nullptr;           // null, or [token][query_heads]: that of the union
};

// One page on its way between the strided and the packed format, both roles, all KV heads of one layer.
struct RepackJob {
  uint64_t strided_k = 0;  // address of (KV head 0, token 0)
  uint64_t strided_v = 0;
  uint64_t packed_k = 0;  // device or mapped host memory
  uint64_t packed_v = 0;
  int32_t num_tokens = 0;  // valid tokens
};

struct RepackParams {
  const RepackJob* jobs = nullptr;
  int num_jobs = 0;
  RepackJob base;         // its addresses are added to each job's: jobs may be those of any layer
  PageGeometry geometry;  // of the strided side; page_tokens is common
};

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_PARAMS_H_
