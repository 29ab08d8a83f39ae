// Tests of the oracle itself on cases whose answer is known in closed form.
#include "tests/oracle/attention_oracle.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

// One query head of size 1 whose logits are `logits` and whose values are 10, 20, 30, ...
OracleInput Simple(std::vector<float> logits) {
  OracleInput in;
  in.num_tokens = in.query_heads = in.kv_heads = in.head_size = 1;
  const int length = static_cast<int>(logits.size());
  in.query = [](int, int, int) { return 1.0f; };
  in.key = [logits](int position, int, int) { return logits[position]; };
  in.value = [](int position, int, int) { return 10.0f * (position + 1); };
  in.SetRanges(length, OracleInput::Mask::kNone, 0);
  return in;
}

TEST(AttentionOracleTest, EqualLogitsGiveTheMean) {
  const OracleRow row = AttendOracle(Simple({2, 2, 2}))[0];
  EXPECT_DOUBLE_EQ(row.o[0], 20.0);
  EXPECT_DOUBLE_EQ(row.lse, 2 + std::log(3.0));
  EXPECT_EQ(row.num_seen, 3);
}

TEST(AttentionOracleTest, NothingSeenIsTheEmptyPartial) {
  const OracleRow row = AttendOracle(Simple({}))[0];
  EXPECT_EQ(row.o[0], 0.0);
  EXPECT_EQ(row.lse, -std::numeric_limits<double>::infinity());
}

TEST(AttentionOracleTest, ASinkTakesWeightButNoValue) {
  OracleInput in = Simple({1});
  in.sinks = {1};
  const OracleRow row = AttendOracle(in)[0];
  EXPECT_DOUBLE_EQ(row.o[0], 5.0);
  EXPECT_DOUBLE_EQ(row.lse, 1 + std::log(2.0));
}

TEST(AttentionOracleTest, ScaleThenCapThenAlibi) {
  OracleInput in = Simple({0, 4});
  in.scale = 0.5f;
  in.soft_cap = 3.0f;
  in.alibi_slopes = {0.25f};  // the query stands at position 1, key 0 is one behind
  const OracleRow row = AttendOracle(in)[0];
  const double a = std::exp(-0.25);
  const double b = std::exp(3 * std::tanh(2.0 / 3));
  EXPECT_NEAR(row.o[0], (10 * a + 20 * b) / (a + b), 1e-13);
  EXPECT_NEAR(row.lse, std::log(a + b), 1e-14);
}

TEST(AttentionOracleTest, CausalWindowAndGroups) {
  OracleInput in;
  in.num_tokens = 2;
  in.query_heads = 4;
  in.kv_heads = 2;
  in.head_size = 1;
  in.query = [](int, int, int) { return 0.0f; };
  in.key = [](int, int, int) { return 0.0f; };
  in.value = [](int position, int kv_head, int) { return position + 100.0f * kv_head; };
  in.SetRanges(5, OracleInput::Mask::kCausal, 3);
  const std::vector<OracleRow> rows = AttendOracle(in);
  ASSERT_EQ(rows.size(), 8u);
  EXPECT_DOUBLE_EQ(rows[1].o[0], 2.0);    // token at position 3 sees 1, 2, 3; head 1 reads KV head 0
  EXPECT_DOUBLE_EQ(rows[2].o[0], 102.0);  // head 2 reads KV head 1
  EXPECT_DOUBLE_EQ(rows[4].o[0], 3.0);    // token at position 4 sees 2, 3, 4
  EXPECT_DOUBLE_EQ(rows[4].lse, std::log(3.0));
}

TEST(AttentionOracleTest, TolerancesGrowWithWhatCausesThem) {
  const OracleRow small = AttendOracle(Simple({1, 2}))[0];
  const OracleRow large = AttendOracle(Simple({100, 200}))[0];
  EXPECT_GT(OutputTolerance(large, DType::kFloat32), OutputTolerance(small, DType::kFloat32));
  EXPECT_GT(OutputTolerance(small, DType::kBFloat16), 20.0 * 0x1p-9);
  EXPECT_LT(OutputTolerance(small, DType::kFloat32), 20.0 * 1e-5);
  EXPECT_LT(LseTolerance(small), 1e-5);
}

}  // namespace
}  // namespace hybridgen
