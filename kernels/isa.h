// Instruction-set levels that kernels are compiled for.
#ifndef KERNELS_ISA_H_
#define KERNELS_ISA_H_

#include <cstdint>

namespace hybridgen {

// From avx512 on each needs that and what it is named after, amx_bf16 avx512_bf16 as well; the kernel table has their
// order. Values are part of the C ABI (hybridgen.h); never renumber.
enum class Isa : uint8_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmxBf16 = 4, kAvx512Vnni = 5 };

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
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
  }
  return "unknown";
}

}  // namespace hybridgen

#endif  // KERNELS_ISA_H_
