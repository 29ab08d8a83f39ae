// What instruction sets a CPU (and its operating system) offers; passed as an argument so that selection can be
// tested with invented CPUs.
#ifndef KERNELS_CPU_FEATURES_H_
#define KERNELS_CPU_FEATURES_H_

#include <string>

#include "kernels/isa.h"

namespace hybridgen {

struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool fast_bf16_dot = false;  // vdpbf16ps as often as a fused multiply-add: AMD since Zen 4, Intel a quarter as often
  bool avx512_fp16 = false;
  bool amx_tile = false;
  bool amx_bf16 = false;
  std::string amx_refused;  // why matrix tiles are not used though the CPU has them (tiles_usable.h); else empty

  // Names of the features present, separated by spaces; "none" if there are none.
  std::string ToString() const;
};

// Of the machine this runs on; includes the operating system's consent to save the registers. Where there are matrix
// tiles, asks for the permission to use them, once per process.
CpuFeatures DetectCpuFeatures();

// Whether kernels of `isa` may run.
bool Supports(const CpuFeatures& features, Isa isa);

// What `isa` needs and the CPU lacks, separated by spaces; empty if Supports().
std::string MissingFeatures(const CpuFeatures& features, Isa isa);

}  // namespace hybridgen

#endif  // KERNELS_CPU_FEATURES_H_
