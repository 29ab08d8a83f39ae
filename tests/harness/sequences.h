// The engine's side of the harness: sequences, their block tables, and which tokens each step computes.
#ifndef TESTS_HARNESS_SEQUENCES_H_
#define TESTS_HARNESS_SEQUENCES_H_

#include <cstdint>
#include <random>
#include <vector>

#include "tests/harness/options.h"

namespace hybridgen {

struct Sequence {
  uint64_t request = 0;
  int prompt_tokens = 0;
  int final_tokens = 0;     // prompt and generated
  int computed_tokens = 0;  // accepted, KV written
  std::vector<int32_t> blocks;
  int announced_blocks = 0;  // of `blocks`, by HG_REQUEST_SET and APPEND
};

// One sequence's part of a step: tokens [computed, computed + num_tokens).
struct StepEntry {
  int sequence = 0;
  int num_tokens = 0;
};

class Sequences {
 public:
  explicit Sequences(const HarnessOptions& options);

  // Engine block ids that the workload needs: the null block, every sequence at its longest, the spare ones.
  int64_t num_blocks() const { return num_blocks_; }
  int max_blocks_per_sequence() const;

  // Ends all sequences (their blocks become free, in random order) and begins new ones.
  void Begin();
  // The next step: as many tokens as the budget allows, decoding sequences beside prefilling ones. Appends the blocks
  // that these tokens need. Empty when everything is generated.
  std::vector<StepEntry> NextStep();
  // Takes the step's tokens as computed; of drafts a random number is rejected.
  void Finish(const std::vector<StepEntry>& step);

  std::vector<Sequence>& all() { return sequences_; }

 private:
  const HarnessOptions& options_;
  int64_t num_blocks_ = 0;
  std::mt19937_64 random_;
  uint64_t next_request_ = 1;
  std::vector<int32_t> free_blocks_;
  std::vector<Sequence> sequences_;
};

}  // namespace hybridgen

#endif  // TESTS_HARNESS_SEQUENCES_H_
