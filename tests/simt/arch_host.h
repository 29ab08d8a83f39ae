// The host definitions of kernels/cuda/arch.h, over the executor. The contract of each function stands there.
#ifndef TESTS_SIMT_ARCH_HOST_H_
#define TESTS_SIMT_ARCH_HOST_H_

#ifndef KERNELS_CUDA_ARCH_H_
#error "include kernels/cuda/arch.h"
#endif

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tests/simt/executor.h"
#include "tests/simt/fragments.h"

namespace hybridgen::arch {

using simt::Site;

inline int ThreadIndex() { return simt::ThreadIndex(); }
inline Index3 BlockIndex() {
  const simt::Dim3 index = simt::BlockIndex();
  return {index.x, index.y, index.z};
}

template <typename T>
class Shared {
 public:
  explicit Shared(void* p) : p_(static_cast<T*>(p)) {}
  T Load(int i, Site site = Site::Here()) const {
    simt::CheckShared(simt::SharedAccess::kRead, p_ + i, sizeof(T), site);
    return p_[i];
  }
  void Store(int i, T value, Site site = Site::Here()) const {
    simt::CheckShared(simt::SharedAccess::kWrite, p_ + i, sizeof(T), site);
    p_[i] = value;
  }
  Shared At(int i) const { return Shared(p_ + i); }
  template <typename U>
  Shared<U> As() const {
    return Shared<U>(p_);
  }
  T* unchecked() const { return p_; }

 private:
  T* p_;
};

template <typename T>
Shared<T> DynamicShared(int offset) {
  return Shared<T>(simt::SharedBase() + offset);
}

inline void SyncThreads(Site site = Site::Here()) { simt::Barrier(0, 0, site); }
inline void SyncWarp(uint32_t mask, Site site = Site::Here()) {
  simt::Collective("SyncWarp", mask, nullptr, nullptr, simt::Orders::kMemory, site);
}

namespace host {

// One lane's part of an exchange of 32-bit values.
struct Exchange {
  uint32_t value;
  int source;  // lane to read from
  uint32_t result;
};

inline void CombineShfl(void* const* payloads, uint32_t mask) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Exchange* mine = static_cast<Exchange*>(payloads[lane]);
    const Exchange* from = static_cast<const Exchange*>(payloads[mine->source]);
    mine->result = from != nullptr ? from->value : 0xffffffffu;  // of a lane that is not there: undefined
  }
}

inline void CombineBallot(void* const* payloads, uint32_t mask) {
  uint32_t ballot = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (mask >> lane & 1) ballot |= static_cast<Exchange*>(payloads[lane])->value << lane;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (mask >> lane & 1) static_cast<Exchange*>(payloads[lane])->result = ballot;
  }
}

inline void CombineAdd(void* const* payloads, uint32_t mask) {
  uint32_t sum = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (mask >> lane & 1) sum += static_cast<Exchange*>(payloads[lane])->value;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (mask >> lane & 1) static_cast<Exchange*>(payloads[lane])->result = sum;
  }
}

inline uint32_t Run(const char* operation, uint32_t mask, uint32_t value, int source, simt::Combine combine,
                    Site site) {
  Exchange exchange = {value, source, 0};
  simt::Collective(operation, mask, &exchange, combine, simt::Orders::kNothing, site);
  return exchange.result;
}

inline uint32_t Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float FromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

template <typename T>
float Widen(uint16_t bits) {
  return T::kDType == DType::kFloat16 ? Float16ToFloat(bits) : BFloat16ToFloat(bits);
}
template <typename T>
uint16_t Narrow(float x) {
  return T::kDType == DType::kFloat16 ? FloatToFloat16(x) : FloatToBFloat16(x);
}

}  // namespace host

inline uint32_t Shfl(uint32_t mask, uint32_t value, int lane, Site site = Site::Here()) {
  return host::Run("Shfl", mask, value, lane & 31, host::CombineShfl, site);
}
inline float Shfl(uint32_t mask, float value, int lane, Site site = Site::Here()) {
  return host::FromBits(host::Run("Shfl", mask, host::Bits(value), lane & 31, host::CombineShfl, site));
}
inline float ShflXor(uint32_t mask, float value, int lanes, Site site = Site::Here()) {
  const int source = (simt::ThreadIndex() ^ lanes) & 31;
  return host::FromBits(host::Run("ShflXor", mask, host::Bits(value), source, host::CombineShfl, site));
}
inline uint32_t ShflUp(uint32_t mask, uint32_t value, int delta, Site site = Site::Here()) {
  const int lane = simt::ThreadIndex() & 31;
  return host::Run("ShflUp", mask, value, lane < delta ? lane : lane - delta, host::CombineShfl, site);
}
inline uint32_t Ballot(uint32_t mask, bool predicate, Site site = Site::Here()) {
  return host::Run("Ballot", mask, predicate ? 1 : 0, 0, host::CombineBallot, site);
}
inline uint32_t ReduxAdd(uint32_t mask, uint32_t value, Site site = Site::Here()) {
  return host::Run("ReduxAdd", mask, value, 0, host::CombineAdd, site);
}

inline void CpAsync16(Shared<Vec16> to, const void* from, int source_bytes, Site site = Site::Here()) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) simt::Fail("CpAsync16 of a misaligned source", site);
  if (source_bytes < 0 || source_bytes > 16) simt::Fail("CpAsync16 of a wrong size", site);
  simt::AsyncCopy(to.unchecked(), from, source_bytes, site);
}
inline void CpAsyncCommit() { simt::AsyncCommit(); }
template <int kGroups>
void CpAsyncWait() {
  simt::AsyncWait(kGroups);
}

namespace host {

struct Matrices {
  const Vec16* row;
  uint32_t (*r)[4];
};

template <bool kTransposed>
void CombineLdMatrix(void* const* payloads, uint32_t) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint32_t packed = 0;
      for (int h = 0; h < 2; ++h) {
        const simt::Element e = simt::LdMatrix(lane, h);
        const int row = kTransposed ? e.column : e.row;
        const int column = kTransposed ? e.row : e.column;
        const Vec16* from = static_cast<const Matrices*>(payloads[matrix * 8 + row])->row;
        uint16_t bits;
        std::memcpy(&bits, reinterpret_cast<const char*>(from) + 2 * column, sizeof(bits));
        packed |= static_cast<uint32_t>(bits) << (16 * h);
      }
      (*static_cast<const Matrices*>(payloads[lane])->r)[matrix] = packed;
    }
  }
}

template <bool kTransposed>
void RunLdMatrix(uint32_t (&r)[4], Shared<Vec16> row, Site site) {
  simt::CheckShared(simt::SharedAccess::kRead, row.unchecked(), sizeof(Vec16), site);
  Matrices mine = {row.unchecked(), &r};
  simt::Collective(kTransposed ? "LdMatrixX4Trans" : "LdMatrixX4", kFullMask, &mine, CombineLdMatrix<kTransposed>,
                   simt::Orders::kNothing, site);
}

struct MmaOperands {
  float (*d)[4];
  const uint32_t (*a)[4];
  const uint32_t (*b)[2];
};

// Tensor cores keep more bits of a product than float32 and cut sums off instead of rounding them; how many terms they
// add before cutting is not documented. Here every addition is cut, the worst that they may do.
inline float AddTruncated(float sum, double product) {
  const double exact = sum + product;
  const float nearest = static_cast<float>(exact);
  return std::abs(nearest) > std::abs(exact) ? std::nextafter(nearest, 0.0f) : nearest;
}

template <typename T>
void CombineMma(void* const* payloads, uint32_t) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const MmaOperands& in = *static_cast<const MmaOperands*>(payloads[lane]);
    for (int i = 0; i < 8; ++i) {
      const simt::Element e = simt::MmaA(lane, i);
      a[e.row][e.column] = Widen<T>(static_cast<uint16_t>((*in.a)[i / 2] >> (16 * (i % 2))));
    }
    for (int i = 0; i < 4; ++i) {
      const simt::Element e = simt::MmaB(lane, i);
      b[e.row][e.column] = Widen<T>(static_cast<uint16_t>((*in.b)[i / 2] >> (16 * (i % 2))));
    }
    for (int i = 0; i < 4; ++i) {
      const simt::Element e = simt::MmaD(lane, i);
      d[e.row][e.column] = (*in.d)[i];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int k = 0; k < 16; ++k) {
        d[row][column] = AddTruncated(d[row][column], static_cast<double>(a[row][k]) * b[k][column]);
      }
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const simt::Element e = simt::MmaD(lane, i);
      (*static_cast<const MmaOperands*>(payloads[lane])->d)[i] = d[e.row][e.column];
    }
  }
}

}  // namespace host

inline void LdMatrixX4(uint32_t (&r)[4], Shared<Vec16> row, Site site = Site::Here()) {
  host::RunLdMatrix<false>(r, row, site);
}
inline void LdMatrixX4Trans(uint32_t (&r)[4], Shared<Vec16> row, Site site = Site::Here()) {
  host::RunLdMatrix<true>(r, row, site);
}
template <typename T>
void Mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::Here()) {
  host::MmaOperands mine = {&d, &a, &b};
  simt::Collective("Mma", kFullMask, &mine, host::CombineMma<T>, simt::Orders::kNothing, site);
}

inline float Exp2(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}
inline float Log(float x) { return std::log(x); }
inline float Tanh(float x) { return std::tanh(x); }

template <typename T>
uint32_t Pack2(float low, float high) {
  return host::Narrow<T>(low) | static_cast<uint32_t>(host::Narrow<T>(high)) << 16;
}
template <typename T>
float Low(uint32_t packed) {
  return host::Widen<T>(static_cast<uint16_t>(packed));
}
template <typename T>
float High(uint32_t packed) {
  return host::Widen<T>(static_cast<uint16_t>(packed >> 16));
}

inline Vec16 LoadOnce16(const void* p, Site site = Site::Here()) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) simt::Fail("LoadOnce16 of a misaligned address", site);
  Vec16 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void StoreOnce16(void* p, Vec16 v, Site site = Site::Here()) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) simt::Fail("StoreOnce16 to a misaligned address", site);
  simt::StoreLate(p, &v);
}
inline uint32_t AtomicAdd(uint32_t* p, uint32_t value) {
  simt::Yield();
  const uint32_t old = *p;
  *p += value;
  return old;
}
inline uint32_t AtomicOr(uint32_t* p, uint32_t value) {
  simt::Yield();
  const uint32_t old = *p;
  *p |= value;
  return old;
}

inline void FenceSystem() {
  simt::FenceSystem();
  std::atomic_thread_fence(std::memory_order_seq_cst);
}
inline uint64_t LoadAcquireSystem(const uint64_t* p) {
  simt::Yield();
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void StoreReleaseSystem(uint64_t* p, uint64_t value) { simt::StoreRelease(p, value); }
inline uint64_t GlobalTimer() { return simt::Now(); }
inline void Trap(const char* why, Site site = Site::Here()) { simt::Fail(why, site); }
inline void NanoSleep(uint32_t nanoseconds) { simt::Sleep(nanoseconds); }

}  // namespace hybridgen::arch

#endif  // TESTS_SIMT_ARCH_HOST_H_
