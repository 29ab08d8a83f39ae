// What stays the same during one call, and its walk over the pages: 16-token groups in chunks of several runs.
// Textually included once per ISA, after softmax-inl.h.
#ifndef KERNELS_CPU_WALK_INL_H_
#define KERNELS_CPU_WALK_INL_H_

namespace hybridgen {
namespace {

using ScoreFn = void (*)(const KeyGroups&, const Layout&, int, const float*, float*);
using SumFn = void (*)(const ValueGroups&, const Layout&, int, const float*, float*);
using EdgeFn = void (*)(const char*, const Layout&, const float*, int, int, float*);
using LogitFn = float (*)(const QueryTile&, int, const SeenGroup*, int, float*);

// How K lies where the score function reads it: 16 tokens per dim, 16 tokens per pair of dims that stay bfloat16, 16
// tokens per four dims of 8 bits, or the dims of one token after the other.
enum class KeyOrder : uint8_t { kDimMajor, kPairMajor, kQuadMajor, kTokenMajor };

constexpr int Log2(int x) { return x <= 1 ? 0 : 1 + Log2(x / 2); }
constexpr int kRowBlockSizes = Log2(kRowBlock) + 1;

struct Call;
using ChunkFn = bool (*)(const Call&, Group*, const char* const*, int);

// Everything that stays the same during one call.
struct Call {
  QueryTile tile;  // its scale takes in the unit of loaded K
  const AttendArgs* args;
  RowState state;
  int rows;
  int vecs;     // of 16 dims in a row of state.acc
  bool packed;  // in either format
  bool int8;
  Layout layout;
  KeyOrder order;
  float unit;                     // of loaded K and V
  float* q;                       // blocks of rows as the score function reads them
  int q_floats;                   // of a row in q
  int row_block;                  // most rows of a block
  int smallest_block;             // rows of the smallest one
  int max_groups;                 // of a chunk
  int groups_in_turn;             // of a run that stay neighbours in a chunk
  float* scores;                  // [row_block][kScoreStride]
  float* keys;                    // K in another form: [kSharedChunkGroups] groups of 16 * head_size floats
  float* values;                  // V in another form
  float* weights;                 // in another form
  ChunkFn attend_chunk;           // all rows over one chunk
  ScoreFn score[kRowBlockSizes];  // by log2 of the block's rows / smallest_block
  SumFn sum[kRowBlockSizes];
  EdgeFn edge;
  LogitFn logits;
};

// The part of the address arithmetic that is the same for all pages, in bytes.
struct Addressing {
  int64_t k_head;  // from one KV head of a page to the next
  int64_t v_head;
  int64_t k_group;  // from one 16-token group to the next
  int64_t v_group;
  int64_t v_scales;  // from a head's V to its scales, in 8-bit pages
};

Addressing SetLayout(Call& call) {
  const PageGeometry& g = call.args->geometry;
  const int64_t element = call.int8 ? 1 : static_cast<int64_t>(BytesOf(g.dtype));
  if (call.packed) {
    const Strides value = {16 * g.page_tokens * element, 16 * element};
    // As many bytes as a group of K has: what is left at the end of V is the begin of the next run. One row computes so
    // little that the hardware's prefetchers keep up with it in long runs, where instructions only take their slots.
    int ahead = AtMost(call.vecs, 16 * call.vecs / g.page_tokens);
    if (ahead == 0) ahead = 1;
    if (call.rows == 1 && g.page_tokens >= 64) ahead = 0;
    call.layout = {{256 * element, 16 * element}, value, call.vecs, 0, ahead, value, call.weights};
    const int64_t values = g.page_tokens * call.vecs * 16 * element;
    const int64_t scale = call.int8 ? sizeof(float) : 0;  // of a token
    const int64_t head = values + g.page_tokens * scale;
    return {head, head, 16 * (call.vecs * 16 * element + scale), 16 * 16 * element, values};
  }
  const Strides key = {16 * element, g.k_token_stride * element};
  const Strides value = {16 * element, g.v_token_stride * element};
  call.layout = {key, value, g.head_size / 16, g.head_size % 16 != 0, call.vecs, key, call.weights};
  return {g.k_head_stride * element, g.v_head_stride * element, 16 * g.k_token_stride * element,
          16 * g.v_token_stride * element, 0};
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
  const QueryTile& tile = cursor.call->tile;
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
                   reinterpret_cast<const float*>(v + cursor.address.v_scales) + 16 * index,
                   cursor.page * args.geometry.page_tokens + cursor.token,
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

// The walk over a call's pages, at its begin.
Cursor FirstPage(Call& call) { return {&call, SetLayout(call), 0, 0}; }

// Walks all pages from the cursor on: visit(chunk, number of groups, those that are read next, their number), until it
// returns false, for a logit of +inf. After the last chunk comes the first one of the next KV head; without a next head
// the first chunk once more, whose fetching costs nothing.
template <typename Visit>
KernelResult ForEachChunk(Cursor& cursor, const Visit& visit) {
  const AttendArgs& args = *cursor.call->args;
  Group chunks[2][kChunkGroups];
  int count = NextChunk(cursor, chunks[0]);
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
    if (!visit(chunks[i % 2], count, last ? after : next, last ? num_after : num_next)) {
      return KernelResult::kInfiniteLogit;
    }
    count = num_next;
  }
  return KernelResult::kOk;
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_WALK_INL_H_
