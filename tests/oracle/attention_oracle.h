// Attention in double precision by the definition, and the float32 error that a correct kernel may show against it.
// Independent of every kernel: plain loops over logical positions, no pages, no online softmax.
#ifndef TESTS_ORACLE_ATTENTION_ORACLE_H_
#define TESTS_ORACLE_ATTENTION_ORACLE_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/dtype.h"

namespace hybridgen {

// One sequence. Elements come from callbacks, already rounded to the dtype in which they are stored.
struct OracleInput {
  int num_tokens = 0;  // query tokens
  int query_heads = 0;
  int kv_heads = 0;  // query head h reads KV head h / (query_heads / kv_heads)
  int head_size = 0;
  std::function<float(int token, int query_head, int dim)> query;
  std::function<float(int position, int kv_head, int dim)> key;
  std::function<float(int position, int kv_head, int dim)> value;
  float scale = 1.0f;
  float soft_cap = 0.0f;                // 0: none
  std::vector<float> alibi_slopes;      // [query_heads] or empty
  std::vector<float> sinks;             // [query_heads] or empty
  std::vector<int32_t> query_position;  // [num_tokens]
  std::vector<int32_t> kv_begin;        // [num_tokens] first key position seen
  std::vector<int32_t> kv_end;          // [num_tokens] one past the last
  // Of the positions seen, those that are attended; null: all.
  std::function<bool(int position)> selected;

  // Query tokens are the last of `length` tokens; causal: a token sees nothing after itself; window > 0: and only the
  // last `window` tokens, itself included.
  enum class Mask { kNone, kCausal };
  void SetRanges(int length, Mask mask, int window);
};

struct OracleLogit {
  double logit = 0;
  double error = 0;  // bound of |float32 logit - logit|
};

// Of a query token and head with the key at `position`, whether it is seen or not.
OracleLogit LogitOracle(const OracleInput& input, int token, int query_head, int position);

struct OracleRow {
  std::vector<double> o;  // [head_size]; zeros where nothing is seen
  double lse = 0;         // natural log; -infinity where nothing is seen
  // What tolerances are derived from.
  int num_seen = 0;            // tokens
  double logit_error = 0;      // bound of |float32 logit - logit|
  double logit_spread = 0;     // largest |logit| seen, sink included
  double value_magnitude = 0;  // largest |V| element seen
  double largest_weight = 0;   // of a token, or the sink, of all that share 1
  double output_error = 0;     // bound of what |o - oracle| has beyond float32 arithmetic
};

// Rows in the order [token][query_head].
std::vector<OracleRow> AttendOracle(const OracleInput& input);

// Adds to the errors of `rows`, the oracle's of `input`, what kernels over 8-bit pages add: they round each query row
// to 32512 steps of its largest |element|, and the weights of a chunk to 32767 of their largest.
void AddInt8Errors(const OracleInput& input, std::vector<OracleRow>& rows);

// Largest |o - oracle| of any dim, and largest |lse - oracle|, that float32 arithmetic explains, for a kernel that sums
// in chunks of up to 128 tokens and merges `num_partials` partials; o rounded to `output` at the end.
double OutputTolerance(const OracleRow& row, DType output, int num_partials = 1);
double LseTolerance(const OracleRow& row, int num_partials = 1);

}  // namespace hybridgen

#endif  // TESTS_ORACLE_ATTENTION_ORACLE_H_
