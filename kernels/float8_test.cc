// Tests of narrowing rows against the scalar conversions.
#include "kernels/float8.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

constexpr DType kFloat8s[] = {DType::kFloat8E4M3, DType::kFloat8E5M2};

// Narrows `row` of `from` from an odd address, and expects of each element what dividing and narrowing it alone gives.
void Check(DType from, const std::vector<uint8_t>& row, int count, float scale) {
  std::vector<uint8_t> unaligned(row.size() + 1 + DTypeSize(from));
  std::memcpy(unaligned.data() + 1 + DTypeSize(from), row.data(), row.size());
  for (DType to : kFloat8s) {
    std::vector<uint8_t> out(count + 1, 0xaa);
    NarrowToFloat8(from, unaligned.data() + 1, 1, count, scale, to, out.data());
    for (int i = 0; i < count; ++i) {
      const float x = ReadElement(from, row.data(), i) / scale;
      uint8_t expected;
      WriteElement(to, &expected, 0, x);
      ASSERT_EQ(out[i], expected) << DTypeName(from) << " " << x << " to " << DTypeName(to);
    }
    EXPECT_EQ(out[count], 0xaa);
  }
}

TEST(Float8Test, EveryElementOf16BitsIsNarrowedLikeAScalar) {
  std::vector<uint8_t> row(2 << 16);
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    row[2 * bits] = static_cast<uint8_t>(bits);
    row[2 * bits + 1] = static_cast<uint8_t>(bits >> 8);
  }
  for (DType from : {DType::kFloat16, DType::kBFloat16}) {
    for (float scale : {1.0f, 0.37f, 1e-3f, 300.0f}) Check(from, row, 1 << 16, scale);
  }
}

TEST(Float8Test, MiddlesAndTheirNeighboursAreNarrowedLikeScalars) {
  // Around every middle between two codes, and around infinity and zero: an odd pattern in the low bits, or none.
  std::vector<float> values;
  for (uint32_t upper = 0; upper <= 0xffff; ++upper) {
    for (uint32_t lower : {0x0000u, 0x0001u, 0xffffu}) {
      const uint32_t bits = upper << 16 | lower;
      float x;
      std::memcpy(&x, &bits, sizeof(x));
      values.push_back(x);
    }
  }
  std::vector<uint8_t> row(values.size() * sizeof(float));
  std::memcpy(row.data(), values.data(), row.size());
  Check(DType::kFloat32, row, static_cast<int>(values.size()), 1.0f);
  Check(DType::kFloat32, row, static_cast<int>(values.size()), 0.77f);
}

}  // namespace
}  // namespace hybridgen
