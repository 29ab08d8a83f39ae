// Instruction-set levels that kernels are compiled for.
#ifndef KERNELS_ISA_H_
#define KERNELS_ISA_H_

#include <cstdint>

namespace hybridgen {

// Lowest first. Values are part of the C ABI (hybridgen.h); never renumber.
enum class Isa : uint8_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmxBf16 = 4 };

constexpr const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmxBf16:
      return "amx_bf16";
  }
  return "unknown";
}

}  // namespace hybridgen

#endif  // KERNELS_ISA_H_
