// Every instruction of arch.h in one kernel, so that ptxas assembles each for every architecture, those included that
// no kernel uses yet. It is never run.
#include "kernels/cuda/arch.h"

namespace hybridgen::arch {

HG_KERNEL ProbeKernel(const char* in, char* out, uint64_t* flag) {
  const Shared<Vec16> tile = DynamicShared<Vec16>(0);
  CpAsync16(tile.At(ThreadIndex()), in + 16 * ThreadIndex(), 16);
  CpAsyncCommit();
  CpAsyncWait<0>();
  SyncThreads();
  uint32_t a[4], b[4];
  LdMatrixX4(a, tile.At(LaneIndex()));
  LdMatrixX4Trans(b, tile.At(LaneIndex()));
  SyncWarp(kFullMask);
  const uint32_t half[2] = {b[0], b[1]};
  float d[4] = {}, e[4] = {};
  Mma<Float16>(d, a, half);
  Mma<BFloat16>(e, a, half);
  Vec16 v = LoadOnce16(in + 16 * LaneIndex());
  v.x[0] += Pack2<Float16>(d[0], e[0]) + ShflUp(kFullMask, v.x[1], 1);
  v.x[1] += Pack2<BFloat16>(Exp2(d[1]), Tanh(e[1]) + Log(e[2]));
  d[2] += Low<Float16>(v.x[2]) + High<BFloat16>(v.x[3]) + High<Float16>(v.x[0]) + Low<BFloat16>(v.x[1]);
  v.x[2] ^= MultiplyHalf2(BytePermute(v.x[0], v.x[1], 0x9180), FloatBits(FloatOfBits(v.x[3])));
  if constexpr (kHasFp8Conversions) {
    v.x[3] += WidenE4M3(v.x[2]) + NarrowToFp8<Float8E4M3>(d[0], d[1]) + NarrowToFp8<Float8E5M2>(e[0], e[1]);
  }
  v.x[2] = d[2] + Shfl(kFullMask, d[1], 3) < ShflXor(kFullMask, d[2], 1);
  v.x[3] = ReduxAdd(kFullMask, Ballot(kFullMask, d[3] > 0)) + Shfl(kFullMask, v.x[0], BlockIndex().x);
  StoreOnce16(out + 16 * ThreadIndex(), v);
  FenceSystem();
  StoreReleaseSystem(flag, LoadAcquireSystem(flag + 1) + GlobalTimer());
  NanoSleep(20);
  AtomicOr(reinterpret_cast<uint32_t*>(out), AtomicAdd(reinterpret_cast<uint32_t*>(out) + 1, 1));
}

}  // namespace hybridgen::arch
