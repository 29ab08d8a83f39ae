// Fixture and constants of the tests that run for every set of CPU kernels.
#ifndef KERNELS_TESTING_KERNEL_SET_TEST_H_
#define KERNELS_TESTING_KERNEL_SET_TEST_H_

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"

namespace hybridgen {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Of queries and outputs, and of KV.
constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3,
                               DType::kFloat8E5M2};
// Page formats that hold elements as they are.
constexpr PageFormat kExactFormats[] = {PageFormat::kStrided, PageFormat::kPackedV1};

class KernelSetTest : public testing::TestWithParam<KernelSet> {
 protected:
  const KernelSet& kernels() const { return GetParam(); }
};

inline std::string KernelSetName(const testing::TestParamInfo<KernelSet>& info) { return info.param.name; }

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace hybridgen

#endif  // KERNELS_TESTING_KERNEL_SET_TEST_H_
