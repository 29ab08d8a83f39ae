// Pages between the engine's strided format and the host's packed one (kernels/page_format.h): publishing packs into
// mapped host memory, streaming and recalling unpack from it. One block moves 16 tokens of one KV head and one role
// through shared memory, so that both sides are read and written by whole 16-byte units.
#ifndef KERNELS_CUDA_REPACK_CUH_
#define KERNELS_CUDA_REPACK_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/params.h"

namespace hybridgen::cuda {

constexpr int kRepackThreads = 128;

// Where unit `unit` of a packed group of 16 tokens lies: its first element's token and dim, and the step to the next of
// its 8 elements. In K a unit is `lane` dims of 8 / lane tokens, in V `lane` tokens of 8 / lane dims; the elements of
// the stored-together direction run fastest.
struct PackedUnit {
  int token;
  int dim;
};

// Units of the group in the order of memory: K runs over all tokens of a dim pair, then the next pair; V over 16 dims
// of a token pair, then the next pair of the group, then the next 16 dims.
template <KvRole kRole, int kLane>
HG_DEVICE PackedUnit UnitOf(int unit) {
  if constexpr (kRole == KvRole::kKey) {
    constexpr int kUnits = 2 * kLane;  // of 16 tokens x kLane dims
    return {unit % kUnits * (8 / kLane), unit / kUnits * kLane};
  } else {
    constexpr int kUnits = 2 * kLane;  // of 16 dims x kLane tokens
    const int run = unit / kUnits;
    return {run % (kPackedTokenGroup / kLane) * kLane,
            run / (kPackedTokenGroup / kLane) * kPackedDimGroup + unit % kUnits * (8 / kLane)};
  }
}

// Element i of a unit, relative to its first.
template <KvRole kRole, int kLane>
HG_DEVICE PackedUnit ElementOf(int i) {
  if constexpr (kRole == KvRole::kKey) return {i / kLane, i % kLane};
  return {i % kLane, i / kLane};
}

enum class Repack { kPack, kUnpack };

// Shared memory: 16 rows of the padded head size, each followed by one unit, which keeps column accesses off one bank.
HG_DEVICE int RepackRow(int head_size) { return PaddedHeadSize(head_size) + 8; }  // elements
inline int RepackSharedBytes(int head_size) {
  return kPackedTokenGroup * (PaddedHeadSize(head_size) + 8) * static_cast<int>(sizeof(uint16_t));
}

// Tokens from job.num_tokens on are zeros in a packed page and left alone in a strided one. The padding of a head is
// zeros in a packed page.
template <typename T, Repack kDirection, KvRole kRole>
HG_DEVICE void RepackGroup(const PageGeometry& g, const RepackJob& job, int group, int head) {
  constexpr int kLane = PackedLane(T::kDType);
  const int row = RepackRow(g.head_size);
  const int padded = PaddedHeadSize(g.head_size);
  const int tokens = job.num_tokens - group * kPackedTokenGroup;  // valid in this group, if positive
  const auto tile = arch::DynamicShared<uint16_t>(0);

  const bool key = kRole == KvRole::kKey;
  const int64_t token_stride = key ? g.k_token_stride : g.v_token_stride;
  const int64_t head_stride = key ? g.k_head_stride : g.v_head_stride;
  uint16_t* strided = reinterpret_cast<uint16_t*>(key ? job.strided_k : job.strided_v) + head * head_stride +
                      group * kPackedTokenGroup * token_stride;
  uint16_t* packed = reinterpret_cast<uint16_t*>(key ? job.packed_k : job.packed_v);

  const auto strided_side = [&](auto move) {
    const int row_units = padded / 8;
    for (int i = arch::ThreadIndex(); i < kPackedTokenGroup * row_units; i += kRepackThreads) {
      move(i / row_units, i % row_units * 8);
    }
  };
  const auto packed_side = [&](auto move) {
    for (int i = arch::ThreadIndex(); i < kPackedTokenGroup * padded / 8; i += kRepackThreads) {
      const PackedUnit at = UnitOf<kRole, kLane>(i);
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
    packed_side([&](PackedUnit at, uint16_t* to) {
      arch::Vec16 x = {};
      HG_UNROLL
      for (int i = 0; i < 8; ++i) {
        const PackedUnit e = ElementOf<kRole, kLane>(i);
        const uint32_t bits = tile.Load((at.token + e.token) * row + at.dim + e.dim);
        x.x[i / 2] |= bits << (16 * (i % 2));
      }
      arch::StoreOnce16(to, x);
    });
  } else {
    packed_side([&](PackedUnit at, const uint16_t* from) {
      const arch::Vec16 x = arch::LoadOnce16(from);
      HG_UNROLL
      for (int i = 0; i < 8; ++i) {
        const PackedUnit e = ElementOf<kRole, kLane>(i);
        tile.Store((at.token + e.token) * row + at.dim + e.dim, static_cast<uint16_t>(x.x[i / 2] >> (16 * (i % 2))));
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
