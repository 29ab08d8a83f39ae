// Pages between the engine's strided format and the host's packed one (kernels/page_format.h): publishing packs into
// mapped host memory, streaming and recalling unpack from it. One block moves 16 tokens of one KV head and one role
// through shared memory, so that both sides are read and written by whole 16-byte units.
#ifndef KERNELS_CUDA_REPACK_CUH_
#define KERNELS_CUDA_REPACK_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/params.h"

namespace hybridgen::cuda {

constexpr int kRepackThreads = 128;

// Elements of a unit of 16 bytes.
template <typename T>
constexpr int kUnitElements = 16 / sizeof(T);

// Where unit `unit` of a packed group of 16 tokens lies: its first element's token and dim, and the step to the next of
// its n elements. In K a unit is `lane` dims of n / lane tokens, in V `lane` tokens of n / lane dims; the elements of
// the stored-together direction run fastest.
struct PackedUnit {
  int token;
  int dim;
};

// Units of the group in the order of memory: K runs over all tokens of a dim pair, then the next pair; V over 16 dims
// of a token pair, then the next pair of the group, then the next 16 dims.
template <typename T, KvRole kRole>
HG_DEVICE PackedUnit UnitOf(int unit) {
  constexpr int kLane = PackedLane(T::kDType);
  constexpr int kStep = kUnitElements<T> / kLane;
  constexpr int kUnits = 16 / kStep;  // of 16 tokens x kLane dims in K, 16 dims x kLane tokens in V
  const int run = unit / kUnits;
  if constexpr (kRole == KvRole::kKey) return {unit % kUnits * kStep, run * kLane};
  return {run % (kPackedTokenGroup / kLane) * kLane,
          run / (kPackedTokenGroup / kLane) * kPackedDimGroup + unit % kUnits * kStep};
}

// Element i of a unit, relative to its first.
template <KvRole kRole, int kLane>
HG_DEVICE PackedUnit ElementOf(int i) {
  if constexpr (kRole == KvRole::kKey) return {i / kLane, i % kLane};
  return {i % kLane, i / kLane};
}

enum class Repack { kPack, kUnpack };

// Shared memory: 16 rows of the padded head size, each followed by one unit, which keeps column accesses off one bank.
template <typename T>
HG_DEVICE int RepackRow(int head_size) {  // elements
  return PaddedHeadSize(head_size) + kUnitElements<T>;
}
inline int RepackSharedBytes(DType dtype, int head_size) {
  return kPackedTokenGroup * (PaddedHeadSize(head_size) * static_cast<int>(DTypeSize(dtype)) + 16);
}

// Tokens from job.num_tokens on are zeros in a packed page and left alone in a strided one. The padding of a head is
// zeros in a packed page.
template <typename T, Repack kDirection, KvRole kRole>
HG_DEVICE void RepackGroup(const PageGeometry& g, const RepackJob& job, int group, int head) {
  using Bits = decltype(T::bits);
  constexpr int kElements = kUnitElements<T>;
  constexpr int kLane = PackedLane(T::kDType);
  constexpr int kWordElements = kElements / 4;
  const int row = RepackRow<T>(g.head_size);
  const int padded = PaddedHeadSize(g.head_size);
  const int tokens = job.num_tokens - group * kPackedTokenGroup;  // valid in this group, if positive
  const auto tile = arch::DynamicShared<Bits>(0);

  const bool key = kRole == KvRole::kKey;
  const int64_t token_stride = key ? g.k_token_stride : g.v_token_stride;
  const int64_t head_stride = key ? g.k_head_stride : g.v_head_stride;
  Bits* strided = reinterpret_cast<Bits*>(key ? job.strided_k : job.strided_v) + head * head_stride +
                  group * kPackedTokenGroup * token_stride;
  Bits* packed = reinterpret_cast<Bits*>(key ? job.packed_k : job.packed_v);

  const auto strided_side = [&](auto move) {
    const int row_units = padded / kElements;
    for (int i = arch::ThreadIndex(); i < kPackedTokenGroup * row_units; i += kRepackThreads) {
      move(i / row_units, i % row_units * kElements);
    }
  };
  const auto packed_side = [&](auto move) {
    for (int i = arch::ThreadIndex(); i < kPackedTokenGroup * padded / kElements; i += kRepackThreads) {
      const PackedUnit at = UnitOf<T, kRole>(i);
      const int token = group * kPackedTokenGroup + at.token;
      const size_t offset = key ? PackedKeyOffset(T::kDType, g.page_tokens, g.head_size, head, token, at.dim)
                                : PackedValueOffset(T::kDType, g.page_tokens, g.head_size, head, token, at.dim);
      move(at, packed + offset);
    }
  };

  if constexpr (kDirection == Repack::kPack) {
    strided_side([&](int token, int dim) {
      arch::Vec16 x = {};
      if (token < tokens && dim < g.head_size) x = arch::LoadOnce16(strided + token * token_stride + dim);
      tile.At(token * row + dim).template As<arch::Vec16>().Store(0, x);
    });
    arch::SyncThreads();
    packed_side([&](PackedUnit at, Bits* to) {
      arch::Vec16 x = {};
      HG_UNROLL
      for (int i = 0; i < kElements; ++i) {
        const PackedUnit e = ElementOf<kRole, kLane>(i);
        const uint32_t bits = tile.Load((at.token + e.token) * row + at.dim + e.dim);
        x.x[i / kWordElements] |= bits << (32 / kWordElements * (i % kWordElements));
      }
      arch::StoreOnce16(to, x);
    });
  } else {
    packed_side([&](PackedUnit at, const Bits* from) {
      const arch::Vec16 x = arch::LoadOnce16(from);
      HG_UNROLL
      for (int i = 0; i < kElements; ++i) {
        const PackedUnit e = ElementOf<kRole, kLane>(i);
        tile.Store((at.token + e.token) * row + at.dim + e.dim,
                   static_cast<Bits>(x.x[i / kWordElements] >> (32 / kWordElements * (i % kWordElements))));
      }
    });
    arch::SyncThreads();
    strided_side([&](int token, int dim) {
      if (token >= tokens || dim >= g.head_size) return;
      const arch::Vec16 x = tile.At(token * row + dim).template As<arch::Vec16>().Load(0);
      *reinterpret_cast<arch::Vec16*>(strided + token * token_stride + dim) = x;
    });
  }
}

// Grid: (jobs * page_tokens / 16, kv_heads, role).
template <typename T, Repack kDirection>
HG_KERNEL HG_LAUNCH_BOUNDS(kRepackThreads) RepackKernel(RepackParams p) {
  const arch::Index3 block = arch::BlockIndex();
  const int groups = p.geometry.page_tokens / kPackedTokenGroup;
  RepackJob job = p.jobs[block.x / groups];
  const int group = block.x % groups;
  if (kDirection == Repack::kUnpack && group * kPackedTokenGroup >= job.num_tokens) return;
  job.strided_k += p.base.strided_k;
  job.strided_v += p.base.strided_v;
  job.packed_k += p.base.packed_k;
  job.packed_v += p.base.packed_v;
  if (block.z == 0) {
    RepackGroup<T, kDirection, KvRole::kKey>(p.geometry, job, group, block.y);
  } else {
    RepackGroup<T, kDirection, KvRole::kValue>(p.geometry, job, group, block.y);
  }
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_REPACK_CUH_
