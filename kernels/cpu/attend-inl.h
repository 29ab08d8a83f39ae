// Attention of a tile of rows over a list of pages: online softmax over chunks of 16-token groups. Textually included
// once per ISA, after walk-inl.h and int8-inl.h.
#ifndef KERNELS_CPU_ATTEND_INL_H_
#define KERNELS_CPU_ATTEND_INL_H_

namespace hybridgen {
namespace {

HG_INLINE int BlockSizeIndex(int rows, int smallest = 1) {
  int index = 0;
  while ((smallest << index) < rows) ++index;
  return index;
}

// Products of one block of rows with the groups of a chunk that some of its rows see. Returns their number; seen[i] is
// the group whose products with row first_row + r lie at call.scores + r * kScoreStride + 16 * i.
int ScoreChunk(const Call& call, const Group* chunk, int num_groups, int first_row, SeenGroup* seen) {
  const QueryTile& tile = call.tile;
  const int rows = AtMost(call.row_block, call.rows - first_row);
  const int first_token = first_row / tile.group;
  const int last_token = (first_row + rows - 1) / tile.group;
  KeyGroups keys;
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
    if (call.int8) Prefetch(reinterpret_cast<const char*>(chunk[i].value_scales));  // read before V, far behind it
    ++num_seen;
  }
  keys.count = num_seen;
  if (num_seen > 0) {
    call.score[BlockSizeIndex(rows, call.smallest_block)](
        keys, call.layout, tile.head_size, call.q + static_cast<size_t>(first_row) * call.q_floats, call.scores);
  }
  return num_seen;
}

// One block of rows over one chunk. next: for each group of the chunk, K to fetch ahead. False: a logit is +inf.
bool AttendRows(const Call& call, const Group* chunk, const char* const* next, int num_groups, int first_row) {
  const QueryTile& tile = call.tile;
  const int rows = AtMost(call.row_block, call.rows - first_row);
  SeenGroup seen[kChunkGroups];
  const int num_seen = ScoreChunk(call, chunk, num_groups, first_row, seen);
  if (num_seen == 0) return true;

  float decay[kMaxRowBlock];
  for (int r = 0; r < rows; ++r) {
    const int row = first_row + r;
    float* scores = call.scores + r * kScoreStride;
    const float chunk_max = call.logits(tile, row, seen, num_seen, scores);
    if (!WeightRow(chunk_max, call.unit, num_seen, scores, &call.state.max[row], &call.state.sum[row], &decay[r])) {
      return false;
    }
  }

  ValueGroups groups;
  groups.count = 0;
  if (call.int8) groups.step = WeighInt8(seen, num_seen, rows, call.scores);
  for (int i = 0; i < num_seen; ++i) {
    if (!seen[i].whole) continue;
    groups.v[groups.count] = seen[i].group->v;
    groups.next[groups.count] = next[seen[i].group - chunk];
    groups.p[groups.count] = call.scores + 16 * i;
    ++groups.count;
  }
  float* acc = call.state.acc + static_cast<size_t>(first_row) * call.vecs * 16;
  call.sum[BlockSizeIndex(rows, call.smallest_block)](groups, call.layout, rows, decay, acc);

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

// K rows of `count` tokens -> float32 [head_size][16], the form of a packed group. Tokens that do not exist are zeros.
void TransposeKeys(const char* const* rows, int count, DType dtype, int head_size, float* out) {
  for (int dim = 0; dim < head_size; dim += 16) {
    Vec block[16];
    for (int t = 0; t < 16; ++t) block[t] = t < count ? LoadRow(rows[t], dtype, dim, head_size) : Zero();
    Transpose16(block);
    const int dims = AtMost(16, head_size - dim);
    for (int d = 0; d < dims; ++d) Store(out + static_cast<size_t>(dim + d) * 16, block[d]);
  }
}

// K of up to 16 rows of bfloat16 -> pairs [head_size / 2][16][2], the form of a packed group: a transposition of 4-byte
// elements. Rows from `count` on are zeros.
void TransposePairs(const char* const* rows, int count, int head_size, float* out) {
  const int pairs = head_size / 2;
  for (int pair = 0; pair < pairs; pair += 16) {
    const int width = AtMost(16, pairs - pair);
    Vec block[16];
    for (int t = 0; t < 16; ++t) {
      float row[16] = {};
      if (t < count) __builtin_memcpy(row, rows[t] + 4 * pair, 4 * static_cast<size_t>(width));
      block[t] = Load(row);
    }
    Transpose16(block);
    for (int i = 0; i < width; ++i) Store(out + static_cast<size_t>(pair + i) * 16, block[i]);
  }
}

// Transposes the K of every group if the score functions do not read it as it lies.
void TransposeChunk(const Call& call, Group* chunk, int num_groups) {
  if (call.packed || call.order == KeyOrder::kTokenMajor) return;
  const PageGeometry& geometry = call.args->geometry;
  for (int i = 0; i < num_groups; ++i) {
    float* keys = call.keys + static_cast<size_t>(i) * 16 * geometry.head_size;
    const char* rows[16];
    for (int t = 0; t < chunk[i].valid; ++t) rows[t] = chunk[i].k + t * call.layout.key.token;
    if (call.order == KeyOrder::kPairMajor) {
      TransposePairs(rows, chunk[i].valid, geometry.head_size, keys);
    } else {
      TransposeKeys(rows, chunk[i].valid, geometry.dtype, geometry.head_size, keys);
    }
    chunk[i].k = reinterpret_cast<const char*>(keys);
  }
}

// All rows over one chunk. next_keys: for each group, K to fetch ahead. False: a logit is +inf.
bool AttendBlocks(const Call& call, Group* chunk, const char* const* next_keys, int num_groups) {
  TransposeChunk(call, chunk, num_groups);
  for (int row = 0; row < call.rows; row += call.row_block) {
    if (!AttendRows(call, chunk, next_keys, num_groups, row)) return false;
  }
  return true;
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
    next_keys[i] = call.packed ? begin[AtMost(num_runs - 1, chunk[i].run)] + chunk[i].step * 16 * call.layout.ahead.token
                               : next[AtMost(num_next - 1, i)].k;
  }
  return call.attend_chunk(call, chunk, next_keys, num_groups);
}

// Queries as the score function reads them, each block of rows filled up to 1, 2, 4, ... rows.
void PackQueries(const Call& call) {
  const KeyOrder order = call.order;
  const QueryTile& tile = call.tile;
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
    if (order == KeyOrder::kQuadMajor) {
      QuantiseQueries(row, count, block, tile.dtype, tile.head_size, q);
      continue;
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
  ForEachBlockSize([&](auto block) { call.score[Log2(block.rows)] = ScoreRows<kElements, block.rows>; });
}

template <Elements kElements>
void SetScoreTokens(Call& call) {
  ForEachBlockSize([&](auto block) { call.score[Log2(block.rows)] = ScoreTokens<kElements, block.rows>; });
}

template <Elements kElements, PageFormat kFormat>
void SetSum(Call& call) {
  ForEachBlockSize([&](auto block) { call.sum[Log2(block.rows)] = SumRows<kElements, kFormat, block.rows>; });
  call.edge = SumEdge<kElements>;
}

void SetInt8(Call& call) {
  ForEachBlockSize([&](auto block) {
    call.score[Log2(block.rows)] = ScoreInt8<block.rows>;
    call.sum[Log2(block.rows)] = SumInt8<block.rows>;
  });
  call.edge = SumInt8Edge;
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

void SelectPageFunctions(Call& call) {
  if (call.int8) return SetInt8(call);
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
    case DType::kFloat8E4M3:
      call.packed ? SetPacked<Elements::kF8E4M3>(call) : SetStrided<Elements::kF8E4M3>(call);
      break;
    case DType::kFloat8E5M2:
      call.packed ? SetPacked<Elements::kF8E5M2>(call) : SetStrided<Elements::kF8E5M2>(call);
      break;
  }
}

void SelectFunctions(Call& call) {
  SelectPageFunctions(call);
  const bool cap = call.tile.soft_cap > 0.0f;
  const bool alibi = call.tile.alibi_slopes != nullptr;
  call.logits = cap ? (alibi ? LogitRow<true, true> : LogitRow<true, false>)
                    : (alibi ? LogitRow<false, true> : LogitRow<false, false>);
}

// Fills in what does not depend on how blocks are attended. call.state stays as it is.
void StartCall(const QueryTile& tile, const AttendArgs& args, void* scratch, Call& call) {
  call.tile = tile;
  call.args = &args;
  call.rows = tile.num_tokens * tile.group;
  call.vecs = (tile.head_size + 15) / 16;
  call.packed = args.geometry.format != PageFormat::kStrided;
  call.int8 = args.geometry.format == PageFormat::kPackedInt8V1;
  call.unit = UnitOf(args.geometry.dtype);
  call.tile.scale *= call.unit;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(scratch) + kScratchAlignment - 1;
  call.q = reinterpret_cast<float*>(begin / kScratchAlignment * kScratchAlignment);
  call.scores = call.q + ScratchQueryFloats(tile.head_size);
  call.keys = call.scores + ScratchScoreFloats();
  call.values = call.keys + ScratchKeyFloats(tile.head_size);
  call.weights = call.values + ScratchValueFloats(tile.head_size);
}

// How vectors read K. Strided K is read as it lies where one block takes all rows: reducing 16 sums per row costs less
// than transposing 16 tokens. Several blocks share a transposition, but would each widen and reduce.
KeyOrder KeyOrderOf(const QueryTile& tile, const AttendArgs& args) {
  if (args.geometry.format == PageFormat::kPackedInt8V1) return KeyOrder::kQuadMajor;
  const bool packed = args.geometry.format == PageFormat::kPackedV1;
  if (!packed && tile.num_tokens * tile.group <= kRowBlock) return KeyOrder::kTokenMajor;
  const bool pairs = kHasPairDot && args.geometry.dtype == DType::kBFloat16 && tile.dtype == DType::kBFloat16;
  return pairs ? KeyOrder::kPairMajor : KeyOrder::kDimMajor;
}

// Fills in how blocks are attended by vectors; PackQueries is next.
void UseVectors(Call& call, KeyOrder order) {
  call.order = order;
  call.row_block = kRowBlock;
  call.smallest_block = 1;
  call.max_groups = call.rows <= kRowBlock ? kChunkGroups : kSharedChunkGroups;
  call.groups_in_turn = 1;
  call.q_floats = order == KeyOrder::kTokenMajor  ? 16 * call.vecs
                  : order == KeyOrder::kQuadMajor ? call.tile.head_size / 4 * kQuadPairs + 1
                                                  : call.tile.head_size;
  call.attend_chunk = AttendBlocks;
  SelectFunctions(call);
}

// All that precedes the walk of a call by vectors. call.state stays as it is.
void StartVectorCall(const QueryTile& tile, const AttendArgs& args, KeyOrder order, void* scratch, Call& call) {
  StartCall(tile, args, scratch, call);
  UseVectors(call, order);
  PackQueries(call);
}

// Walks all pages, once it is settled how blocks are attended.
KernelResult AttendPages(Call& call) {
  Cursor cursor = FirstPage(call);
  return ForEachChunk(cursor, [&](Group* chunk, int count, const Group* next, int num_next) {
    return AttendChunk(call, chunk, count, next, num_next);
  });
}

KernelResult Attend(const QueryTile& tile, const AttendArgs& args, RowState state, void* scratch) {
  Call call;
  call.state = state;
  StartVectorCall(tile, args, KeyOrderOf(tile, args), scratch, call);
  return AttendPages(call);
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_ATTEND_INL_H_
