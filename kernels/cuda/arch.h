// The special instructions of the CUDA kernels, all of them behind this header, in two definitions: inline PTX when
// nvcc compiles, the host executor of tests/simt otherwise. Kernels are written against these names only, so the same
// source runs on a GPU (sm_80 and later) and in tests without one.
//
// Warp functions take the mask of their lanes; all of them must call, at the same place. They exchange registers and do
// not order memory: only SyncThreads and SyncWarp do. Shared memory is reached through Shared<T>, whose accesses the
// executor checks.
#ifndef KERNELS_CUDA_ARCH_H_
#define KERNELS_CUDA_ARCH_H_

#include <cstdint>

#include "kernels/dtype.h"

#ifdef __CUDACC__
#define HG_DEVICE __device__ __forceinline__
#define HG_KERNEL __global__ void
#define HG_LAUNCH_BOUNDS(threads) __launch_bounds__(threads)
#define HG_PRAGMA(text) _Pragma(#text)
#define HG_UNROLL HG_PRAGMA(unroll)
#define HG_UNROLL_BY(times) HG_PRAGMA(unroll times)
#else
#define HG_DEVICE inline
#define HG_KERNEL inline void
#define HG_LAUNCH_BOUNDS(threads)
#define HG_UNROLL
#define HG_UNROLL_BY(times)
#endif

namespace hybridgen::arch {

constexpr int kWarpSize = 32;
constexpr uint32_t kFullMask = 0xffffffffu;
constexpr float kLog2E = 1.4426950408889634f;  // e^x = Exp2(x * kLog2E)

// Elements of queries and KV pages, as bits; the 8-bit ones of KV pages only.
struct Float16 {
  uint16_t bits;
  static constexpr DType kDType = DType::kFloat16;
};
struct BFloat16 {
  uint16_t bits;
  static constexpr DType kDType = DType::kBFloat16;
};
struct Float8E4M3 {
  uint8_t bits;
  static constexpr DType kDType = DType::kFloat8E4M3;
};
struct Float8E5M2 {
  uint8_t bits;
  static constexpr DType kDType = DType::kFloat8E5M2;
};

// What one 16-byte access moves.
struct alignas(16) Vec16 {
  uint32_t x[4];
};

struct Index3 {
  int x;
  int y;
  int z;
};

}  // namespace hybridgen::arch

#ifndef __CUDACC__
#include "tests/simt/arch_host.h"  // IWYU pragma: export
#else

namespace hybridgen::arch {

HG_DEVICE int ThreadIndex() { return threadIdx.x; }
HG_DEVICE Index3 BlockIndex() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}

// ---- Shared memory ----

// An array in shared memory. Load and Store access element i, At is the array from element i on.
template <typename T>
class Shared {
 public:
  HG_DEVICE explicit Shared(void* p) : p_(static_cast<T*>(p)) {}
  HG_DEVICE T Load(int i) const { return p_[i]; }
  HG_DEVICE void Store(int i, T value) const { p_[i] = value; }
  HG_DEVICE Shared At(int i) const { return Shared(p_ + i); }
  template <typename U>
  HG_DEVICE Shared<U> As() const {
    return Shared<U>(p_);
  }
  HG_DEVICE uint32_t address() const { return static_cast<uint32_t>(__cvta_generic_to_shared(p_)); }

 private:
  T* p_;
};

// The block's dynamic shared memory from `offset` bytes on.
template <typename T>
HG_DEVICE Shared<T> DynamicShared(int offset) {
  extern __shared__ __align__(128) char memory[];
  return Shared<T>(memory + offset);
}

// ---- Synchronisation ----

HG_DEVICE void SyncThreads() { __syncthreads(); }
HG_DEVICE void SyncWarp(uint32_t mask) { __syncwarp(mask); }

// ---- Warp exchange ----

HG_DEVICE uint32_t Shfl(uint32_t mask, uint32_t value, int lane) { return __shfl_sync(mask, value, lane); }
HG_DEVICE float Shfl(uint32_t mask, float value, int lane) { return __shfl_sync(mask, value, lane); }
HG_DEVICE float ShflXor(uint32_t mask, float value, int lanes) { return __shfl_xor_sync(mask, value, lanes); }
// A lane below `delta` keeps its own value.
HG_DEVICE uint32_t ShflUp(uint32_t mask, uint32_t value, int delta) { return __shfl_up_sync(mask, value, delta); }
HG_DEVICE uint32_t Ballot(uint32_t mask, bool predicate) { return __ballot_sync(mask, predicate); }
HG_DEVICE uint32_t ReduxAdd(uint32_t mask, uint32_t value) { return __reduce_add_sync(mask, value); }

// ---- Copies from global to shared memory in the background ----

// Copies the first `source_bytes` (0 to 16) of a 16-byte unit and zeroes the rest; with 0 the source is not read. Both
// addresses are multiples of 16. Until the wait of its group the destination must not be touched; after it the copying
// thread sees the data, other threads after a barrier.
HG_DEVICE void CpAsync16(Shared<Vec16> to, const void* from, int source_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.address()), "l"(__cvta_generic_to_global(from)),
               "r"(source_bytes)
               : "memory");
}
// Closes the group of copies issued since the last commit.
HG_DEVICE void CpAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kGroups of the newest groups are still in flight.
template <int kGroups>
HG_DEVICE void CpAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// ---- Matrix instructions ----

// Four 8x8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8 and gets in r[j] the
// elements (l / 4, 2 * (l % 4) + {0, 1}) of matrix j; with Trans those of its transpose. Row addresses are multiples
// of 16.
HG_DEVICE void LdMatrixX4(uint32_t (&r)[4], Shared<Vec16> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address())
               : "memory");
}
HG_DEVICE void LdMatrixX4Trans(uint32_t (&r)[4], Shared<Vec16> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address())
               : "memory");
}

// d[16][8] += a[16][16] * b[16][8], accumulated in float32, by all 32 lanes. With g = lane / 4, t = lane % 4 a lane
// holds
//   a[i]  rows g + 8 * (i % 2), columns 2t + {0, 1} + 8 * (i / 2)   (two elements a register, the lower column first)
//   b[i]  rows 2t + {0, 1} + 8 * i, column g
//   d[i]  row g + 8 * (i / 2), column 2t + i % 2
template <typename T>
HG_DEVICE void Mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (T::kDType == DType::kFloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// ---- Arithmetic and conversions ----

// 2^x within 2^-22 of it; denormal results are 0; 2^-inf = 0.
HG_DEVICE float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
HG_DEVICE float Log(float x) { return logf(x); }
HG_DEVICE float Tanh(float x) { return tanhf(x); }

// Two elements in a register, `low` in the lower half; rounded to nearest even.
template <typename T>
HG_DEVICE uint32_t Pack2(float low, float high) {
  uint32_t packed;
  if constexpr (T::kDType == DType::kFloat16) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}
template <typename T>
HG_DEVICE float Low(uint32_t packed) {
  if constexpr (T::kDType == DType::kBFloat16) return __uint_as_float(packed << 16);
  float x;
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low; }" : "=f"(x) : "r"(packed));
  return x;
}
template <typename T>
HG_DEVICE float High(uint32_t packed) {
  if constexpr (T::kDType == DType::kBFloat16) return __uint_as_float(packed & 0xffff0000u);
  float x;
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, high; }" : "=f"(x) : "r"(packed));
  return x;
}

HG_DEVICE uint32_t FloatBits(float x) { return __float_as_uint(x); }
HG_DEVICE float FloatOfBits(uint32_t bits) { return __uint_as_float(bits); }

// Four bytes of (high, low), whose bytes are numbered from low's lowest: the one that each nibble of the selector
// names, the lowest nibble for the lowest byte. A nibble of 8 + i gives the sign of byte i in all bits.
HG_DEVICE uint32_t BytePermute(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selector));
  return bytes;
}
// Two products of float16, rounded to nearest even; denormals are kept.
HG_DEVICE uint32_t MultiplyHalf2(uint32_t x, uint32_t y) {
  uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(x), "r"(y));
  return product;
}

// Conversions of fp8 are instructions from sm_89 on; without them they must not be called.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
constexpr bool kHasFp8Conversions = true;
#else
constexpr bool kHasFp8Conversions = false;
#endif
// Two e4m3 in the lower half of `pair`, the first in the lower byte, as two float16: exact, NaN stays NaN.
HG_DEVICE uint32_t WidenE4M3(uint32_t pair) {
  uint32_t packed;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(packed) : "h"(static_cast<uint16_t>(pair)));
  return packed;
}
// Two elements in the lower half of the result, `low` in the lower byte: rounded to nearest even, beyond the largest
// finite value to that value of the same sign; NaN stays NaN.
template <typename Kv>
HG_DEVICE uint32_t NarrowToFp8(float low, float high) {
  uint16_t pair;
  if constexpr (Kv::kDType == DType::kFloat8E4M3) {
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

// ---- Global memory ----

// 16 bytes that nobody writes while the kernel runs, used once. The address is a multiple of 16.
HG_DEVICE Vec16 LoadOnce16(const void* p) {
  Vec16 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "l"(__cvta_generic_to_global(p)));
  return v;
}
// 16 bytes that this kernel does not read again.
HG_DEVICE void StoreOnce16(void* p, Vec16 v) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(v.x[0]),
               "r"(v.x[1]), "r"(v.x[2]), "r"(v.x[3])
               : "memory");
}
HG_DEVICE uint32_t AtomicAdd(uint32_t* p, uint32_t value) { return atomicAdd(p, value); }
HG_DEVICE uint32_t AtomicOr(uint32_t* p, uint32_t value) { return atomicOr(p, value); }

// ---- Memory shared with the CPU (mapped pinned host memory) ----

// What this thread wrote before is seen by the CPU before what it writes after.
HG_DEVICE void FenceSystem() { __threadfence_system(); }
HG_DEVICE uint64_t LoadAcquireSystem(const uint64_t* p) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(__cvta_generic_to_global(p)) : "memory");
  return value;
}
HG_DEVICE void StoreReleaseSystem(uint64_t* p, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "l"(value) : "memory");
}
// Nanoseconds of a clock that all blocks share.
HG_DEVICE uint64_t GlobalTimer() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}
// Ends the kernel and everything queued behind it with an error.
HG_DEVICE void Trap(const char*) { __trap(); }
HG_DEVICE void NanoSleep(uint32_t nanoseconds) { asm volatile("nanosleep.u32 %0;" ::"r"(nanoseconds)); }

}  // namespace hybridgen::arch

#endif  // __CUDACC__

namespace hybridgen::arch {

HG_DEVICE int WarpIndex() { return ThreadIndex() / kWarpSize; }
HG_DEVICE int LaneIndex() { return ThreadIndex() % kWarpSize; }

}  // namespace hybridgen::arch

#endif  // KERNELS_CUDA_ARCH_H_
