// Which pages of a sequence go to CXL, so that a wanted share of them does, evenly along the sequence.
#ifndef MEMORY_SPREAD_H_
#define MEMORY_SPREAD_H_

#include <algorithm>
#include <cstdint>

namespace hybridgen {

// With share s and a phase p in [0, 1) per sequence, block b of the sequence goes to CXL exactly if
//     floor(p + (b + 1) s) > floor(p + b s)
// (the steps of Bresenham's line). Of any run of n blocks [a, a + n) that makes floor(p + (a + n) s) - floor(p + a s),
// which is n s rounded down or up: less than one page off the share, for every prefix, window and tail of a sequence.
// The answer depends on the position alone, as blocks are written and published out of order.
//
// The phase is the sequence's number times the golden ratio, so that many short sequences together have the share too.
class Spread {
 public:
  // `share` outside [0, 1] is taken as the nearer bound; it is kept to 2^-32.
  explicit Spread(double share) : step_(static_cast<uint64_t>(std::clamp(share, 0.0, 1.0) * kOne + 0.5)) {}

  bool OnCxl(int32_t sequence_block, uint32_t sequence) const {
    constexpr uint32_t kGoldenRatio = 0x9e3779b9;  // its fraction, times 2^32
    const uint32_t phase = sequence * kGoldenRatio;
    // The fraction of p + b s; wrapping arithmetic is exact in it.
    const uint32_t fraction = phase + static_cast<uint32_t>(sequence_block) * static_cast<uint32_t>(step_);
    return fraction + step_ >= kOne;
  }

 private:
  static constexpr uint64_t kOne = uint64_t{1} << 32;
  uint64_t step_;  // the share times 2^32
};

}  // namespace hybridgen

#endif  // MEMORY_SPREAD_H_
