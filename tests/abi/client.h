// A small valid caller of the C ABI. Tests change one thing of it and expect one message.
#ifndef TESTS_ABI_CLIENT_H_
#define TESTS_ABI_CLIENT_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "backend/hybridgen.h"
#include "tests/harness/buffers.h"
#include "tests/harness/library.h"

namespace hybridgen {

// Opened once; ends the test program when that fails.
const Library& TheLibrary();

// The status is `expected` and the message holds every one of `words`.
::testing::AssertionResult Fails(hg_status status, hg_status expected, std::initializer_list<const char*> words);
::testing::AssertionResult Succeeds(hg_status status);

hg_config ValidConfig(hg_binding binding, hg_device_kind device_kind = HG_DEVICE_CPU);
hg_layer ValidLayer();

// One step's arrays: a sequence of 20 tokens, all new, in blocks 1 and 2.
struct Step {
  std::vector<int32_t> query_start = {0, 20};
  std::vector<int32_t> seq_lens = {20};
  std::vector<int32_t> tables = {1, 2};
  std::vector<uint64_t> requests;  // empty: tables are used
  std::vector<int64_t> slots;      // empty: null
  hg_batch Batch() const;
};

// Backend, one layer, memory for 8 blocks, bound; plans and tensors for steps of up to 64 tokens.
class Client {
 public:
  static constexpr int kBlocks = 8;  // engine block ids 0 to 7
  static constexpr int kTokens = 64;
  static constexpr int kKvHeads = 2;
  static constexpr int kQueryHeads = 4;
  static constexpr int kHeadSize = 16;
  static constexpr int kBlockSize = 16;
  // Two device pages, so that the tiered binding needs its host tier.
  static constexpr int64_t kPageBytes = 4 * kKvHeads * kBlockSize * 2 * kHeadSize;
  static constexpr int64_t kRegionBytes = 2 * kPageBytes;

  explicit Client(hg_binding binding, hg_device_kind device_kind = HG_DEVICE_CPU);
  ~Client();

  hg_backend* backend() const { return backend_; }
  hg_plan*& plan() { return plan_; }
  hg_pool Pool();        // of the identity binding
  hg_regions Regions();  // of the tiered binding

  hg_status Plan(const Step& step);
  hg_status Forward();
  // A step from planning to a finite output: the backend still works.
  ::testing::AssertionResult Works();

  hg_tensor Query() { return View(query_); }
  hg_tensor Key() { return View(key_); }
  hg_tensor Value() { return View(value_); }
  hg_tensor Output() { return View(output_); }

 private:
  static hg_tensor View(TokenTensor& tensor) { return {tensor.data(), tensor.token_stride(), tensor.head_stride()}; }

  const hg_binding binding_;
  GuardedBuffer memory_;
  void* region_ = nullptr;
  TokenTensor query_, key_, value_, output_;
  hg_backend* backend_ = nullptr;
  hg_plan* plan_ = nullptr;
};

}  // namespace hybridgen

#endif  // TESTS_ABI_CLIENT_H_
