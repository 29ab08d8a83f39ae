// exp and tanh on Vec. Textually included once per ISA, after a vec_*.h.
#ifndef KERNELS_CPU_MATH_INL_H_
#define KERNELS_CPU_MATH_INL_H_

namespace hybridgen {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// e^x for x <= 0, relative error below 2 * 2^-24 where e^x is a normal float; 0 below that (x < -87.33) and for -inf;
// NaN for NaN. x = n ln2 + r with |r| <= ln2 / 2; ln2 in two parts, the upper one so short that n times it is exact.
// The polynomial is the minimax fit of (e^r - 1 - r) / r^2 (error of e^r 3e-9 before rounding).
HG_INLINE Vec Exp(Vec x) {
  const Vec n = Round(Mul(x, Set(0x1.715476p+0f)));
  Vec r = Fma(n, Set(-0x1.62ep-1f), x);
  r = Fma(n, Set(-0x1.0bfbe8p-15f), r);
  Vec p = Set(0x1.6a23dp-10f);
  p = Fma(p, r, Set(0x1.123a2p-7f));
  p = Fma(p, r, Set(0x1.5558f2p-5f));
  p = Fma(p, r, Set(0x1.555492p-3f));
  p = Fma(p, r, Set(0x1.fffffcp-2f));
  p = Add(Fma(p, Mul(r, r), r), Set(1.0f));
  return ZeroWhereBelow(ScaleByPowerOfTwo(p, n), x, -87.33f);
}

HG_INLINE float Exp(float x) {
  float lanes[16];
  Store(lanes, Exp(Set(x)));
  return lanes[0];
}

// tanh by e^(-2|x|), absolute error below 3 * 2^-24: a soft cap adds that, times the cap, to a logit.
HG_INLINE Vec Tanh(Vec x) {
  const Vec t = Exp(Mul(Abs(x), Set(-2.0f)));
  const Vec one = Set(1.0f);
  return CopySign(Div(Sub(one, t), Add(one, t)), x);
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_MATH_INL_H_
