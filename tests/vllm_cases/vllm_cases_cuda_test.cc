// vLLM's backend cases with device kind cuda: the plan that a GPU gets, its kernels on the SIMT executor, and the CPU's
// part through the joint. Nothing here runs on a GPU.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"
#include "tests/simt/host_stream.h"
#include "tests/vllm_cases/run_vllm_case.h"

namespace hybridgen {
namespace {

class VllmCasesCudaTest : public testing::TestWithParam<VllmCase> {
 protected:
  void Run(const VllmCase& c, Binding binding) {
    CaseTarget target;
    target.options.device_kind = DeviceKind::kCuda;
    target.options.executor = ExecutorKind::kPool;
    target.options.num_threads = 2;
    target.create = [this](const BackendOptions& options) { return PagedAttentionBackend::Create(options, stream_); };
    target.lend = [this](const void* data, size_t bytes) { stream_->Lend(data, bytes); };
    target.take_back = [this](const void* data) { stream_->TakeBack(data); };
    target.synchronize = [this] { return stream_->Synchronize(); };
    target.weight_unit = c.dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
    SCOPED_TRACE(c.name);
    RunVllmCase(c, target, binding, kSeed);
  }

  const uint32_t kSeed = TestSeed("//tests/vllm_cases:vllm_cases_cuda_test", 20261124);
  const std::shared_ptr<simt::HostStream> stream_ = std::make_shared<simt::HostStream>(kSeed);
};

// The executor is far slower than any device.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kDivisor = 64;
#else
constexpr int kDivisor = 16;
#endif

TEST_P(VllmCasesCudaTest, Identity) { Run(Shrunk(GetParam(), kDivisor), Binding::kIdentity); }
TEST_P(VllmCasesCudaTest, Tiered) { Run(Shrunk(GetParam(), 2 * kDivisor), Binding::kTiered); }

INSTANTIATE_TEST_SUITE_P(All, VllmCasesCudaTest, testing::ValuesIn([] {
                           std::vector<VllmCase> cases = VllmCases();
                           cases.erase(std::remove_if(cases.begin(), cases.end(),
                                                      [](const VllmCase& c) { return c.dtype == DType::kFloat32; }),
                                       cases.end());
                           return cases;
                         }()),
                         [](const testing::TestParamInfo<VllmCase>& info) { return info.param.name; });

// vLLM's one case that the kernels do not serve.
TEST(VllmCasesCuda, Float32IsRefusedByName) {
  BackendOptions options;
  options.device_kind = DeviceKind::kCuda;
  options.dtype = DType::kFloat32;
  options.num_kv_heads = 4;
  options.head_size = VllmCase::kHeadSize;
  options.block_size = VllmCase::kBlockSize;
  const absl::Status status = PagedAttentionBackend::Create(options, std::make_shared<simt::HostStream>(1)).status();
  EXPECT_NE(status.message().find("dtype is float32 and kv_dtype float32"), std::string::npos) << status;
  EXPECT_NE(status.message().find("accepted: float16, bfloat16"), std::string::npos) << status;
}

}  // namespace
}  // namespace hybridgen
