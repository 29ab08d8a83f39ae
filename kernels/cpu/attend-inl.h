// Attention of a tile of rows over a list of pages: online softmax over chunks of 16-token groups. Textually included
// once per ISA, after softmax-inl.h.
#ifndef KERNELS_CPU_ATTEND_INL_H_
#define KERNELS_CPU_ATTEND_INL_H_

namespace hybridgen {
namespace {

using ScoreFn = void (*)(const KeyGroups&, const Layout&, int, const float*, float*);
using SumFn = void (*)(const ValueGroups&, const Layout&, int, const float*, float*);
using EdgeFn = void (*)(const char*, const Layout&, const float*, int, int, float*);
using SoftmaxFn = bool (*)(const QueryTile&, int, const SeenGroup*, int, float*, RowState, float*);

// How K lies where the score function reads it: 16 tokens per dim, 16 tokens per pair of dims that stay bfloat16, or
// the dims of one token after the other.
enum class KeyOrder : uint8_t { kDimMajor, kPairMajor, kTokenMajor };

constexpr int Log2(int x) { return x <= 1 ? 0 : 1 + Log2(x / 2); }
constexpr int kRowBlockSizes = Log2(kRowBlock) + 1;

struct Call;
using ChunkFn = bool (*)(const Call&, Group*, const char* const*, int);

// Everything that stays the same during one call.
struct Call {
  const QueryTile* tile;
  const AttendArgs* args;
  RowState state;
  int rows;
  int vecs;  // of 16 dims in a row of state.acc
  bool packed;
  Layout layout;
  KeyOrder order;
  float* q;                       // blocks of rows as the score function reads them
  int q_floats;                   // of a row in q
  int row_block;                  // most rows of a block
  int smallest_block;             // rows of the smallest one
  int max_groups;                 // of a chunk
  int groups_in_turn;             // of a run that stay neighbours in a chunk
  float* scores;                  // [row_block][kScoreStride]
  float* keys;                    // K in another form: [kSharedChunkGroups] groups of head_size * 16 floats
  float* values;                  // V in another form
  float* weights;                 // in another form
  ChunkFn attend_chunk;           // all rows over one chunk
  ScoreFn score[kRowBlockSizes];  // by log2 of the block's rows / smallest_block
  SumFn sum[kRowBlockSizes];
  EdgeFn edge;
  SoftmaxFn softmax;
};

HG_INLINE int BlockSizeIndex(int rows, int smallest = 1) {
  int index = 0;
  while ((smallest << index) < rows) ++index;
  return index;
}

// One block of rows over one chunk. next: for each group of the chunk, K to fetch ahead. False: a logit is +inf.
bool AttendRows(const Call& call, const Group* chunk, const char* const* next, int num_groups, int first_row) {
  const QueryTile& tile = *call.tile;
  const int rows = AtMost(call.row_block, call.rows - first_row);
  const int first_token = first_row / tile.group;
  const int last_token = (first_row + rows - 1) / tile.group;

  SeenGroup seen[kChunkGroups];
  KeyGroups keys;
  const char* next_keys[kChunkGroups];
  int num_seen = 0;
  for (int i = 0; i < num_groups; ++i) {
    bool any = false;
    bool all = true;
    for (int token = first_token; token <= last_token; ++token) {
      const Span span = Visible(chunk[i], tile.kv_begin[token], tile.kv_end[token]);
      any |= span.lo < span.hi;
      all &= span.lo == 0 && span.hi == 16;
    }
    if (!any) continue;
    seen[num_seen] = {&chunk[i], all};
    keys.k[num_seen] = chunk[i].k;
    keys.next[num_seen] = chunk[i].next;
    keys.valid[num_seen] = chunk[i].valid;
    next_keys[num_seen] = next[i];
    ++num_seen;
  }
  if (num_seen == 0) return true;

  keys.count = num_seen;
  const int size = BlockSizeIndex(rows, call.smallest_block);
  call.score[size](keys, call.layout, tile.head_size, call.q + static_cast<size_t>(first_row) * call.q_floats,
                   call.scores);

  float decay[kMaxRowBlock];
  for (int r = 0; r < rows; ++r) {
    if (!call.softmax(tile, first_row + r, seen, num_seen, call.scores + r * kScoreStride, call.state, &decay[r])) {
      return false;
    }
  }

  ValueGroups groups;
  groups.count = 0;
  for (int i = 0; i < num_seen; ++i) {
    if (!seen[i].whole) continue;
    groups.v[groups.count] = seen[i].group->v;
    groups.next[groups.count] = next_keys[i];
    groups.p[groups.count] = call.scores + 16 * i;
    ++groups.count;
  }
  float* acc = call.state.acc + static_cast<size_t>(first_row) * call.vecs * 16;
  call.sum[size](groups, call.layout, rows, decay, acc);

  for (int i = 0; i < num_seen; ++i) {
    if (seen[i].whole) continue;
    for (int r = 0; r < rows; ++r) {
      const int token = (first_row + r) / tile.group;
      const Span span = Visible(*seen[i].group, tile.kv_begin[token], tile.kv_end[token]);
      call.edge(seen[i].group->page_v, call.layout, call.scores + r * kScoreStride + 16 * i, span.lo, span.hi,
                acc + static_cast<size_t>(r) * call.vecs * 16);
    }
  }
  return true;
}

// Rows of a strided group -> float32 [head_size][16], the form of a packed group. Tokens that do not exist are zeros
// and are not read.
void TransposeKeys(const Group& group, DType dtype, int64_t token_bytes, int head_size, float* out) {
  for (int dim = 0; dim < head_size; dim += 16) {
    Vec block[16];
    for (int t = 0; t < 16; ++t) {
      block[t] = t < group.valid ? LoadRow(group.k + t * token_bytes, dtype, dim, head_size) : Zero();
    }
    Transpose16(block);
    const int dims = AtMost(16, head_size - dim);
    for (int d = 0; d < dims; ++d) Store(out + static_cast<size_t>(dim + d) * 16, block[d]);
  }
}

// Rows of a strided bfloat16 group -> pairs [head_size / 2][16][2], the form of a packed group: a transposition of
// 4-byte elements.
void TransposePairs(const Group& group, int64_t token_bytes, int head_size, float* out) {
  const int pairs = head_size / 2;
  for (int pair = 0; pair < pairs; pair += 16) {
    const int count = AtMost(16, pairs - pair);
    Vec block[16];
    for (int t = 0; t < 16; ++t) {
      float row[16] = {};
      if (t < group.valid) __builtin_memcpy(row, group.k + t * token_bytes + 4 * pair, 4 * static_cast<size_t>(count));
      block[t] = Load(row);
    }
    Transpose16(block);
    for (int i = 0; i < count; ++i) Store(out + static_cast<size_t>(pair + i) * 16, block[i]);
  }
}

// All rows over one chunk. False: a logit is +inf.
bool AttendBlocks(const Call& call, Group* chunk, const char* const* next_keys, int num_groups) {
  for (int row = 0; row < call.rows; row += call.row_block) {
    if (!AttendRows(call, chunk, next_keys, num_groups, row)) return false;
  }
  return true;
}

// The same for strided K that is transposed first.
bool AttendTransposed(const Call& call, Group* chunk, const char* const* next_keys, int num_groups) {
  const PageGeometry& geometry = call.args->geometry;
  for (int i = 0; i < num_groups; ++i) {
    float* keys = call.keys + static_cast<size_t>(i) * 16 * geometry.head_size;
    if (call.order == KeyOrder::kPairMajor) {
      TransposePairs(chunk[i], call.layout.key.token, geometry.head_size, keys);
    } else {
      TransposeKeys(chunk[i], geometry.dtype, call.layout.key.token, geometry.head_size, keys);
    }
    chunk[i].k = reinterpret_cast<const char*>(keys);
  }
  return AttendBlocks(call, chunk, next_keys, num_groups);
}

// All rows over one chunk, while the K of what comes next is fetched: next[0, num_next) are its groups, at least those
// that its runs begin with. False: a logit is +inf.
bool AttendChunk(const Call& call, Group* chunk, int num_groups, const Group* next, int num_next) {
  const char* next_keys[kChunkGroups];
  const char* begin[kMaxRuns];  // of each run that comes next
  int num_runs = 0;
  for (int i = 0; i < num_next; ++i) {
    if (next[i].step == 0) begin[num_runs++] = next[i].k;
  }
  for (int i = 0; i < num_groups; ++i) {
    // V of a packed run ends in the fetch of the next K run's begin, of which every group takes its part.
    next_keys[i] = call.packed ? begin[AtMost(num_runs - 1, chunk[i].run)] + chunk[i].step * call.layout.ahead.vec
                               : next[AtMost(num_next - 1, i)].k;
  }
  return call.attend_chunk(call, chunk, next_keys, num_groups);
}

// Queries as float32, each block of rows filled up with zeros to 1, 2, 4, ... rows.
void PackQueries(const Call& call) {
  const KeyOrder order = call.order;
  const QueryTile& tile = *call.tile;
  const int64_t element = static_cast<int64_t>(BytesOf(tile.dtype));
  for (int first = 0; first < call.rows; first += kRowBlock) {
    const int count = AtMost(kRowBlock, call.rows - first);
    const int block = 1 << BlockSizeIndex(count);
    float* q = call.q + static_cast<size_t>(first) * call.q_floats;
    const char* row[kRowBlock];
    for (int r = 0; r < count; ++r) {
      const int token = (first + r) / tile.group;
      const int head = (first + r) % tile.group;
      row[r] = static_cast<const char*>(tile.q) + (token * tile.token_stride + head * tile.head_stride) * element;
    }
    if (order == KeyOrder::kPairMajor) {
      for (int pair = 0; pair < tile.head_size / 2; ++pair) {
        for (int r = 0; r < block; ++r, ++q) {
          *q = 0.0f;
          if (r < count) __builtin_memcpy(q, row[r] + 4 * pair, 4);
        }
      }
      continue;
    }
    for (int dim = 0; dim < tile.head_size; dim += 16) {
      Vec x[16];
      for (int r = 0; r < 16; ++r) x[r] = r < count ? LoadRow(row[r], tile.dtype, dim, tile.head_size) : Zero();
      if (order == KeyOrder::kTokenMajor) {
        for (int r = 0; r < block; ++r) Store(q + dim * block + 16 * r, x[r]);
      } else if (block == 1) {
        Store(q + dim, x[0]);
      } else {
        Transpose16(x);
        // Of each vector `block` floats are meant; the next store covers the others, after the last one they are what
        // is written later: the next block or the scores.
        for (int d = 0; d < AtMost(16, tile.head_size - dim); ++d) Store(q + (dim + d) * block, x[d]);
      }
    }
  }
}

template <Elements kElements>
void SetScore(Call& call) {
  call.score[0] = ScoreRows<kElements, 1>;
  call.score[1] = ScoreRows<kElements, 2>;
  if constexpr (kRowBlock > 2) call.score[2] = ScoreRows<kElements, 4>;
  if constexpr (kRowBlock > 4) call.score[3] = ScoreRows<kElements, 8>;
}

template <Elements kElements>
void SetScoreTokens(Call& call) {
  call.score[0] = ScoreTokens<kElements, 1>;
  call.score[1] = ScoreTokens<kElements, 2>;
  if constexpr (kRowBlock > 2) call.score[2] = ScoreTokens<kElements, 4>;
  if constexpr (kRowBlock > 4) call.score[3] = ScoreTokens<kElements, 8>;
}

template <Elements kElements, PageFormat kFormat>
void SetSum(Call& call) {
  call.sum[0] = SumRows<kElements, kFormat, 1>;
  call.sum[1] = SumRows<kElements, kFormat, 2>;
  if constexpr (kRowBlock > 2) call.sum[2] = SumRows<kElements, kFormat, 4>;
  if constexpr (kRowBlock > 4) call.sum[3] = SumRows<kElements, kFormat, 8>;
  call.edge = SumEdge<kElements>;
}

template <Elements kElements>
void SetStrided(Call& call) {
  // Whatever K was, it is float32 once transposed.
  call.order == KeyOrder::kDimMajor ? SetScore<Elements::kF32>(call) : SetScoreTokens<kElements>(call);
  SetSum<kElements, PageFormat::kStrided>(call);
}

template <Elements kElements>
void SetPacked(Call& call) {
  SetScore<kElements>(call);
  SetSum<kElements, PageFormat::kPackedV1>(call);
}

void SelectFunctions(Call& call) {
  switch (call.args->geometry.dtype) {
    case DType::kFloat32:
      call.packed ? SetPacked<Elements::kF32>(call) : SetStrided<Elements::kF32>(call);
      break;
    case DType::kFloat16:
      call.packed ? SetPacked<Elements::kF16>(call) : SetStrided<Elements::kF16>(call);
      break;
    case DType::kBFloat16:
      call.packed ? SetPacked<Elements::kBF16Pairs>(call) : SetStrided<Elements::kBF16>(call);
      if constexpr (kHasPairDot) {
        if (call.order == KeyOrder::kPairMajor) SetScore<Elements::kBF16Dots>(call);
      }
      break;
  }
  const bool cap = call.tile->soft_cap > 0.0f;
  const bool alibi = call.tile->alibi_slopes != nullptr;
  call.softmax = cap ? (alibi ? SoftmaxRow<true, true> : SoftmaxRow<true, false>)
                     : (alibi ? SoftmaxRow<false, true> : SoftmaxRow<false, false>);
}

// The part of the address arithmetic that is the same for all pages, in bytes.
struct Addressing {
  int64_t k_head;  // from one KV head of a page to the next
  int64_t v_head;
  int64_t k_group;  // from one 16-token group to the next
  int64_t v_group;
};

Addressing SetLayout(Call& call) {
  const PageGeometry& g = call.args->geometry;
  const int64_t element = static_cast<int64_t>(BytesOf(g.dtype));
  if (call.packed) {
    const Strides value = {16 * g.page_tokens * element, 16 * element};
    // As many bytes as a group of K has: what is left at the end of V is the begin of the next run. One row computes so
    // little that the hardware's prefetchers keep up with it in long runs, where instructions only take their slots.
    int ahead = AtMost(call.vecs, 16 * call.vecs / g.page_tokens);
    if (ahead == 0) ahead = 1;
    if (call.rows == 1 && g.page_tokens >= 64) ahead = 0;
    call.layout = {{256 * element, 16 * element}, value, call.vecs, 0, ahead, value, call.weights};
    const int64_t head = g.page_tokens * call.vecs * 16 * element;
    return {head, head, 16 * call.vecs * 16 * element, 16 * 16 * element};
  }
  const Strides key = {16 * element, g.k_token_stride * element};
  call.layout = {
      key,         {16 * element, g.v_token_stride * element}, g.head_size / 16, g.head_size % 16 != 0, call.vecs, key,
      call.weights};
  return {g.k_head_stride * element, g.v_head_stride * element, 16 * g.k_token_stride * element,
          16 * g.v_token_stride * element};
}

// A walk over the groups that some row sees, in page order.
struct Cursor {
  const Call* call;
  Addressing address;
  int page;
  int token;  // in the page, of the next group
};

// Takes the next groups of the cursor's page that some row sees, up to `limit`, and returns their number. Less than
// that: the page is finished, and the cursor stands at the next one.
int NextRun(Cursor& cursor, int run, int limit, Group* groups) {
  const QueryTile& tile = *cursor.call->tile;
  const AttendArgs& args = *cursor.call->args;
  const KvPage& page = args.pages[cursor.page];
  const char* k = reinterpret_cast<const char*>(args.k_base + page.k) + args.kv_head * cursor.address.k_head;
  const char* v = reinterpret_cast<const char*>(args.v_base + page.v) + args.kv_head * cursor.address.v_head;
  int count = 0;
  for (; cursor.token < page.num_tokens; cursor.token += 16) {
    if (count == limit) return count;
    const int index = cursor.token / 16;
    Group group = {k + index * cursor.address.k_group,
                   v + index * cursor.address.v_group,
                   v + index * cursor.address.v_group,
                   page.first_position + cursor.token,
                   AtMost(16, page.num_tokens - cursor.token),
                   nullptr,
                   run,
                   count};
    bool seen = false;
    for (int token = 0; token < tile.num_tokens && !seen; ++token) {
      const Span span = Visible(group, tile.kv_begin[token], tile.kv_end[token]);
      seen = span.lo < span.hi;
    }
    if (seen) groups[count++] = group;  // else not read at all: the page may be poisoned
  }
  ++cursor.page;
  cursor.token = 0;
  return count;
}

// Fills `chunk` with the runs that come next and returns the number of groups; 0 at the end. First all runs' first
// groups (groups_in_turn of each), then the next ones, and so on: neighbours are read side by side.
int NextChunk(Cursor& cursor, Group* chunk) {
  Group runs[kMaxRuns][kRunGroups];
  int lengths[kMaxRuns];
  int num_runs = 0;
  int left = cursor.call->max_groups;
  while (num_runs < kMaxRuns && left > 0 && cursor.page < cursor.call->args->num_pages) {
    const int length = NextRun(cursor, num_runs, AtMost(left, kRunGroups), runs[num_runs]);
    if (length == 0) continue;
    left -= length;
    lengths[num_runs++] = length;
  }
  int count = 0;
  const int in_turn = cursor.call->groups_in_turn;
  for (int first = 0; first < kRunGroups; first += in_turn) {
    for (int run = 0; run < num_runs; ++run) {
      for (int step = first; step < AtMost(lengths[run], first + in_turn); ++step) {
        const bool last = step + 1 == lengths[run];
        Group& group = chunk[count++];
        group = runs[run][step];
        if (!cursor.call->packed) {
          group.next = group.v;
        } else if (last) {
          group.next = runs[run][0].v;
        } else {
          group.next = cursor.call->layout.vecs_ahead > 0 ? runs[run][step + 1].k : group.k;
        }
      }
    }
  }
  return count;
}

Call StartCall(const QueryTile& tile, const AttendArgs& args, RowState state, void* scratch) {
  Call call;
  call.tile = &tile;
  call.args = &args;
  call.state = state;
  call.rows = tile.num_tokens * tile.group;
  call.vecs = (tile.head_size + 15) / 16;
  call.packed = args.geometry.format == PageFormat::kPackedV1;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(scratch) + kScratchAlignment - 1;
  call.q = reinterpret_cast<float*>(begin / kScratchAlignment * kScratchAlignment);
  call.scores = call.q + ScratchQueryFloats(tile.head_size);
  call.keys = call.scores + ScratchScoreFloats();
  call.values = call.keys + ScratchKeyFloats(tile.head_size);
  call.weights = call.values + ScratchValueFloats(tile.head_size);
  return call;
}

// Fills in how blocks are attended by vectors; PackQueries is next.
void UseVectors(Call& call) {
  const QueryTile& tile = *call.tile;
  const bool one_block = call.rows <= kRowBlock;
  // Strided K is read as it lies where one block takes all rows: reducing 16 sums per row costs less than transposing
  // 16 tokens. Several blocks share a transposition, but would each widen and reduce.
  const bool by_dims = call.packed || !one_block;
  const bool pairs =
      kHasPairDot && by_dims && call.args->geometry.dtype == DType::kBFloat16 && tile.dtype == DType::kBFloat16;
  call.order = pairs ? KeyOrder::kPairMajor : by_dims ? KeyOrder::kDimMajor : KeyOrder::kTokenMajor;
  call.row_block = kRowBlock;
  call.smallest_block = 1;
  call.max_groups = one_block ? kChunkGroups : kSharedChunkGroups;
  call.groups_in_turn = 1;
  call.q_floats = call.order == KeyOrder::kTokenMajor ? 16 * call.vecs : tile.head_size;
  call.attend_chunk = !call.packed && by_dims ? AttendTransposed : AttendBlocks;
  SelectFunctions(call);
}

// Walks all pages, once it is settled how blocks are attended.
KernelResult AttendPages(Call& call) {
  const AttendArgs& args = *call.args;
  Cursor cursor = {&call, SetLayout(call), 0, 0};

  Group chunks[2][kChunkGroups];
  int count = NextChunk(cursor, chunks[0]);
  // What the caller reads after the last chunk; without a next head the first chunk once more, which costs nothing.
  Group after[kChunkGroups];
  const int num_after = count;
  const int64_t to_next_head = args.next_kv_head < 0 ? 0 : (args.next_kv_head - args.kv_head) * cursor.address.k_head;
  for (int i = 0; i < num_after; ++i) {
    after[i] = chunks[0][i];
    after[i].k += to_next_head;
  }
  for (int i = 0; count > 0; ++i) {
    Group* next = chunks[(i + 1) % 2];
    const int num_next = NextChunk(cursor, next);
    const bool last = num_next == 0;
    if (!AttendChunk(call, chunks[i % 2], count, last ? after : next, last ? num_after : num_next)) {
      return KernelResult::kInfiniteLogit;
    }
    count = num_next;
  }
  return KernelResult::kOk;
}

KernelResult Attend(const QueryTile& tile, const AttendArgs& args, RowState state, void* scratch) {
  Call call = StartCall(tile, args, state, scratch);
  UseVectors(call);
  PackQueries(call);
  return AttendPages(call);
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_ATTEND_INL_H_
