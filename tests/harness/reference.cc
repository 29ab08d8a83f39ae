// Remembers every token it made, and asks the oracle.
#include "tests/harness/reference.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/oracle/attention_oracle.h"

namespace hybridgen {
namespace {

constexpr float kQueryMagnitude = 4.0f;  // logits of a few units: some tokens count much more than others

void MakeToken(ElementStream& elements, float magnitude, int heads, int head_size, int position, int row, DType dtype,
               std::vector<float>* history, TokenTensor* tensor) {
  const size_t width = static_cast<size_t>(heads) * head_size;
  if (history->size() < (position + 1) * width) history->resize((position + 1) * width);
  float* kept = history->data() + position * width;
  for (int head = 0; head < heads; ++head) {
    for (int dim = 0; dim < head_size; ++dim) {
      const float element = Rounded(magnitude * elements.Next(), dtype);
      *kept++ = element;
      tensor->Set(row, head, dim, element);
    }
  }
}

}  // namespace

Reference::Reference(const HarnessOptions& options)
    : options_(options),
      scale_(1.0f / std::sqrt(static_cast<float>(options.config.head_size))),
      elements_(options.seed) {
  for (int head = 0; head < options.num_query_heads; ++head) {
    if (options.alibi) alibi_slopes_.push_back(std::exp2(-8.0f * (head + 1) / options.num_query_heads));
    if (options.sinks) sinks_.push_back(elements_.Next());
  }
  Begin();
}

void Reference::Begin() { histories_.assign(options_.num_layers * options_.prompt_tokens.size(), History()); }

void Reference::Generate(int layer, int sequence, int position, int row, TokenTensor* query, TokenTensor* key,
                         TokenTensor* value) {
  History& history = At(layer, sequence);
  const hg_config& config = options_.config;
  const DType dtype = options_.dtype();
  MakeToken(elements_, kQueryMagnitude, options_.num_query_heads, config.head_size, position, row, dtype,
            &history.query, query);
  MakeToken(elements_, 1.0f, config.num_kv_heads, config.head_size, position, row, dtype, &history.key, key);
  MakeToken(elements_, 1.0f, config.num_kv_heads, config.head_size, position, row, dtype, &history.value, value);
}

absl::Status Reference::Compare(int layer, int sequence, int length, int num_tokens, int row, TokenTensor* output,
                                int64_t* checked_rows, double* largest_error) const {
  const History& history = At(layer, sequence);
  const hg_config& config = options_.config;
  const auto element = [&config](const std::vector<float>& tokens, int heads) {
    return [&tokens, heads, head_size = config.head_size](int position, int head, int dim) {
      return tokens[(static_cast<size_t>(position) * heads + head) * head_size + dim];
    };
  };
  OracleInput input;
  input.num_tokens = num_tokens;
  input.query_heads = options_.num_query_heads;
  input.kv_heads = config.num_kv_heads;
  input.head_size = config.head_size;
  input.query = [query = element(history.query, options_.num_query_heads), first = length - num_tokens](
                    int token, int head, int dim) { return query(first + token, head, dim); };
  input.key = element(history.key, config.num_kv_heads);
  input.value = element(history.value, config.num_kv_heads);
  input.scale = scale_;
  input.soft_cap = options_.soft_cap;
  input.alibi_slopes = alibi_slopes_;
  input.sinks = sinks_;
  input.SetRanges(length, options_.mask == Mask::kCausal ? OracleInput::Mask::kCausal : OracleInput::Mask::kNone,
                  options_.sliding_window);
  const std::vector<OracleRow> rows = AttendOracle(input);

  // No split of a sequence is finer than a block.
  const int most_partials = (length + config.block_size - 1) / config.block_size;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int token = static_cast<int>(i) / options_.num_query_heads;
    const int head = static_cast<int>(i) % options_.num_query_heads;
    const double tolerance = OutputTolerance(rows[i], options_.dtype(), most_partials);
    for (int dim = 0; dim < config.head_size; ++dim) {
      const float got = output->Get(row + token, head, dim);
      const double error = std::abs(got - rows[i].o[dim]);
      if (!(error <= tolerance)) {
        return absl::DataLossError(absl::StrCat("layer ", layer, ", sequence ", sequence, ", position ",
                                                length - num_tokens + token, ", query head ", head, ", dim ", dim,
                                                ": got ", got, ", expected ", rows[i].o[dim], " +- ", tolerance));
      }
      *largest_error = std::max(*largest_error, error / tolerance);
    }
    ++*checked_rows;
  }
  return absl::OkStatus();
}

}  // namespace hybridgen
