// What the harness runs: a geometry, tiers, and a workload of prompts that are prefilled and then decoded.
#ifndef TESTS_HARNESS_OPTIONS_H_
#define TESTS_HARNESS_OPTIONS_H_

#include <cstdint>
#include <vector>

#include "backend/hybridgen.h"
#include "kernels/dtype.h"

namespace hybridgen {

enum class TableSource { kRows, kMirror };  // how the library learns block tables
enum class Check { kOracle, kNone };
enum class Mask { kCausal, kNone };

struct HarnessOptions {
  // Passed to the library as it is; zeros are the library's defaults.
  hg_config config = {};

  int num_query_heads = 4;
  int num_layers = 1;
  int sliding_window = 0;  // 0: none
  float soft_cap = 0;      // 0: none
  bool alibi = false;
  bool sinks = false;
  Mask mask = Mask::kCausal;

  std::vector<int> prompt_tokens = {100};  // one sequence each
  int decode_tokens = 8;                   // generated per sequence
  int step_tokens = 4096;                  // most query tokens of a step; longer prompts are prefilled in chunks
  int draft_tokens = 0;                    // rejected at random, so that blocks are rewritten
  int rounds = 1;                          // each with new sequences, which reuse the block ids of the last
  int spare_blocks = 0;                    // engine block ids beyond those that the sequences need at once

  int64_t device_bytes = 0;  // tiered binding: the engine's tensor, all layers; 0: as large as all blocks
  TableSource tables = TableSource::kMirror;
  Check check = Check::kOracle;
  uint64_t seed = 1;

  DType dtype() const { return static_cast<DType>(config.dtype); }
};

}  // namespace hybridgen

#endif  // TESTS_HARNESS_OPTIONS_H_
