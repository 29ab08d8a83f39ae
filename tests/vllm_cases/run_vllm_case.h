// Puts one of vLLM's backend cases to a backend and compares every output with the double-precision oracle.
#ifndef TESTS_VLLM_CASES_RUN_VLLM_CASE_H_
#define TESTS_VLLM_CASES_RUN_VLLM_CASE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "backend/paged_attention_backend.h"
#include "tests/vllm_cases/vllm_cases.h"

namespace hybridgen {

// What is tested, and its device if it has one.
struct CaseTarget {
  BackendOptions options;  // device kind, threads; the case sets the rest
  std::function<absl::StatusOr<std::unique_ptr<PagedAttentionBackend>>(const BackendOptions&)> create =
      [](const BackendOptions& options) { return PagedAttentionBackend::Create(options); };
  // Memory of the test becomes the device's, and comes back.
  std::function<void(const void* data, size_t bytes)> lend = [](const void*, size_t) {};
  std::function<void(const void* data)> take_back = [](const void*) {};
  std::function<absl::Status()> synchronize = [] { return absl::OkStatus(); };
  double weight_unit = 0;  // rounding of softmax weights in its kernels
};

// Identity: as vLLM's test, which writes the context straight into the cache; also checks that nothing but the new
// tokens' slots was written. Tiered: the context comes by earlier steps, a quarter of the blocks fits the device, and
// the rest lies in a DRAM tier. Reports by gtest's assertions.
void RunVllmCase(const VllmCase& c, const CaseTarget& target, Binding binding, uint32_t seed);

}  // namespace hybridgen

#endif  // TESTS_VLLM_CASES_RUN_VLLM_CASE_H_
