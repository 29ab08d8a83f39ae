// The decode and merge kernels, run on the host, against the double-precision oracle.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/simt/device_case.h"

namespace hybridgen::simt {
namespace {

constexpr int kHeadSizes[] = {64, 96, 128, 256};
constexpr int kGroups[] = {1, 4, 8, 16};
constexpr int kPageTokens[] = {16, 32, 128};
constexpr int kLengths[] = {1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 200};
constexpr int kNumTokens[] = {1, 2, 3, 5};
constexpr int kWindows[] = {0, 1, 17, 70};
constexpr int kSplits[] = {1, 2, 3, 9};
constexpr Layout kLayouts[] = {Layout::kHeadMajor, Layout::kTokenMajor, Layout::kApart};

TEST(PairwiseCoverTest, HoldsEveryPair) {
  const std::vector<int> sizes = {2, 4, 3, 5, 1};
  const auto rows = PairwiseCover(sizes, 3);
  EXPECT_LE(rows.size(), 30u);
  for (size_t i = 0; i < sizes.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      for (int a = 0; a < sizes[i]; ++a) {
        for (int b = 0; b < sizes[j]; ++b) {
          EXPECT_TRUE(
              std::any_of(rows.begin(), rows.end(), [&](const auto& row) { return row[i] == a && row[j] == b; }));
        }
      }
    }
  }
}

DeviceCase CaseOf(const std::vector<int>& row, uint32_t seed) {
  DeviceCase c;
  SetTypes(c.attend, kDevicePairs[row[0]]);
  c.attend.head_size = kHeadSizes[row[1]];
  c.attend.group = kGroups[row[2]];
  c.attend.page_tokens = kPageTokens[row[3]];
  c.attend.length = kLengths[row[4]];
  c.attend.num_tokens = kNumTokens[row[5]];
  c.attend.window = kWindows[row[6]];
  c.splits = kSplits[row[7]];
  c.layout = kLayouts[row[8]];
  c.attend.soft_cap = row[9] & 1 ? 1.5f : 0.0f;
  c.attend.alibi = row[9] & 2;
  c.attend.sinks = row[9] & 4;
  c.attend.mask = row[10] == 0 ? OracleInput::Mask::kCausal : OracleInput::Mask::kNone;
  c.sequences = 1 + row[11];
  c.item_tokens = row[12];  // 0: all in one item
  c.pages = row[13] == 0 ? DeviceCase::Pages::kDevice : DeviceCase::Pages::kStreamed;
  c.attend.seed = seed;
  return c;
}

TEST(DecodeTest, PairwiseCoverOfAllParameters) {
  const uint32_t seed = TestSeed("//tests/simt:decode_test", 1);
  const auto rows = PairwiseCover({6, 4, 4, 3, 14, 4, 4, 4, 3, 8, 2, 2, 2, 2}, seed);
#ifdef HYBRIDGEN_SANITIZER
  constexpr size_t kStep = 3;  // every third case: a sanitizer looks for other things than a wrong sum
#else
  constexpr size_t kStep = 1;
#endif
  for (size_t i = 0; i < rows.size(); i += kStep) {
    CheckAttend(CaseOf(rows[i], seed + static_cast<uint32_t>(i)));
    if (HasFatalFailure() || HasFailure()) return;
  }
  std::printf("%zu cases, every %zu. run\n", rows.size(), kStep);
}

DeviceCase Small() {
  DeviceCase c;
  c.attend.dtype = c.attend.output = DType::kBFloat16;
  c.attend.head_size = 64;
  c.attend.kv_heads = 1;
  c.attend.length = 70;
  return c;
}

// Output bits of one run.
std::vector<uint16_t> RunBits(const DeviceCase& c, uint64_t order) {
  DeviceData data(c);
  RunAttend(data, order);
  std::vector<uint16_t> bits;
  for (size_t i = 0; i < data.output().size(); ++i) bits.push_back(data.output()[i]);
  return bits;
}

TEST(DecodeTest, EqualBitsInEveryOrder) {
  for (int group : {1, 3, 16}) {
    DeviceCase c = Small();
    c.attend.group = group;
    c.splits = 3;
    const std::vector<uint16_t> want = RunBits(c, 1);
    for (uint64_t order = 2; order < 10; ++order) ASSERT_EQ(RunBits(c, order), want) << c.ToString();
  }
}

TEST(DecodeTest, RowsThatSeeNothing) {
  for (int group : {1, 4, 8}) {
    for (int splits : {1, 3}) {
      DeviceCase c = Small();
      c.attend.group = group;
      c.attend.sinks = splits == 3;  // a sink alone gives o = 0 and its own logit as lse
      c.splits = splits;
      SCOPED_TRACE(c.ToString());
      DeviceData data(c);
      for (int kv_head = 0; kv_head < c.attend.kv_heads; ++kv_head) data.sequence(0).oracle(kv_head).kv_end[0] = 0;
      data.kv_end()[0] = 0;
      RunAttend(data, 1);
      data.ExpectMatchesOracle(0.0);
    }
  }
}

TEST(DecodeTest, ARangeMayReachBeyondThePages) {
  for (int group : {1, 4, 8}) {
    DeviceCase c = Small();
    c.attend.group = group;
    DeviceData data(c);
    data.kv_end()[0] = 1000;
    RunAttend(data, 1);
    data.ExpectMatchesOracle(UnitOf(c.attend.dtype));
  }
}

TEST(DecodeTest, AnInfiniteLogitIsReported) {
  for (int group : {1, 4, 8}) {
    DeviceCase c = Small();
    c.attend.group = group;
    c.attend.scale = 3e38f;
    DeviceData data(c);
    RunAttend(data, 1);
    EXPECT_EQ(data.status(), cuda::kStatusInfiniteLogit) << c.ToString();
  }
}

TEST(DecodeTest, ANanIsSeenByTheRowsThatSeeIt) {
  for (int group : {1, 4, 8}) {
    DeviceCase c = Small();
    c.attend.group = group;
    c.attend.kv_heads = 2;
    DeviceData data(c);
    data.query()[0] = 0x7fff;  // head 0, dim 0
    RunAttend(data, 1);
    for (int head = 0; head < 2 * group; ++head) {
      EXPECT_EQ(std::isnan(BFloat16ToFloat(data.output()[head * 64])), head == 0) << "head " << head << " of " << group;
    }
  }
}

#ifdef HYBRIDGEN_FULL_PRODUCT
class FullProductTest : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(FullProductTest, OfKernelsPagesLengthsAndSplits) {
  const uint32_t seed = TestSeed("//tests/simt:decode_full_test", 1);
  const auto [types, head_size] = GetParam();
  uint32_t n = 0;
  for (int group = 0; group < 4; ++group) {
    for (int page = 0; page < 3; ++page) {
      for (int length = 0; length < 14; ++length) {
        for (int splits = 0; splits < 4; ++splits, ++n) {
          // The other parameters go round, each at its own pace.
          const int i = static_cast<int>(n + seed);
          CheckAttend(CaseOf({types, head_size, group, page, length, i % 4, i / 3 % 4, splits, i % 3, i / 5 % 8,
                              i / 7 % 2, i / 11 % 2, i / 13 % 2, i / 17 % 2},
                             seed + n));
          if (HasFatalFailure() || HasFailure()) return;
        }
      }
    }
  }
  std::printf("%u cases\n", n);
}

INSTANTIATE_TEST_SUITE_P(All, FullProductTest, testing::Combine(testing::Range(0, 6), testing::Range(0, 4)));
#endif

}  // namespace
}  // namespace hybridgen::simt
