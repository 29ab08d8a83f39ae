// Compiled once per ISA with HG_VEC_HEADER and HG_PROBE naming the vector header and the probe to define.
#include "kernels/cpu/math_probe.h"

#include HG_VEC_HEADER
#include "kernels/cpu/math-inl.h"

namespace hybridgen {
namespace {

void ExpOf(const float* in, float* out) { Store(out, Exp(Load(in))); }
void TanhOf(const float* in, float* out) { Store(out, Tanh(Load(in))); }

}  // namespace

const MathProbe HG_PROBE = {HG_PROBE_ISA, ExpOf, TanhOf};

}  // namespace hybridgen
