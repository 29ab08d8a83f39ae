// Which element of a matrix each lane's registers hold, for the executor's matrix instructions: the index formulas that
// the PTX ISA states for mma.m16n8k16 with 16-bit elements and for ldmatrix. fragments_test.cc checks them against
// other descriptions of the same instructions.
#ifndef TESTS_SIMT_FRAGMENTS_H_
#define TESTS_SIMT_FRAGMENTS_H_

namespace hybridgen::simt {

struct Element {
  int row;
  int column;
};

// Element i of lane's fragment; register i / 2 holds it, in the lower half if i is even.
constexpr Element MmaA(int lane, int i) {  // i < 8
  const int group = lane >> 2, thread = lane & 3;
  const bool upper = (i >= 0 && i < 2) || (i >= 4 && i < 6);
  return {upper ? group : group + 8, thread * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
constexpr Element MmaB(int lane, int i) {  // i < 4
  const int group = lane >> 2, thread = lane & 3;
  return {thread * 2 + (i & 1) + (i >= 2 ? 8 : 0), group};
}
// Of the float32 accumulators; register i.
constexpr Element MmaD(int lane, int i) {  // i < 4
  const int group = lane >> 2, thread = lane & 3;
  return {i < 2 ? group : group + 8, thread * 2 + (i & 1)};
}
// Half h of the register that a lane gets of one 8x8 matrix.
constexpr Element LdMatrix(int lane, int h) { return {lane / 4, 2 * (lane % 4) + h}; }

}  // namespace hybridgen::simt

#endif  // TESTS_SIMT_FRAGMENTS_H_
