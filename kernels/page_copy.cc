// Element moves between strided rows and packed pages, templated on the element's bits and on the packed lane.
#include "kernels/page_copy.h"

#include <cstring>

namespace hybridgen {
namespace {

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

// row[0, head_size) -> packed, with the padded dims set to zero. Null: a row of zeros.
template <typename T>
void Scatter(const T* row, int head_size, const PackedRow& at, T* page) {
  const int padded = PaddedHeadSize(head_size);
  constexpr T kZero = 0;
  T* run = page + at.base;
  for (int dim = 0; dim < padded; dim += at.run, run += at.jump) {
    for (int i = 0; i < at.run; ++i) {
      Move<T>(run + i * at.step, row != nullptr && dim + i < head_size ? row + dim + i : &kZero);
    }
  }
}

template <typename T>
void Gather(const T* page, const PackedRow& at, int head_size, T* row) {
  const T* run = page + at.base;
  for (int dim = 0; dim < head_size; dim += at.run, run += at.jump) {
    for (int i = 0; i < at.run && dim + i < head_size; ++i) Move<T>(row + dim + i, run + i * at.step);
  }
}

template <typename T>
void WriteRole(KvRole role, const WriteArgs& args, uint64_t page_address, const void* source, int64_t token_stride,
               int64_t head_stride) {
  const PageGeometry& g = args.geometry;
  T* page = reinterpret_cast<T*>(page_address);
  for (int head = 0; head < g.kv_heads; ++head) {
    for (int t = 0; t < args.num_tokens; ++t) {
      const T* row = static_cast<const T*>(source) + t * token_stride + head * head_stride;
      const int token = args.offset + t;
      if (g.format == PageFormat::kStrided) {
        std::memcpy(page + StridedOffset(role, g, head, token), row, g.head_size * sizeof(T));
      } else {
        Scatter<T>(row, g.head_size, RowOf(role, g, head, token), page);
      }
    }
  }
}

template <typename T>
void Write(const WriteArgs& args) {
  WriteRole<T>(KvRole::kKey, args, args.k_page, args.key, args.key_token_stride, args.key_head_stride);
  WriteRole<T>(KvRole::kValue, args, args.v_page, args.value, args.value_token_stride, args.value_head_stride);
}

template <typename T>
void Convert(KvRole role, const PageGeometry& from, uint64_t from_page, const PageGeometry& to, uint64_t to_page,
             int num_tokens) {
  const T* source = reinterpret_cast<const T*>(from_page);
  T* target = reinterpret_cast<T*>(to_page);
  T buffer[kMaxHeadSize];
  for (int head = 0; head < to.kv_heads; ++head) {
    for (int token = 0; token < num_tokens; ++token) {
      const T* row = buffer;
      if (from.format == PageFormat::kStrided) {
        row = source + StridedOffset(role, from, head, token);
      } else {
        Gather<T>(source, RowOf(role, from, head, token), from.head_size, buffer);
      }
      if (to.format == PageFormat::kStrided) {
        std::memcpy(target + StridedOffset(role, to, head, token), row, to.head_size * sizeof(T));
      } else {
        Scatter<T>(row, to.head_size, RowOf(role, to, head, token), target);
      }
    }
    if (to.format == PageFormat::kStrided) continue;
    for (int token = num_tokens; token < to.page_tokens; ++token) {
      Scatter<T>(nullptr, to.head_size, RowOf(role, to, head, token), target);
    }
  }
}

}  // namespace

void WriteKv(const WriteArgs& args) {
  args.geometry.dtype == DType::kFloat32 ? Write<uint32_t>(args) : Write<uint16_t>(args);
}

void ConvertPage(KvRole role, const PageGeometry& from, uint64_t from_page, const PageGeometry& to, uint64_t to_page,
                 int num_tokens) {
  const bool same_page = from.format == PageFormat::kPackedV1 && to.format == PageFormat::kPackedV1 &&
                         from.page_tokens == to.page_tokens && num_tokens == to.page_tokens;
  if (same_page) {
    std::memcpy(reinterpret_cast<void*>(to_page), reinterpret_cast<const void*>(from_page),
                PackedPageBytes(to.dtype, to.kv_heads, to.page_tokens, to.head_size));
    return;
  }
  to.dtype == DType::kFloat32 ? Convert<uint32_t>(role, from, from_page, to, to_page, num_tokens)
                              : Convert<uint16_t>(role, from, from_page, to, to_page, num_tokens);
}

}  // namespace hybridgen
