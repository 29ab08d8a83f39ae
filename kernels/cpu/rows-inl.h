// Starting, finishing and merging rows. Textually included once per ISA, after math-inl.h and elements-inl.h.
#ifndef KERNELS_CPU_ROWS_INL_H_
#define KERNELS_CPU_ROWS_INL_H_

namespace hybridgen {
namespace {

void InitRows(const QueryTile& tile, const float* sinks, RowState state) {
  const int vecs = (tile.head_size + 15) / 16;
  for (int row = 0; row < tile.num_tokens * tile.group; ++row) {
    const float sink = sinks == nullptr ? kMinusInfinity : sinks[row % tile.group];
    state.max[row] = sink;
    state.sum[row] = sink == kMinusInfinity ? 0.0f : 1.0f;
    for (int j = 0; j < vecs; ++j) Store(state.acc + (static_cast<size_t>(row) * vecs + j) * 16, Zero());
  }
}

void FinalizeRows(const QueryTile& tile, RowState state, const RowOutput& out) {
  const int vecs = (tile.head_size + 15) / 16;
  for (int row = 0; row < tile.num_tokens * tile.group; ++row) {
    const int token = row / tile.group;
    const int head = row % tile.group;
    const float sum = state.sum[row];
    const bool empty = sum == 0.0f;
    char* o = static_cast<char*>(out.o) +
              (token * out.token_stride + head * out.head_stride) * static_cast<int64_t>(BytesOf(out.dtype));
    for (int j = 0; j < vecs; ++j) {
      const Vec acc = Load(state.acc + (static_cast<size_t>(row) * vecs + j) * 16);
      StoreRow(o, out.dtype, 16 * j, tile.head_size, empty ? Zero() : Mul(Div(acc, Set(sum)), Set(out.scale)));
    }
    if (out.lse != nullptr) {
      out.lse[token * out.lse_token_stride + head * out.lse_head_stride] =
          empty ? kMinusInfinity : state.max[row] + __builtin_logf(sum);
    }
  }
}

// The rule of partial.h for any number of partials at once.
float MergeRows(const float* const* o, const float* lse, int num_partials, int head_size, void* out, DType dtype) {
  float max = kMinusInfinity;
  for (int p = 0; p < num_partials; ++p) max = max > lse[p] ? max : lse[p];
  float acc[kMaxHeadSize];
  const int vecs = (head_size + 15) / 16;
  for (int j = 0; j < vecs; ++j) Store(acc + 16 * j, Zero());
  float sum = 0.0f;
  for (int p = 0; p < num_partials; ++p) {
    if (lse[p] == kMinusInfinity) continue;  // empty, also when all are: -inf - -inf is no number
    const float weight = Exp(lse[p] - max);
    sum += weight;
    for (int j = 0; j < vecs; ++j) {
      const Vec part = LoadRow(reinterpret_cast<const char*>(o[p]), DType::kFloat32, 16 * j, head_size);
      Store(acc + 16 * j, Fma(Set(weight), part, Load(acc + 16 * j)));
    }
  }
  const bool empty = sum == 0.0f;
  for (int j = 0; j < vecs; ++j) {
    StoreRow(static_cast<char*>(out), dtype, 16 * j, head_size, empty ? Zero() : Div(Load(acc + 16 * j), Set(sum)));
  }
  return empty ? kMinusInfinity : max + __builtin_logf(sum);
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_ROWS_INL_H_
