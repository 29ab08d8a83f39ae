// The cases that vLLM's own backend test puts to a backend (tests/v1/attention/test_attention_backends.py; run as it
// is, on the CPU, by //tests/e2e:vllm_backend_test), as data: batches, masks, KV cache layouts, dtypes, shards of the
// heads.
#ifndef TESTS_VLLM_CASES_VLLM_CASES_H_
#define TESTS_VLLM_CASES_VLLM_CASES_H_

#include <algorithm>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "tests/oracle/attention_oracle.h"

namespace hybridgen {

struct VllmCase {
  std::string name;
  // Of each sequence, the tokens that it has and how many of them, the last ones, are new.
  std::vector<int> seq_lens;
  std::vector<int> query_lens;
  OracleInput::Mask mask = OracleInput::Mask::kCausal;
  int window = 0;  // 0: none
  bool sinks = false;
  // Order of the cache's dimensions in memory: layer, block, KV head, token (N), content (C: K, then V).
  std::string layout = "LBNHC";
  DType dtype = DType::kBFloat16;
  int shards = 1;  // tensor parallelism: a shard has 8 / shards query heads and 4 / shards KV heads

  int query_heads() const { return 8 / shards; }
  int kv_heads() const { return 4 / shards; }
  static constexpr int kHeadSize = 64;
  static constexpr int kBlockSize = 16;
};

inline void PrintTo(const VllmCase& c, std::ostream* out) { *out << c.name; }

inline std::vector<VllmCase> VllmCases() {
  struct Batch {
    const char* name;
    std::vector<int> seq_lens;
    std::vector<int> query_lens;
  };
  const std::vector<Batch> batches = {
      {"small_decode", {32, 40}, {1, 1}},
      {"small_prefill", {32, 40}, {8, 8}},
      {"mixed_small", {32, 40, 48, 56}, {1, 1, 5, 5}},
      {"medium_decode", {128, 256, 512, 1024, 128, 256, 512, 1024}, {1, 1, 1, 1, 1, 1, 1, 1}},
      {"medium_prefill", {256, 512, 1024, 2048}, {16, 16, 16, 16}},
      {"mixed_medium", {512, 1024, 2048, 512, 1024, 2048}, {1, 1, 1, 7, 7, 7}},
      {"large_decode", std::vector<int>(32, 2048), std::vector<int>(32, 1)},
      {"large_prefill", std::vector<int>(8, 4096), std::vector<int>(8, 32)},
      {"mixed_large", {1024, 2048, 4096, 1024, 2048, 4096}, {1, 1, 1, 32, 32, 32}},
      {"single_decode", {1024}, {1}},
      {"single_prefill", {1024}, {64}},
  };
  const auto batch = [&](const std::string& name, const std::string& suffix) {
    const auto found = std::find_if(batches.begin(), batches.end(), [&](const Batch& b) { return b.name == name; });
    VllmCase c;
    c.name = name + suffix;
    c.seq_lens = found->seq_lens;
    c.query_lens = found->query_lens;
    return c;
  };
  std::vector<VllmCase> cases;
  for (int shards : {1, 2, 4}) {
    const std::string suffix = "_shards" + std::to_string(shards);
    for (const char* name : {"small_decode", "small_prefill", "mixed_small", "medium_decode", "medium_prefill",
                             "mixed_medium", "large_decode", "large_prefill", "single_decode", "single_prefill"}) {
      cases.push_back(batch(name, suffix));
      cases.back().shards = shards;
    }
    for (const char* name :
         {"small_decode", "small_prefill", "mixed_medium", "large_decode", "large_prefill", "mixed_large"}) {
      cases.push_back(batch(name, "_window" + suffix));
      cases.back().shards = shards;
      cases.back().window = 300;
    }
  }
  for (const char* name : {"small_decode", "small_prefill", "mixed_small"}) {
    cases.push_back(batch(name, "_non_causal"));
    cases.back().mask = OracleInput::Mask::kNone;
  }
  cases.push_back(batch("mixed_medium", "_sinks"));
  cases.back().sinks = true;
  for (const char* layout : {"LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"}) {
    cases.push_back(batch("mixed_small", std::string("_") + layout));
    cases.back().layout = layout;
  }
  for (DType dtype : {DType::kFloat16, DType::kFloat32}) {
    cases.push_back(batch("mixed_medium", std::string("_") + DTypeName(dtype)));
    cases.back().dtype = dtype;
  }
  return cases;
}

// The case with lengths and window divided, so that its shape stays: for executors that are slow, and where the context
// itself has to be computed. Lengths up to 64 stay.
inline VllmCase Shrunk(VllmCase c, int divisor) {
  for (size_t i = 0; i < c.seq_lens.size(); ++i) {
    if (c.seq_lens[i] <= 64) continue;
    c.seq_lens[i] = std::max(c.seq_lens[i] / divisor, 64);
    c.query_lens[i] = std::max(c.query_lens[i] / divisor, 1);
  }
  if (c.window > 0) c.window = std::max(c.window / divisor, 20);
  return c;
}

}  // namespace hybridgen

#endif  // TESTS_VLLM_CASES_VLLM_CASES_H_
