// Attention in double precision by the definition.
#include "tests/oracle/attention_oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hybridgen {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kUnit = 0x1p-24;  // largest relative error of one float32 rounding

// Rounding error of a logit, first order. A dot product of n terms in any order is off by at most n roundings of
// sum |q k|; the scale, float8's scale in it, the cap's division and multiplication and ALiBi's two operations add one
// rounding each of what they produce; the kernels' tanh is off by up to 3 roundings of 1, hence 3 of the cap.
double LogitError(const OracleInput& in, double magnitude, double alibi) {
  double error = (in.head_size + 2) * kUnit * magnitude;
  if (in.soft_cap > 0) error += 3 * kUnit * magnitude + 5 * kUnit * in.soft_cap;
  return error + 3 * kUnit * (std::abs(alibi) + magnitude) * (in.alibi_slopes.empty() ? 0 : 1);
}

// Relative error of one weight exp(logit - max) against its share of the sum, beyond the logit's own error:
//   the subtraction rounds once (its result is at most twice the spread), exp is within 2 roundings;
//   a sum over a chunk of up to 512 tokens takes at most as many roundings on its longest path;
//   every further chunk (of 128 tokens or more) rescales what came before: decay (exp of a rounded difference),
//   product, addition; a partial's merge does the same once more, and divides.
double WeightError(const OracleRow& row, int num_partials) {
  const double rescale = 6 + 2 * row.logit_spread;
  const double chunks = std::ceil(row.num_seen / 128.0);
  return kUnit * (2 * row.logit_spread + 2 + std::min(row.num_seen, 512) + (chunks + num_partials) * rescale);
}

double OutputUnit(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 0x1p-24;
    case DType::kFloat16:
      return 0x1p-11;
    case DType::kBFloat16:
      return 0x1p-8;
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2:
      break;  // no output is float8
  }
  return kInfinity;
}

OracleRow AttendRow(const OracleInput& in, int token, int head) {
  const int kv_head = head / (in.query_heads / in.kv_heads);
  OracleRow row;
  row.o.assign(in.head_size, 0.0);
  std::vector<int> positions;
  std::vector<double> logits;
  double max = in.sinks.empty() ? -kInfinity : in.sinks[head];
  if (!in.sinks.empty()) row.logit_spread = std::abs(max);
  for (int position = in.kv_begin[token]; position < in.kv_end[token]; ++position) {
    if (in.selected != nullptr && !in.selected(position)) continue;
    const OracleLogit x = LogitOracle(in, token, head, position);
    positions.push_back(position);
    logits.push_back(x.logit);
    max = std::max(max, x.logit);
    row.logit_error = std::max(row.logit_error, x.error);
    row.logit_spread = std::max(row.logit_spread, std::abs(x.logit));
  }
  row.num_seen = static_cast<int>(logits.size());
  if (max == -kInfinity) {
    row.lse = -kInfinity;
    return row;
  }
  double sum = in.sinks.empty() ? 0.0 : std::exp(in.sinks[head] - max);
  for (size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp(logits[i] - max);
    sum += weight;
    for (int dim = 0; dim < in.head_size; ++dim) {
      const double v = in.value(positions[i], kv_head, dim);
      row.o[dim] += weight * v;
      row.value_magnitude = std::max(row.value_magnitude, std::abs(v));
    }
  }
  for (double& o : row.o) o /= sum;
  row.lse = max + std::log(sum);
  row.largest_weight = 1 / sum;
  return row;
}

}  // namespace

void OracleInput::SetRanges(int length, Mask mask, int window) {
  query_position.resize(num_tokens);
  kv_begin.resize(num_tokens);
  kv_end.resize(num_tokens);
  for (int token = 0; token < num_tokens; ++token) {
    const int position = length - num_tokens + token;
    query_position[token] = position;
    kv_begin[token] = window > 0 ? std::max(0, position - window + 1) : 0;
    kv_end[token] = mask == Mask::kCausal ? position + 1 : length;
  }
}

OracleLogit LogitOracle(const OracleInput& in, int token, int head, int position) {
  const int kv_head = head / (in.query_heads / in.kv_heads);
  double dot = 0;
  double magnitude = 0;
  for (int dim = 0; dim < in.head_size; ++dim) {
    const double product = static_cast<double>(in.query(token, head, dim)) * in.key(position, kv_head, dim);
    dot += product;
    magnitude += std::abs(product);
  }
  double logit = dot * in.scale;
  if (in.soft_cap > 0) logit = in.soft_cap * std::tanh(logit / in.soft_cap);
  const double bias = in.alibi_slopes.empty()
                          ? 0.0
                          : static_cast<double>(in.alibi_slopes[head]) * (position - in.query_position[token]);
  return {logit + bias, LogitError(in, magnitude * std::abs(in.scale), bias)};
}

std::vector<OracleRow> AttendOracle(const OracleInput& input) {
  std::vector<OracleRow> rows;
  rows.reserve(static_cast<size_t>(input.num_tokens) * input.query_heads);
  for (int token = 0; token < input.num_tokens; ++token) {
    for (int head = 0; head < input.query_heads; ++head) rows.push_back(AttendRow(input, token, head));
  }
  return rows;
}

// A step of q is max|q| / 32512. Half of one per dim moves a logit by at most that times sum |k|; the quotient that is
// rounded is itself off by two roundings of up to 32512, hence 0.504. A weight is at most 1 before the running maximum
// is taken out, so half a step of the weights is worth at most 0.504 / 32767 of the largest weight times the largest
// |V|, for every token seen.
void AddInt8Errors(const OracleInput& in, std::vector<OracleRow>& rows) {
  for (int token = 0; token < in.num_tokens; ++token) {
    for (int head = 0; head < in.query_heads; ++head) {
      OracleRow& row = rows[static_cast<size_t>(token) * in.query_heads + head];
      double query = 0;
      for (int dim = 0; dim < in.head_size; ++dim) {
        query = std::max(query, std::abs(static_cast<double>(in.query(token, head, dim))));
      }
      double keys = 0;
      for (int position = in.kv_begin[token]; position < in.kv_end[token]; ++position) {
        double sum = 0;
        for (int dim = 0; dim < in.head_size; ++dim) {
          sum += std::abs(static_cast<double>(in.key(position, head / (in.query_heads / in.kv_heads), dim)));
        }
        keys = std::max(keys, sum);
      }
      row.logit_error += 0.504 / 32512 * query * keys * std::abs(in.scale);
      row.output_error += 0.504 / 32767 * row.num_seen * row.largest_weight * row.value_magnitude;
    }
  }
}

// o is a mean of V with relatively wrong weights: each weight's error moves it by at most that times |v - o|, which is
// up to 2 max |v|. The factor 1.01 stands for the second order; the last float32 rounding is that of float8's V scale.
double OutputTolerance(const OracleRow& row, DType output, int num_partials) {
  const double relative = row.logit_error + WeightError(row, num_partials);
  double rounded = 0;
  for (double o : row.o) rounded = std::max(rounded, std::abs(o));
  const double smallest = output == DType::kFloat16 ? 0x1p-25 : 0x1p-126;  // below it rounding is absolute
  return 1.01 * 2 * relative * row.value_magnitude + row.output_error + (OutputUnit(output) + kUnit) * rounded +
         smallest;
}

double LseTolerance(const OracleRow& row, int num_partials) {
  const double magnitude = std::isfinite(row.lse) ? std::abs(row.lse) : 0.0;
  return 1.01 * (row.logit_error + WeightError(row, num_partials) + 3 * kUnit * (magnitude + 1));
}

}  // namespace hybridgen
