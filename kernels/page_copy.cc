// Element moves between strided rows and packed pages. Whole groups of 16 tokens move by 16-byte vectors, which every
// 64-bit CPU has: the moves wait for memory, not for shuffles, so that one copy of the code serves all ISA levels.
#include "kernels/page_copy.h"

#include <algorithm>
#include <cstring>

#include "kernels/float8.h"
#include "kernels/int8_page.h"

namespace hybridgen {
namespace {

constexpr int kGroup = kPackedTokenGroup;
static_assert(kGroup == 16 && kPackedDimGroup == 16, "the transpositions below are of 16 tokens or 16 dims");

// One token's row in a packed page: dim d lies at base + d / run * jump + d % run * step (elements).
struct PackedRow {
  size_t base;
  int run;
  size_t jump;
  int step;
};

PackedRow RowOf(KvRole role, const PageGeometry& g, int head, int token) {
  const int lane = PackedLane(g.dtype);
  if (role == KvRole::kKey) {
    return {PackedKeyOffset(g.dtype, g.page_tokens, g.head_size, head, token, 0), lane,
            static_cast<size_t>(kPackedTokenGroup) * lane, 1};
  }
  return {PackedValueOffset(g.dtype, g.page_tokens, g.head_size, head, token, 0), kPackedDimGroup,
          static_cast<size_t>(kPackedDimGroup) * g.page_tokens, lane};
}

size_t StridedOffset(KvRole role, const PageGeometry& g, int head, int token) {
  return role == KvRole::kKey ? head * g.k_head_stride + token * g.k_token_stride
                              : head * g.v_head_stride + token * g.v_token_stride;
}

// Strided rows may be aligned to their element only by the engine's word, so elements move by memcpy.
template <typename T>
void Move(void* to, const void* from) {
  std::memcpy(to, from, sizeof(T));
}

// row[0, head_size) -> packed, with the padded dims set to zero.
template <typename T>
void Scatter(const T* row, int head_size, const PackedRow& at, T* page) {
  const int padded = PaddedHeadSize(head_size);
  constexpr T kZero = 0;
  T* run = page + at.base;
  for (int dim = 0; dim < padded; dim += at.run, run += at.jump) {
    for (int i = 0; i < at.run; ++i) Move<T>(run + i * at.step, dim + i < head_size ? row + dim + i : &kZero);
  }
}

template <typename T>
void Gather(const T* page, const PackedRow& at, int head_size, T* row) {
  const T* run = page + at.base;
  for (int dim = 0; dim < head_size; dim += at.run, run += at.jump) {
    for (int i = 0; i < at.run && dim + i < head_size; ++i) Move<T>(row + dim + i, run + i * at.step);
  }
}

// 16 bytes of elements.
template <typename T>
struct Vec {
  typedef T Lanes __attribute__((vector_size(16)));
  static constexpr int kLanes = 16 / sizeof(T);
};

// Any alignment.
template <typename T>
typename Vec<T>::Lanes Load(const void* p) {
  typename Vec<T>::Lanes x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}

template <typename T>
void Store(void* p, typename Vec<T>::Lanes x) {
  std::memcpy(p, &x, sizeof(x));
}

// The same of units [unit, unit + kLanes) of a row: where the row ends half-way, which only single bytes do, nothing
// behind its end is touched, and zeros are loaded.
template <typename T>
typename Vec<T>::Lanes LoadUnits(const void* p, int unit, int units) {
  typename Vec<T>::Lanes x = {};
  std::memcpy(&x, p, sizeof(T) > 1 || unit + Vec<T>::kLanes <= units ? sizeof(x) : sizeof(x) / 2);
  return x;
}

template <typename T>
void StoreUnits(void* p, typename Vec<T>::Lanes x, int unit, int units) {
  std::memcpy(p, &x, sizeof(T) > 1 || unit + Vec<T>::kLanes <= units ? sizeof(x) : sizeof(x) / 2);
}

// The lower (upper) halves of a and b, element by element.
Vec<uint32_t>::Lanes InterleaveLower(Vec<uint32_t>::Lanes a, Vec<uint32_t>::Lanes b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
Vec<uint32_t>::Lanes InterleaveUpper(Vec<uint32_t>::Lanes a, Vec<uint32_t>::Lanes b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
Vec<uint16_t>::Lanes InterleaveLower(Vec<uint16_t>::Lanes a, Vec<uint16_t>::Lanes b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
Vec<uint16_t>::Lanes InterleaveUpper(Vec<uint16_t>::Lanes a, Vec<uint16_t>::Lanes b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
Vec<uint8_t>::Lanes InterleaveLower(Vec<uint8_t>::Lanes a, Vec<uint8_t>::Lanes b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
Vec<uint8_t>::Lanes InterleaveUpper(Vec<uint8_t>::Lanes a, Vec<uint8_t>::Lanes b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Interleaving the two halves of 2^n elements rotates the bits of an element's index by one; as many rounds as a vector
// has index bits swap row and column of a square.
template <typename T>
void TransposeSquare(typename Vec<T>::Lanes (&x)[Vec<T>::kLanes]) {
  constexpr int n = Vec<T>::kLanes;
#pragma GCC unroll 4
  for (int round = 1; round < n; round *= 2) {
    typename Vec<T>::Lanes y[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      y[2 * i] = InterleaveLower(x[i], x[n / 2 + i]);
      y[2 * i + 1] = InterleaveUpper(x[i], x[n / 2 + i]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) x[i] = y[i];
  }
}

// rows[16][units] -> group[units][16], units rounded up to a vector. A unit U is one element or, where dims are stored
// in pairs, two.
template <typename U, typename T>
void TransposeRows(const T* const* rows, int units, T* group) {
  constexpr int n = Vec<U>::kLanes;
  constexpr int elements = sizeof(U) / sizeof(T);
  for (int token = 0; token < kGroup; token += n) {
    for (int unit = 0; unit < units; unit += n) {
      typename Vec<U>::Lanes x[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) x[i] = LoadUnits<U>(rows[token + i] + unit * elements, unit, units);
      TransposeSquare<U>(x);
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) Store<U>(group + ((unit + i) * kGroup + token) * elements, x[i]);
    }
  }
}

// group[units][16] -> rows[16][units].
template <typename U, typename T>
void TransposeGroup(const T* group, int units, T* const* rows) {
  constexpr int n = Vec<U>::kLanes;
  constexpr int elements = sizeof(U) / sizeof(T);
  for (int token = 0; token < kGroup; token += n) {
    for (int unit = 0; unit < units; unit += n) {
      typename Vec<U>::Lanes x[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) x[i] = Load<U>(group + ((unit + i) * kGroup + token) * elements);
      TransposeSquare<U>(x);
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) StoreUnits<U>(rows[token + i] + unit * elements, x[i], unit, units);
    }
  }
}

// Eight dims of V of `lane` tokens (one, or two of bfloat16) into their places in a packed block, and back.
void PackHalf(const uint32_t* const* rows, int dim, int, uint32_t* block) { std::memcpy(block, rows[0] + dim, 32); }
void PackHalf(const uint16_t* const* rows, int dim, int lane, uint16_t* block) {
  if (lane == 1) {
    std::memcpy(block, rows[0] + dim, 16);
    return;
  }
  const Vec<uint16_t>::Lanes even = Load<uint16_t>(rows[0] + dim), odd = Load<uint16_t>(rows[1] + dim);
  Store<uint16_t>(block, InterleaveLower(even, odd));
  Store<uint16_t>(block + 8, InterleaveUpper(even, odd));
}
void PackHalf(const uint8_t* const* rows, int dim, int, uint8_t* block) { std::memcpy(block, rows[0] + dim, 8); }
void UnpackHalf(const uint32_t* block, int dim, int, uint32_t* const* rows) { std::memcpy(rows[0] + dim, block, 32); }
void UnpackHalf(const uint16_t* block, int dim, int lane, uint16_t* const* rows) {
  if (lane == 1) {
    std::memcpy(rows[0] + dim, block, 16);
    return;
  }
  const Vec<uint16_t>::Lanes lower = Load<uint16_t>(block), upper = Load<uint16_t>(block + 8);
  Store<uint16_t>(rows[0] + dim, __builtin_shufflevector(lower, upper, 0, 2, 4, 6, 8, 10, 12, 14));
  Store<uint16_t>(rows[1] + dim, __builtin_shufflevector(lower, upper, 1, 3, 5, 7, 9, 11, 13, 15));
}

void UnpackHalf(const uint8_t* block, int dim, int, uint8_t* const* rows) { std::memcpy(rows[0] + dim, block, 8); }

// Rows of 16 tokens -> their group in a packed page, padded dims set to zero. `token` is the first one's, a multiple
// of 16.
template <typename T>
void PackGroup(KvRole role, const PageGeometry& g, int head, int token, const T* const* rows, T* page) {
  const int lane = PackedLane(g.dtype);
  const int head_size = g.head_size;
  if (role == KvRole::kKey) {
    T* group = page + PackedKeyOffset(g.dtype, g.page_tokens, head_size, head, token, 0);
    if (lane == 2) {
      TransposeRows<uint32_t>(rows, head_size / 2, group);
    } else {
      TransposeRows<T>(rows, head_size, group);
    }
    std::memset(group + head_size * kGroup, 0, (PaddedHeadSize(head_size) - head_size) * kGroup * sizeof(T));
    return;
  }
  T* group = page + PackedValueOffset(g.dtype, g.page_tokens, head_size, head, token, 0);
  const size_t jump = static_cast<size_t>(kPackedDimGroup) * g.page_tokens;  // from one block of 16 dims to the next
  for (int t = 0; t < kGroup; t += lane, group += kPackedDimGroup * lane) {
    for (int dim = 0; dim < head_size; dim += 8) {
      PackHalf(rows + t, dim, lane, group + dim / kPackedDimGroup * jump + dim % kPackedDimGroup * lane);
    }
    if (head_size == PaddedHeadSize(head_size)) continue;
    std::memset(group + head_size / kPackedDimGroup * jump + 8 * lane, 0, 8 * lane * sizeof(T));
  }
}

// The way back; padded dims are not read.
template <typename T>
void UnpackGroup(KvRole role, const PageGeometry& g, int head, int token, const T* page, T* const* rows) {
  const int lane = PackedLane(g.dtype);
  const int head_size = g.head_size;
  if (role == KvRole::kKey) {
    const T* group = page + PackedKeyOffset(g.dtype, g.page_tokens, head_size, head, token, 0);
    if (lane == 2) {
      TransposeGroup<uint32_t>(group, head_size / 2, rows);
    } else {
      TransposeGroup<T>(group, head_size, rows);
    }
    return;
  }
  const T* group = page + PackedValueOffset(g.dtype, g.page_tokens, head_size, head, token, 0);
  const size_t jump = static_cast<size_t>(kPackedDimGroup) * g.page_tokens;
  for (int t = 0; t < kGroup; t += lane, group += kPackedDimGroup * lane) {
    for (int dim = 0; dim < head_size; dim += 8) {
      UnpackHalf(group + dim / kPackedDimGroup * jump + dim % kPackedDimGroup * lane, dim, lane, rows + t);
    }
  }
}

// One role of WriteArgs.
struct Source {
  const void* data;
  DType dtype;
  int64_t token_stride;
  int64_t head_stride;
  float scale;
};

// A source row as a page stores it: where it lies, or rounded to float8 in `buffer`.
template <typename T>
const T* RowAsStored(const Source& source, const PageGeometry& g, int64_t offset, uint8_t* buffer) {
  if constexpr (sizeof(T) > 1) {
    return static_cast<const T*>(source.data) + offset;
  } else {
    NarrowToFloat8(source.dtype, source.data, offset, g.head_size, source.scale, g.dtype, buffer);
    return buffer;
  }
}

template <typename T>
void WriteRole(KvRole role, const WriteArgs& args, uint64_t page_address, const Source& source) {
  const PageGeometry& g = args.geometry;
  T* page = reinterpret_cast<T*>(page_address);
  uint8_t narrowed[kGroup][kMaxHeadSize];
  for (int head = 0; head < g.kv_heads; ++head) {
    int64_t offset = head * source.head_stride;
    const int end = args.offset + args.num_tokens;
    for (int token = args.offset, count; token < end; token += count, offset += count * source.token_stride) {
      const bool group = g.format == PageFormat::kPackedV1 && token % kGroup == 0 && token + kGroup <= end;
      count = group ? kGroup : 1;
      const T* rows[kGroup];
      for (int t = 0; t < count; ++t) {
        rows[t] = RowAsStored<T>(source, g, offset + t * source.token_stride, narrowed[t]);
      }
      if (group) {
        PackGroup<T>(role, g, head, token, rows, page);
      } else if (g.format == PageFormat::kPackedV1) {
        Scatter<T>(rows[0], g.head_size, RowOf(role, g, head, token), page);
      } else {
        std::memcpy(page + StridedOffset(role, g, head, token), rows[0], g.head_size * sizeof(T));
      }
    }
  }
}

template <typename T>
void Write(const WriteArgs& args) {
  WriteRole<T>(KvRole::kKey, args, args.k_page,
               {args.key, args.dtype, args.key_token_stride, args.key_head_stride, args.k_scale});
  WriteRole<T>(KvRole::kValue, args, args.v_page,
               {args.value, args.dtype, args.value_token_stride, args.value_head_stride, args.v_scale});
}

template <typename T>
void Convert(KvRole role, const PageGeometry& from, uint64_t from_page, const PageGeometry& to, uint64_t to_page,
             int num_tokens) {
  static constexpr T kZeros[kMaxHeadSize] = {};
  const T* source = reinterpret_cast<const T*>(from_page);
  T* target = reinterpret_cast<T*>(to_page);
  T buffer[kGroup][kMaxHeadSize];
  const int end = to.format == PageFormat::kPackedV1 ? to.page_tokens : num_tokens;
  for (int head = 0; head < to.kv_heads; ++head) {
    for (int token = 0; token < end; token += kGroup) {
      const int count = std::clamp(num_tokens - token, 0, kGroup);  // tokens of this group to copy
      // The group as rows: those of a strided source, or a packed source's unpacked into a strided target or the
      // buffer.
      const T* rows[kGroup];
      T* unpacked[kGroup];
      for (int t = 0; t < count; ++t) {
        if (from.format == PageFormat::kStrided) {
          rows[t] = source + StridedOffset(role, from, head, token + t);
          continue;
        }
        unpacked[t] = to.format == PageFormat::kStrided ? target + StridedOffset(role, to, head, token + t) : buffer[t];
        rows[t] = unpacked[t];
        if (count < kGroup) Gather<T>(source, RowOf(role, from, head, token + t), from.head_size, unpacked[t]);
      }
      if (from.format == PageFormat::kPackedV1 && count == kGroup) {
        UnpackGroup<T>(role, from, head, token, source, unpacked);
      }
      if (to.format == PageFormat::kPackedV1) {
        for (int t = count; t < kGroup; ++t) rows[t] = kZeros;
        PackGroup<T>(role, to, head, token, rows, target);
      } else if (from.format == PageFormat::kStrided) {
        for (int t = 0; t < count; ++t) {
          std::memcpy(target + StridedOffset(role, to, head, token + t), rows[t], to.head_size * sizeof(T));
        }
      }
    }
  }
}

// f(an unsigned integer of the dtype's size).
template <typename F>
void ForElementSize(DType dtype, F f) {
  switch (DTypeSize(dtype)) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    default:
      return f(uint32_t{});
  }
}

}  // namespace

void WriteKv(const WriteArgs& args) {
  if (args.geometry.format == PageFormat::kPackedInt8V1) return WriteInt8Kv(args);
  ForElementSize(args.geometry.dtype, [&](auto element) { Write<decltype(element)>(args); });
}

void ConvertPage(KvRole role, const PageGeometry& from, uint64_t from_page, const PageGeometry& to, uint64_t to_page,
                 int num_tokens) {
  const bool same_page = from.format != PageFormat::kStrided && from.format == to.format &&
                         from.page_tokens == to.page_tokens && num_tokens == to.page_tokens;
  if (same_page) {
    std::memcpy(reinterpret_cast<void*>(to_page), reinterpret_cast<const void*>(from_page), HostPageBytes(to));
    return;
  }
  if (from.format == PageFormat::kPackedInt8V1 || to.format == PageFormat::kPackedInt8V1) {
    return ConvertInt8Page(role, from, from_page, to, to_page, num_tokens);
  }
  ForElementSize(to.dtype,
                 [&](auto element) { Convert<decltype(element)>(role, from, from_page, to, to_page, num_tokens); });
}

}  // namespace hybridgen
