// Attention over selected tokens: 16 of them at a time are gathered into what the kernels of whole groups read.
// Textually included once per ISA, after attend-inl.h.
#ifndef KERNELS_CPU_SELECTED_INL_H_
#define KERNELS_CPU_SELECTED_INL_H_

namespace hybridgen {
namespace {

constexpr int kSelectedGroups = kSharedChunkGroups;  // gathered at a time

// 16 selected tokens that some row sees, or the last ones.
struct Picked {
  int count;
  int32_t slot[16];
  const char* k[16];  // the token's K; packed: inside its group
  const char* v[16];  // the page's V of the KV head
  int token[16];      // in the page
  int32_t position[16];
  int32_t first;  // least and largest position
  int32_t last;
};

HG_INLINE bool Sees(const QueryTile& tile, int token, int32_t position) {
  return position >= tile.kv_begin[token] && position < tile.kv_end[token];
}

HG_INLINE bool SeesAll(const QueryTile& tile, int token, const Picked& picked) {
  return picked.first >= tile.kv_begin[token] && picked.last < tile.kv_end[token];
}

// Takes the selected tokens from *next on; those that no row sees are left out.
void Pick(const Cursor& at, const SelectedTokens& selected, int* next, Picked& picked) {
  const QueryTile& tile = at.call->tile;
  const AttendArgs& args = *at.call->args;
  const Layout& layout = at.call->layout;
  const int page_tokens = args.geometry.page_tokens;
  // From one token of a 16-token group to the next: a packed token has a unit (GatherUnits) per 16 of them.
  const int64_t unit_bytes =
      args.geometry.dtype == DType::kBFloat16 ? 4 : static_cast<int64_t>(BytesOf(args.geometry.dtype));
  const int64_t token_bytes = at.call->packed ? unit_bytes : layout.key.token;
  picked.count = 0;
  for (; *next < selected.count && picked.count < 16; ++*next) {
    const int32_t slot = selected.slots[*next];
    const KvPage& page = args.pages[slot / page_tokens];
    const int token = slot % page_tokens;
    const int32_t position = page.first_position + token;
    bool seen = false;
    for (int row = 0; row < tile.num_tokens && !seen; ++row) seen = Sees(tile, row, position);
    if (!seen) continue;
    const int t = picked.count++;
    const char* k = reinterpret_cast<const char*>(args.k_base + page.k) + args.kv_head * at.address.k_head;
    picked.slot[t] = slot;
    picked.k[t] = k + token / 16 * at.address.k_group + token % 16 * token_bytes;
    picked.v[t] = reinterpret_cast<const char*>(args.v_base + page.v) + args.kv_head * at.address.v_head;
    picked.token[t] = token;
    picked.position[t] = position;
    if (t == 0 || position < picked.first) picked.first = position;
    if (t == 0 || position > picked.last) picked.last = position;
    for (int j = 0; j < at.call->vecs; ++j) Prefetch(picked.v[t] + j * layout.value.vec + token * layout.value.token);
  }
}

// The K of packed tokens side by side, as one packed group: [units][16], a unit being the dims that lie together.
// Tokens that do not exist are zeros.
template <typename Unit>
void GatherUnits(const Picked& picked, int units, Unit* out) {
  for (int t = 0; t < picked.count; ++t) {
    for (int u = 0; u < units; ++u)
      __builtin_memcpy(out + u * 16 + t, picked.k[t] + u * 16 * sizeof(Unit), sizeof(Unit));
  }
  for (int t = picked.count; t < 16; ++t) {
    for (int u = 0; u < units; ++u) out[u * 16 + t] = 0;
  }
}

// As the score functions of the call read it. Room for 16 * head_size floats at `out`.
void GatherKeys(const Call& call, const Picked& picked, float* out) {
  const PageGeometry& g = call.args->geometry;
  if (!call.packed) {
    TransposeKeys(picked.k, picked.count, g.dtype, g.head_size, out);
  } else if (BytesOf(g.dtype) == 1) {
    GatherUnits(picked, g.head_size, reinterpret_cast<uint8_t*>(out));
  } else if (g.dtype == DType::kFloat16) {
    GatherUnits(picked, g.head_size, reinterpret_cast<uint16_t*>(out));
  } else {
    GatherUnits(picked, g.dtype == DType::kFloat32 ? g.head_size : g.head_size / 2, reinterpret_cast<uint32_t*>(out));
  }
}

// V rows as float32 [16][vecs * 16]. Tokens that do not exist are zeros.
template <Elements kElements>
void GatherValueRows(const Call& call, const Picked& picked, float* out) {
  const Layout& layout = call.layout;
  for (int t = 0; t < 16; ++t) {
    float* row = out + static_cast<size_t>(t) * call.vecs * 16;
    for (int j = 0; j < call.vecs; ++j) {
      if (t >= picked.count) {
        Store(row + 16 * j, Zero());
        continue;
      }
      const char* v = picked.v[t] + j * layout.value.vec;
      if constexpr (kElements != Elements::kBF16Pairs) {
        if (j >= layout.full_vecs) {
          Store(row + 16 * j, LoadValues<kElements, Extent::kHalf>(v, layout.value.token, picked.token[t]));
          continue;
        }
      }
      Store(row + 16 * j, LoadValues<kElements, Extent::kFull>(v, layout.value.token, picked.token[t]));
    }
  }
}

void GatherValues(const Call& call, const Picked& picked, float* out) {
  switch (call.args->geometry.dtype) {
    case DType::kFloat32:
      return GatherValueRows<Elements::kF32>(call, picked, out);
    case DType::kFloat16:
      return GatherValueRows<Elements::kF16>(call, picked, out);
    case DType::kBFloat16:
      return call.packed ? GatherValueRows<Elements::kBF16Pairs>(call, picked, out)
                         : GatherValueRows<Elements::kBF16>(call, picked, out);
    case DType::kFloat8E4M3:
      return GatherValueRows<Elements::kF8E4M3>(call, picked, out);
    case DType::kFloat8E5M2:
      return GatherValueRows<Elements::kF8E5M2>(call, picked, out);
  }
}

using PickedLogitFn = float (*)(const QueryTile&, int, const Picked*, int, float*);

// LogitRow for tokens with positions of their own. kGiven: the scores are logits already.
template <bool kGiven, bool kSoftCap, bool kAlibi>
float PickedLogitRow(const QueryTile& tile, int row, const Picked* picked, int num_groups, float* scores) {
  const int token = row / tile.group;
  Vec max = Set(kMinusInfinity);
  for (int i = 0; i < num_groups; ++i) {
    float* x = scores + 16 * i;
    if constexpr (!kGiven) {
      float distance[16] = {};
      if constexpr (kAlibi) {
        for (int t = 0; t < picked[i].count; ++t) {
          distance[t] = static_cast<float>(picked[i].position[t] - tile.query_position[token]);
        }
      }
      Store(x, LogitsOf<kSoftCap, kAlibi>(tile, row, Load(x), Load(distance)));
    }
    const bool all = SeesAll(tile, token, picked[i]);
    for (int t = 0; t < 16; ++t) {
      if (t >= picked[i].count || (!all && !Sees(tile, token, picked[i].position[t]))) x[t] = kMinusInfinity;
    }
    max = Max(max, Load(x));
  }
  return HorizontalMax(max);
}

PickedLogitFn PickedLogits(const QueryTile& tile, bool given) {
  if (given) return PickedLogitRow<true, false, false>;
  const bool alibi = tile.alibi_slopes != nullptr;
  return tile.soft_cap > 0.0f ? (alibi ? PickedLogitRow<false, true, true> : PickedLogitRow<false, true, false>)
                              : (alibi ? PickedLogitRow<false, false, true> : PickedLogitRow<false, false, false>);
}

// One block of rows over gathered groups. False: a logit is +inf.
bool AttendPicked(const Call& call, const SelectedTokens& selected, PickedLogitFn logits, const Picked* picked,
                  int num_groups, int first_row) {
  const QueryTile& tile = call.tile;
  const int rows = AtMost(kRowBlock, call.rows - first_row);
  const size_t row_floats = static_cast<size_t>(call.vecs) * 16;
  if (selected.logits != nullptr) {
    for (int r = 0; r < rows; ++r) {
      const float* given = selected.logits + (first_row + r) * selected.logit_row_stride;
      for (int i = 0; i < num_groups; ++i) {
        float* scores = call.scores + r * kScoreStride + 16 * i;
        for (int t = 0; t < picked[i].count; ++t) scores[t] = given[picked[i].slot[t]];
      }
    }
  } else {
    KeyGroups keys;
    keys.count = num_groups;
    for (int i = 0; i < num_groups; ++i) {
      keys.k[i] = keys.next[i] =
          reinterpret_cast<const char*>(call.keys + static_cast<size_t>(i) * 16 * tile.head_size);
      keys.valid[i] = 16;
    }
    call.score[BlockSizeIndex(rows)](keys, call.layout, tile.head_size,
                                     call.q + static_cast<size_t>(first_row) * call.q_floats, call.scores);
  }
  float decay[kRowBlock];
  for (int r = 0; r < rows; ++r) {
    const int row = first_row + r;
    float* scores = call.scores + r * kScoreStride;
    const float chunk_max = logits(tile, row, picked, num_groups, scores);
    if (!WeightRow(chunk_max, call.unit, num_groups, scores, &call.state.max[row], &call.state.sum[row], &decay[r]))
      return false;
  }

  // Groups that every row of the block sees in full, and for the others tokens one by one: their V may be NaN.
  ValueGroups whole;
  whole.count = 0;
  bool partly[kSelectedGroups];
  for (int i = 0; i < num_groups; ++i) {
    partly[i] = false;
    for (int token = first_row / tile.group; token <= (first_row + rows - 1) / tile.group; ++token) {
      partly[i] |= !SeesAll(tile, token, picked[i]);
    }
    if (partly[i]) continue;
    whole.v[whole.count] = whole.next[whole.count] = reinterpret_cast<const char*>(call.values + i * 16 * row_floats);
    whole.p[whole.count] = call.scores + 16 * i;
    ++whole.count;
  }
  const int64_t row_bytes = static_cast<int64_t>(row_floats * sizeof(float));
  const Layout layout = {{}, {64, row_bytes}, call.vecs, 0, 0, {64, row_bytes}};
  float* acc = call.state.acc + first_row * row_floats;
  call.sum[BlockSizeIndex(rows)](whole, layout, rows, decay, acc);
  for (int i = 0; i < num_groups; ++i) {
    if (!partly[i]) continue;
    for (int r = 0; r < rows; ++r) {
      for (int t = 0; t < picked[i].count; ++t) {
        if (!Sees(tile, (first_row + r) / tile.group, picked[i].position[t])) continue;
        call.edge(reinterpret_cast<const char*>(call.values + i * 16 * row_floats), layout,
                  call.scores + r * kScoreStride + 16 * i, t, t + 1, acc + r * row_floats);
      }
    }
  }
  return true;
}

KernelResult AttendSelected(const QueryTile& tile, const AttendArgs& args, const SelectedTokens& selected,
                            RowState state, void* scratch) {
  Call call;
  call.state = state;
  const bool packed = args.geometry.format == PageFormat::kPackedV1;
  StartVectorCall(tile, args, packed ? KeyOrderOf(tile, args) : KeyOrder::kDimMajor, scratch, call);
  SetSum<Elements::kF32, PageFormat::kStrided>(call);
  const Cursor at = FirstPage(call);
  const PickedLogitFn logits = PickedLogits(tile, selected.logits != nullptr);
  Picked picked[kSelectedGroups];
  for (int next = 0; next < selected.count;) {
    int num_groups = 0;
    while (num_groups < kSelectedGroups && next < selected.count) {
      Picked& group = picked[num_groups];
      Pick(at, selected, &next, group);
      if (group.count == 0) break;
      if (selected.logits == nullptr) {
        GatherKeys(call, group, call.keys + static_cast<size_t>(num_groups) * 16 * tile.head_size);
      }
      ++num_groups;
    }
    if (num_groups == 0) break;
    for (int i = 0; i < num_groups; ++i) {
      GatherValues(call, picked[i], call.values + static_cast<size_t>(i) * 16 * 16 * call.vecs);
    }
    for (int row = 0; row < call.rows; row += kRowBlock) {
      if (!AttendPicked(call, selected, logits, picked, num_groups, row)) return KernelResult::kInfiniteLogit;
    }
  }
  return KernelResult::kOk;
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_SELECTED_INL_H_
