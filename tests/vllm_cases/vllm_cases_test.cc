// vLLM's backend cases over the device kinds that need no accelerator.
#include <string>

#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"
#include "tests/vllm_cases/run_vllm_case.h"

namespace hybridgen {
namespace {

class VllmCasesTest : public testing::TestWithParam<VllmCase> {
 protected:
  static void Run(const VllmCase& c, DeviceKind kind, Binding binding) {
    CaseTarget target;
    target.options.device_kind = kind;
    target.options.executor = ExecutorKind::kPool;
    target.options.num_threads = 2;
    SCOPED_TRACE(c.name);
    RunVllmCase(c, target, binding, TestSeed("//tests/vllm_cases:vllm_cases_test", 20261124));
  }
};

// The cases at full length are //tests/e2e:vllm_backend_test's; here the oracle's time counts, and sanitizers multiply
// it.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kDivisor = 16;
#else
constexpr int kDivisor = 4;
#endif

TEST_P(VllmCasesTest, IdentityCpu) { Run(Shrunk(GetParam(), kDivisor), DeviceKind::kCpu, Binding::kIdentity); }
TEST_P(VllmCasesTest, IdentityEmulated) {
  Run(Shrunk(GetParam(), kDivisor), DeviceKind::kEmulated, Binding::kIdentity);
}
TEST_P(VllmCasesTest, TieredCpu) { Run(Shrunk(GetParam(), 2 * kDivisor), DeviceKind::kCpu, Binding::kTiered); }
TEST_P(VllmCasesTest, TieredEmulated) {
  Run(Shrunk(GetParam(), 2 * kDivisor), DeviceKind::kEmulated, Binding::kTiered);
}

INSTANTIATE_TEST_SUITE_P(All, VllmCasesTest, testing::ValuesIn(VllmCases()),
                         [](const testing::TestParamInfo<VllmCase>& info) { return info.param.name; });

}  // namespace
}  // namespace hybridgen
