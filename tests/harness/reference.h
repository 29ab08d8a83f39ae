// What the harness feeds, what it must get back: synthetic Q, K and V per token, and the oracle's answer to them.
#ifndef TESTS_HARNESS_REFERENCE_H_
#define TESTS_HARNESS_REFERENCE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "tests/harness/buffers.h"
#include "tests/harness/options.h"

namespace hybridgen {

class Reference {
 public:
  explicit Reference(const HarnessOptions& options);

  float scale() const { return scale_; }
  const float* alibi_slopes() const { return alibi_slopes_.empty() ? nullptr : alibi_slopes_.data(); }
  const float* sinks() const { return sinks_.empty() ? nullptr : sinks_.data(); }

  // New sequences: what earlier ones held is forgotten.
  void Begin();

  // Makes the token at `position` of a sequence, new values on every call, and puts it into row `row` of the tensors.
  void Generate(int layer, int sequence, int position, int row, TokenTensor* query, TokenTensor* key,
                TokenTensor* value);

  // Compares rows [row, row + num_tokens) of `output` with the attention of the sequence's last num_tokens tokens of
  // `length`. Errors: DataLoss naming the element.
  absl::Status Compare(int layer, int sequence, int length, int num_tokens, int row, TokenTensor* output,
                       int64_t* checked_rows, double* largest_error) const;

 private:
  // All tokens of one (layer, sequence), token-major, as the dtype holds them.
  struct History {
    std::vector<float> query, key, value;
  };

  History& At(int layer, int sequence) { return histories_[layer * options_.prompt_tokens.size() + sequence]; }
  const History& At(int layer, int sequence) const {
    return histories_[layer * options_.prompt_tokens.size() + sequence];
  }

  const HarnessOptions& options_;
  const float scale_;
  std::vector<float> alibi_slopes_;
  std::vector<float> sinks_;
  ElementStream elements_;
  std::vector<History> histories_;
};

}  // namespace hybridgen

#endif  // TESTS_HARNESS_REFERENCE_H_
