// The conversions of float8 in kernels/cuda/fp8.cuh against the exact scalar ones of kernels/dtype.h.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/cuda/fp8.cuh"
#include "kernels/testing/attend_case.h"

namespace hybridgen::cuda {
namespace {

template <typename Kv>
float Exact(uint32_t code) {
  const uint8_t bits = static_cast<uint8_t>(code);
  return ReadElement(Kv::kDType, &bits, 0);
}

bool Same(float got, float want) {
  return std::isnan(want) ? std::isnan(got) : got == want && std::signbit(got) == std::signbit(want);
}

// Every pair of codes, with other bits above it, which are another pair's.
template <typename T, typename Kv>
void CheckWidening() {
  for (uint32_t pair = 0; pair < 0x10000; ++pair) {
    for (uint32_t above : {0u, 0xffff0000u}) {
      const uint32_t wide = WidenPair<T, Kv>(pair | above);
      ASSERT_TRUE(Same(arch::Low<T>(wide), Exact<Kv>(pair))) << std::hex << pair << " gives " << wide;
      ASSERT_TRUE(Same(arch::High<T>(wide), Exact<Kv>(pair >> 8))) << std::hex << pair << " gives " << wide;
    }
  }
}

TEST(Float8Test, EveryCodeWidensExactly) {
  CheckWidening<arch::Float16, arch::Float8E4M3>();
  CheckWidening<arch::Float16, arch::Float8E5M2>();
  CheckWidening<arch::BFloat16, arch::Float8E4M3>();
  CheckWidening<arch::BFloat16, arch::Float8E5M2>();
  for (uint32_t pair = 0; pair < 0x10000; ++pair) {
    const uint32_t wide = arch::WidenE4M3(pair);
    ASSERT_TRUE(Same(arch::Low<arch::Float16>(wide), Exact<arch::Float8E4M3>(pair)));
    ASSERT_TRUE(Same(arch::High<arch::Float16>(wide), Exact<arch::Float8E4M3>(pair >> 8)));
  }
}

// Around every value of the format and every middle between two, and every float16 and bfloat16.
template <typename Kv>
void CheckNarrowing() {
  const auto check = [](float x) {
    uint8_t want;
    WriteElement(Kv::kDType, &want, 0, x);
    ASSERT_EQ(NarrowByBits<Kv>(x), want) << x;
    ASSERT_EQ(NarrowPair<Kv>(x, 1.0f) & 0xffu, want) << x;
    ASSERT_EQ(NarrowPair<Kv>(1.0f, x) >> 8, want) << x;
    ASSERT_EQ(arch::NarrowToFp8<Kv>(x, 1.0f) & 0xffu, want) << x;
  };
  for (uint32_t code = 0; code < 256; ++code) {
    const float value = Exact<Kv>(code), next = Exact<Kv>(code + 1);
    for (float x : {value, 0.5f * (value + next)}) {
      check(x);
      check(std::nextafter(x, -std::numeric_limits<float>::infinity()));
      check(std::nextafter(x, std::numeric_limits<float>::infinity()));
    }
  }
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    check(Float16ToFloat(static_cast<uint16_t>(bits)));
    check(BFloat16ToFloat(static_cast<uint16_t>(bits)));
  }
}

TEST(Float8Test, NarrowingRoundsToEvenAndSaturates) {
  CheckNarrowing<arch::Float8E4M3>();
  CheckNarrowing<arch::Float8E5M2>();
}

}  // namespace
}  // namespace hybridgen::cuda
