// What the launchers refuse, without CUDA.
#include "kernels/cuda/launch.h"

namespace hybridgen::cuda {
namespace {

constexpr int kMaxGridYZ = 65535;

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
// A stride in elements.
bool Aligned(int64_t stride, DType dtype) { return stride * static_cast<int64_t>(DTypeSize(dtype)) % 16 == 0; }
// Of elements of 2 bytes.
bool Aligned(const Rows& rows) {
  return Aligned(rows.data) && Aligned(rows.token_stride, DType::kFloat16) &&
         Aligned(rows.head_stride, DType::kFloat16);
}

bool AlignedStrides(const PageGeometry& g) {
  return Aligned(g.k_head_stride, g.dtype) && Aligned(g.k_token_stride, g.dtype) && Aligned(g.v_head_stride, g.dtype) &&
         Aligned(g.v_token_stride, g.dtype);
}

bool Is16Bit(DType dtype) { return dtype == DType::kFloat16 || dtype == DType::kBFloat16; }
// Queries or new keys of `dtype` and pages of `kv`.
bool Agree(DType dtype, DType kv) { return Is16Bit(dtype) && (kv == dtype || IsFloat8(kv)); }
// Whole units of 16 bytes.
bool IsMovable(int head_size, DType dtype) {
  return head_size > 0 && Aligned(head_size, dtype) && head_size <= kMaxHeadSize;
}
bool IsPaged(const PageGeometry& g) { return g.page_tokens > 0 && g.page_tokens % kPackedTokenGroup == 0; }

}  // namespace

const char* LaunchStatusText(LaunchStatus status) {
  switch (status) {
    case LaunchStatus::kOk:
      return "ok";
    case LaunchStatus::kUnsupportedDType:
      return "dtype is not supported on CUDA; accepted: float16, bfloat16, and of KV the same, float8_e4m3, "
             "float8_e5m2";
    case LaunchStatus::kUnsupportedHeadSize:
      return "head size is not supported on CUDA; attention accepts 64, 96, 128, 256, data movement multiples of 8 (of "
             "16 in float8) up to 512";
    case LaunchStatus::kUnsupportedPage:
      return "page size is not supported on CUDA; accepted: multiples of 16 tokens";
    case LaunchStatus::kUnsupportedGroup:
      return "query heads must be a positive multiple of KV heads";
    case LaunchStatus::kMisaligned:
      return "pointers and strides of q, K, V and o must be multiples of 16 bytes";
    case LaunchStatus::kTooLarge:
      return "the call has more blocks than a CUDA grid; split it";
    case LaunchStatus::kDriver:
      return "the CUDA runtime refused the launch; cudaGetLastError says why";
  }
  return "unknown";
}

LaunchStatus Check(const WriteKvParams& p) {
  const PageGeometry& g = p.geometry;
  if (!Agree(p.dtype, g.dtype)) return LaunchStatus::kUnsupportedDType;
  if (!IsMovable(g.head_size, g.dtype)) return LaunchStatus::kUnsupportedHeadSize;
  if (g.page_tokens <= 0) return LaunchStatus::kUnsupportedPage;
  if (!Aligned(p.key) || !Aligned(p.value) || !Aligned(p.k_cache) || !Aligned(p.v_cache) ||
      !Aligned(p.k_page_stride, g.dtype) || !Aligned(p.v_page_stride, g.dtype) || !AlignedStrides(g)) {
    return LaunchStatus::kMisaligned;
  }
  return LaunchStatus::kOk;
}

LaunchStatus Check(const AttendParams& p) {
  const PageGeometry& g = p.geometry;
  if (!Agree(p.dtype, g.dtype)) return LaunchStatus::kUnsupportedDType;
  if (g.head_size != 64 && g.head_size != 96 && g.head_size != 128 && g.head_size != 256) {
    return LaunchStatus::kUnsupportedHeadSize;
  }
  if (!IsPaged(g) || g.format != PageFormat::kStrided) return LaunchStatus::kUnsupportedPage;
  if (g.kv_heads <= 0 || p.query_heads <= 0 || p.query_heads % g.kv_heads != 0) return LaunchStatus::kUnsupportedGroup;
  if (!Aligned(p.q) || !Aligned(p.o) || !Aligned(p.partials.o) || p.k_base % 16 != 0 || p.v_base % 16 != 0 ||
      !AlignedStrides(g)) {
    return LaunchStatus::kMisaligned;
  }
  const int64_t rows = static_cast<int64_t>(p.max_item_tokens) * (p.query_heads / g.kv_heads);
  if (g.kv_heads > kMaxGridYZ || rows > kMaxGridYZ) return LaunchStatus::kTooLarge;
  return LaunchStatus::kOk;
}

LaunchStatus Check(const ChosenParams& p) {
  if (!Aligned(p.v)) return LaunchStatus::kMisaligned;
  return Check(p.attend);
}

LaunchStatus Check(const MergeParams& p) {
  if (p.head_size <= 0 || p.head_size > kMaxHeadSize) return LaunchStatus::kUnsupportedHeadSize;
  if (p.query_heads <= 0) return LaunchStatus::kUnsupportedGroup;
  return LaunchStatus::kOk;
}

LaunchStatus Check(const RepackParams& p) {
  const PageGeometry& g = p.geometry;
  if (!Is16Bit(g.dtype) && !IsFloat8(g.dtype)) return LaunchStatus::kUnsupportedDType;
  if (!IsMovable(g.head_size, g.dtype)) return LaunchStatus::kUnsupportedHeadSize;
  if (!IsPaged(g)) return LaunchStatus::kUnsupportedPage;
  if (!AlignedStrides(g)) return LaunchStatus::kMisaligned;
  if (g.kv_heads > kMaxGridYZ) return LaunchStatus::kTooLarge;
  return LaunchStatus::kOk;
}

}  // namespace hybridgen::cuda
