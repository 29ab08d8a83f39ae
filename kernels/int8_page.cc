// Quantised tokens, one KV head at a time: rows of elements become float32, then int8 with a scale, then bytes in their
// places.
#include "kernels/int8_page.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace hybridgen {
namespace {

constexpr int kQuad = 4;  // tokens that V stores side by side

// One token of one KV head.
struct Int8Row {
  float scale;
  int8_t n[kMaxHeadSize];
};

// Any alignment: strided rows may be aligned to their element only by the engine's word.
template <typename T, typename F>
void Widen(const void* from, int size, float* to, F to_float) {
  for (int i = 0; i < size; ++i) {
    T x;
    std::memcpy(&x, static_cast<const char*>(from) + i * sizeof(T), sizeof(T));
    to[i] = to_float(x);
  }
}

template <typename T, typename F>
void Narrow(const float* from, int size, void* to, F from_float) {
  for (int i = 0; i < size; ++i) {
    const T x = from_float(from[i]);
    std::memcpy(static_cast<char*>(to) + i * sizeof(T), &x, sizeof(T));
  }
}

void ToFloats(DType dtype, const void* from, int size, float* to) {
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(to, from, size * sizeof(float));
      return;
    case DType::kFloat16:
      return Widen<uint16_t>(from, size, to, Float16ToFloat);
    case DType::kBFloat16:
      return Widen<uint16_t>(from, size, to, BFloat16ToFloat);
    case DType::kFloat8E4M3:
      return Widen<uint8_t>(from, size, to, Float8E4M3ToFloat);
    case DType::kFloat8E5M2:
      return Widen<uint8_t>(from, size, to, Float8E5M2ToFloat);
  }
}

void FromFloats(DType dtype, const float* from, int size, void* to) {
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(to, from, size * sizeof(float));
      return;
    case DType::kFloat16:
      return Narrow<uint16_t>(from, size, to, FloatToFloat16);
    case DType::kBFloat16:
      return Narrow<uint16_t>(from, size, to, FloatToBFloat16);
    case DType::kFloat8E4M3:
      return Narrow<uint8_t>(from, size, to, FloatToFloat8E4M3);
    case DType::kFloat8E5M2:
      return Narrow<uint8_t>(from, size, to, FloatToFloat8E5M2);
  }
}

// x holds zeros from head_size to a multiple of 16.
void Quantise(const float* x, int padded, Int8Row& row) {
  // As integers magnitudes are in the order of their floats, and what is not finite comes last.
  int32_t largest = 0;
  for (int i = 0; i < padded; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    largest = std::max(largest, bits & 0x7fffffff);
  }
  float magnitude;
  std::memcpy(&magnitude, &largest, sizeof(magnitude));
  if (!(magnitude >= kInt8LeastMagnitude && magnitude <= std::numeric_limits<float>::max())) {
    row.scale = magnitude < kInt8LeastMagnitude ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    std::memset(row.n, 0, padded);
    return;
  }
  row.scale = magnitude / 127;
  const float inverse = 127 / magnitude;
  for (int i = 0; i < padded; ++i) {
    // The lower bits of a float32 near 1.5 * 2^23 are the integer, rounded to nearest even.
    const float shifted = x[i] * inverse + 0x1.8p23f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    row.n[i] = static_cast<int8_t>(bits);
  }
}

void Dequantise(const Int8Row& row, int head_size, float* x) {
  for (int i = 0; i < head_size; ++i) x[i] = row.scale * static_cast<float>(row.n[i]);
}

// Bytes of one KV head of a page.
struct Head {
  char* values;
  int page_tokens;
  int padded;
};

Head HeadOf(const PageGeometry& g, uint64_t page, int head) {
  return {reinterpret_cast<char*>(page) + head * Int8HeadBytes(g.page_tokens, g.head_size), g.page_tokens,
          PaddedHeadSize(g.head_size)};
}

float* ScaleOf(KvRole role, const Head& head, int token) {
  const size_t offset = role == KvRole::kKey ? Int8KeyScaleOffset(head.page_tokens, head.padded, 0, token)
                                             : Int8ValueScaleOffset(head.page_tokens, head.padded, 0, token);
  return reinterpret_cast<float*>(head.values + offset);
}

// The four bytes of dims [dim, dim + 4) of a token of K; the one byte of a dim of a token of V.
char* KeyAt(const Head& head, int token, int dim) {
  return head.values + Int8KeyOffset(head.page_tokens, head.padded, 0, token, dim);
}
char* ValueAt(const Head& head, int token, int dim) {
  return head.values + Int8ValueOffset(head.page_tokens, head.padded, 0, token, dim);
}

void StoreToken(KvRole role, const Head& head, int token, const Int8Row& row) {
  *ScaleOf(role, head, token) = row.scale;
  for (int dim = 0; role == KvRole::kKey && dim < head.padded; dim += 4) {
    std::memcpy(KeyAt(head, token, dim), row.n + dim, 4);
  }
  for (int dim = 0; role == KvRole::kValue && dim < head.padded; ++dim) {
    *ValueAt(head, token, dim) = static_cast<char>(row.n[dim]);
  }
}

// Four tokens of V from `token` on, a multiple of 4: whole quads.
void StoreValueQuads(const Head& head, int token, const Int8Row* rows) {
  for (int t = 0; t < kQuad; ++t) *ScaleOf(KvRole::kValue, head, token + t) = rows[t].scale;
  for (int dim = 0; dim < head.padded; dim += kPackedDimGroup) {
    uint32_t quads[kPackedDimGroup];
    for (int d = 0; d < kPackedDimGroup; ++d) {
      const auto byte = [&](int t) { return static_cast<uint32_t>(static_cast<uint8_t>(rows[t].n[dim + d])); };
      quads[d] = byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
    }
    std::memcpy(ValueAt(head, token, dim), quads, sizeof(quads));
  }
}

void LoadToken(KvRole role, const Head& head, int token, Int8Row& row) {
  row.scale = *ScaleOf(role, head, token);
  for (int dim = 0; role == KvRole::kKey && dim < head.padded; dim += 4) {
    std::memcpy(row.n + dim, KeyAt(head, token, dim), 4);
  }
  for (int dim = 0; role == KvRole::kValue && dim < head.padded; ++dim) {
    row.n[dim] = static_cast<int8_t>(*ValueAt(head, token, dim));
  }
}

// Tokens [begin, end) of a head from rows that `load(token, row)` gives.
template <typename Load>
void StoreTokens(KvRole role, const Head& head, int begin, int end, const Load& load) {
  Int8Row rows[kQuad];
  for (int token = begin; token < end;) {
    const bool quad = role == KvRole::kValue && token % kQuad == 0 && token + kQuad <= end;
    const int count = quad ? kQuad : 1;
    for (int t = 0; t < count; ++t) load(token + t, rows[t]);
    quad ? StoreValueQuads(head, token, rows) : StoreToken(role, head, token, rows[0]);
    token += count;
  }
}

// Elements of one token in a page of exact values.
struct ExactRow {
  const PageGeometry& g;
  KvRole role;
  char* page;
  int head;
  int token;

  char* At(int dim) const {
    int64_t offset;
    if (g.format == PageFormat::kStrided) {
      offset = role == KvRole::kKey ? head * g.k_head_stride + token * g.k_token_stride + dim
                                    : head * g.v_head_stride + token * g.v_token_stride + dim;
    } else {
      const auto packed = role == KvRole::kKey ? PackedKeyOffset : PackedValueOffset;
      offset = static_cast<int64_t>(packed(g.dtype, g.page_tokens, g.head_size, head, token, dim));
    }
    return page + offset * static_cast<int64_t>(DTypeSize(g.dtype));
  }
  int run() const { return g.format == PageFormat::kStrided ? g.head_size : 1; }  // dims side by side

  void Load(float* x) const {
    for (int dim = 0; dim < g.head_size; dim += run()) ToFloats(g.dtype, At(dim), run(), x + dim);
  }
  void Store(const float* x) const {
    for (int dim = 0; dim < g.head_size; dim += run()) FromFloats(g.dtype, x + dim, run(), At(dim));
  }
  // Padded dims of a packed page, or whole tokens that do not exist.
  void Clear(int from_dim) const {
    for (int dim = from_dim; dim < PaddedHeadSize(g.head_size); ++dim) std::memset(At(dim), 0, DTypeSize(g.dtype));
  }
};

void WriteRole(KvRole role, const WriteArgs& args, uint64_t page, const void* source, int64_t token_stride,
               int64_t head_stride) {
  const PageGeometry& g = args.geometry;
  const int64_t element = static_cast<int64_t>(DTypeSize(args.dtype));
  float x[kMaxHeadSize] = {};
  for (int h = 0; h < g.kv_heads; ++h) {
    const Head head = HeadOf(g, page, h);
    StoreTokens(role, head, args.offset, args.offset + args.num_tokens, [&](int token, Int8Row& row) {
      const int64_t offset = (token - args.offset) * token_stride + h * head_stride;
      ToFloats(args.dtype, static_cast<const char*>(source) + offset * element, g.head_size, x);
      Quantise(x, head.padded, row);
    });
  }
}

void ToInt8(KvRole role, const PageGeometry& from, uint64_t from_page, const PageGeometry& to, uint64_t to_page,
            int num_tokens) {
  float x[kMaxHeadSize] = {};
  for (int h = 0; h < to.kv_heads; ++h) {
    const Head head = HeadOf(to, to_page, h);
    StoreTokens(role, head, 0, to.page_tokens, [&](int token, Int8Row& row) {
      if (token >= num_tokens) {
        row = Int8Row{};
      } else if (from.format == PageFormat::kPackedInt8V1) {
        LoadToken(role, HeadOf(from, from_page, h), token, row);
      } else {
        ExactRow{from, role, reinterpret_cast<char*>(from_page), h, token}.Load(x);
        Quantise(x, head.padded, row);
      }
    });
  }
}

void FromInt8(KvRole role, const PageGeometry& from, uint64_t from_page, const PageGeometry& to, uint64_t to_page,
              int num_tokens) {
  const bool packed = to.format == PageFormat::kPackedV1;
  float x[kMaxHeadSize];
  Int8Row row;
  for (int h = 0; h < to.kv_heads; ++h) {
    const Head head = HeadOf(from, from_page, h);
    for (int token = 0; token < (packed ? to.page_tokens : num_tokens); ++token) {
      const ExactRow target = {to, role, reinterpret_cast<char*>(to_page), h, token};
      if (token < num_tokens) {
        LoadToken(role, head, token, row);
        Dequantise(row, to.head_size, x);
        target.Store(x);
      }
      if (packed) target.Clear(token < num_tokens ? to.head_size : 0);
    }
  }
}

}  // namespace

void WriteInt8Kv(const WriteArgs& args) {
  WriteRole(KvRole::kKey, args, args.k_page, args.key, args.key_token_stride, args.key_head_stride);
  WriteRole(KvRole::kValue, args, args.v_page, args.value, args.value_token_stride, args.value_head_stride);
}

void ConvertInt8Page(KvRole role, const PageGeometry& from, uint64_t from_page, const PageGeometry& to,
                     uint64_t to_page, int num_tokens) {
  to.format == PageFormat::kPackedInt8V1 ? ToInt8(role, from, from_page, to, to_page, num_tokens)
                                         : FromInt8(role, from, from_page, to, to_page, num_tokens);
}

}  // namespace hybridgen
