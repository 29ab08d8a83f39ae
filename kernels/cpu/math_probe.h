// The per-ISA exp and tanh made visible to their test.
#ifndef KERNELS_CPU_MATH_PROBE_H_
#define KERNELS_CPU_MATH_PROBE_H_

#include "kernels/isa.h"

namespace hybridgen {

// out[i] = f(in[i]) for 16 values.
struct MathProbe {
  Isa isa;
  void (*exp)(const float* in, float* out);
  void (*tanh)(const float* in, float* out);
};

extern const MathProbe kPortableMath;
extern const MathProbe kAvx2Math;
extern const MathProbe kAvx512Math;

}  // namespace hybridgen

#endif  // KERNELS_CPU_MATH_PROBE_H_
