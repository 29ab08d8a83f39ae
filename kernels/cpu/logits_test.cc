// Logits from K alone, stored and summarised, of every ISA level that this CPU has, against the oracle.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/kernel_set_test.h"
#include "kernels/testing/red_zone.h"

namespace hybridgen {
namespace {

class LogitsTest : public KernelSetTest {};

INSTANTIATE_TEST_SUITE_P(Isa, LogitsTest, testing::ValuesIn(RunnableKernelSets()), KernelSetName);

// V must not be read: its addresses fault.
std::vector<KvPage> WithoutValues(std::vector<KvPage> pages) {
  for (KvPage& page : pages) page.v = kPoisonedPage;
  return pages;
}

int Rows(const AttendData& data) { return data.c().num_tokens * data.c().group; }
int Slots(const AttendData& data) { return static_cast<int>(data.pages().size()) * data.c().page_tokens; }

struct Stored {
  KernelResult status;
  std::vector<float> logits;  // [row][slot]
};

Stored Store(const KernelSet& kernels, const AttendData& data, int kv_head) {
  const QueryTile tile = data.Tile(kv_head);
  const int rows = Rows(data), slots = Slots(data);
  const int64_t stride = slots + 16;
  RedZoned<float> logits(rows * stride);
  RedZoned<uint8_t> scratch(AttendScratchBytes(tile.head_size), 4);
  const std::vector<KvPage> pages = WithoutValues(data.pages());
  AttendArgs args = data.Args(kv_head);
  args.pages = pages.data();
  Stored stored;
  stored.status = kernels.selection.store_logits(tile, args, logits.data(), stride, scratch.data());
  EXPECT_TRUE(logits.Intact() && scratch.Intact()) << "wrote outside its memory";
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < stride; ++i) {
      if (i < slots) {
        stored.logits.push_back(logits[row * stride + i]);
      } else {
        EXPECT_TRUE(std::isnan(logits[row * stride + i])) << "wrote behind the last slot";
      }
    }
  }
  return stored;
}

struct Summary {
  explicit Summary(int rows) : max(rows, -kInf), sum(rows, 0.0f), bins(rows * kLogitBins, 0) {}
  KernelResult status = KernelResult::kOk;
  std::vector<float> max, sum;
  std::vector<uint32_t> bins;
  uint64_t Count(int row) const {
    return std::accumulate(&bins[row * kLogitBins], &bins[row * kLogitBins] + kLogitBins, uint64_t{0});
  }
};

// The pages [begin, end) of the case, folded into `summary`.
void Summarise(const KernelSet& kernels, const AttendData& data, int kv_head, size_t begin, size_t end,
               Summary& summary) {
  const QueryTile tile = data.Tile(kv_head);
  std::vector<KvPage> pages = WithoutValues(data.pages());
  pages = {pages.begin() + begin, pages.begin() + end};
  AttendArgs args = data.Args(kv_head);
  args.pages = pages.data();
  args.num_pages = static_cast<int>(pages.size());
  RedZoned<uint8_t> scratch(AttendScratchBytes(tile.head_size));
  summary.status = kernels.selection.summarise_logits(
      tile, args, {summary.max.data(), summary.sum.data(), summary.bins.data()}, scratch.data());
  EXPECT_TRUE(scratch.Intact());
}

Summary Summarise(const KernelSet& kernels, const AttendData& data, int kv_head) {
  Summary summary(Rows(data));
  Summarise(kernels, data, kv_head, 0, data.pages().size(), summary);
  return summary;
}

bool Seen(const OracleInput& in, int token, int position) {
  return position >= in.kv_begin[token] && position < in.kv_end[token];
}

void CheckStored(const KernelSet& kernels, AttendData& data, int kv_head) {
  const Stored stored = Store(kernels, data, kv_head);
  ASSERT_EQ(stored.status, KernelResult::kOk);
  const OracleInput& in = data.oracle(kv_head);
  for (int row = 0; row < Rows(data); ++row) {
    const int token = row / data.c().group;
    for (int slot = 0; slot < Slots(data); ++slot) {
      const float actual = stored.logits[row * Slots(data) + slot];
      if (slot >= data.c().length || !Seen(in, token, slot)) {
        ASSERT_EQ(actual, -kInf) << "row " << row << " does not see slot " << slot;
        continue;
      }
      const OracleLogit x = LogitOracle(in, token, row % data.c().group, slot);
      ASSERT_LE(std::abs(actual - x.logit), 1.01 * x.error) << "row " << row << " slot " << slot;
    }
  }
}

// Number of a row's logits from which bin `bin` or a higher one begins, to within the rounding of x / ln 2.
void CheckBins(const OracleInput& in, int token, int head, float max, const uint32_t* bins) {
  const auto exponent = [](double x) { return x / std::log(2.0); };
  const double top = std::nearbyint(static_cast<double>(std::nearbyintf(max * 0x1.715476p+0f)));
  std::vector<OracleLogit> logits;
  for (int position = in.kv_begin[token]; position < in.kv_end[token]; ++position) {
    logits.push_back(LogitOracle(in, token, head, position));
  }
  uint64_t above = 0;
  for (int bin = kLogitBins - 1; bin > 0; --bin) {
    above += bins[bin];
    const double edge = top - (kLogitBins - 1 - bin) - 0.5;
    uint64_t least = 0, most = 0;
    for (const OracleLogit& x : logits) {
      const double slack = exponent(1.01 * x.error) + 0x1p-22 * (std::abs(exponent(x.logit)) + 1);
      least += exponent(x.logit) - slack > edge;
      most += exponent(x.logit) + slack >= edge;
    }
    ASSERT_GE(above, least) << "bin " << bin;
    ASSERT_LE(above, most) << "bin " << bin;
  }
  ASSERT_EQ(above + bins[0], logits.size());
}

void CheckSummary(const KernelSet& kernels, AttendData& data, int kv_head) {
  const Summary summary = Summarise(kernels, data, kv_head);
  ASSERT_EQ(summary.status, KernelResult::kOk);
  const OracleInput& in = data.oracle(kv_head);
  const std::vector<OracleRow> rows = AttendOracle(in);
  for (int row = 0; row < Rows(data); ++row) {
    SCOPED_TRACE(testing::Message() << "row " << row);
    if (rows[row].num_seen == 0) {
      EXPECT_EQ(summary.max[row], -kInf);
      EXPECT_EQ(summary.sum[row], 0.0f);
      EXPECT_EQ(summary.Count(row), 0u);
      continue;
    }
    EXPECT_NEAR(summary.max[row] + std::log(summary.sum[row]), rows[row].lse, LseTolerance(rows[row]));
    CheckBins(in, row / data.c().group, row % data.c().group, summary.max[row], &summary.bins[row * kLogitBins]);
  }
}

void Check(const KernelSet& kernels, AttendCase c) {
  c.sinks = false;  // logits of tokens only
  SCOPED_TRACE(testing::Message() << kernels.name << ": " << c.ToString());
  AttendData data(c);
  for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
    CheckStored(kernels, data, kv_head);
    CheckSummary(kernels, data, kv_head);
  }
}

TEST_P(LogitsTest, MatchTheDefinition) {
  for (DType dtype : kKvDTypes) {
    for (PageFormat format : kExactFormats) {
      for (int length : {1, 16, 17, 260}) {
        for (int group : {1, 2, 8, 9}) {
          AttendCase c;
          c.SetStorage(dtype);
          c.format = format;
          c.length = length;
          c.group = group;
          c.kv_heads = 1 + length % 2;
          c.head_size = 8 * (1 + (length + group) % 5);
          c.page_tokens = group % 2 == 0 ? 16 : 64;
          c.seed = length + group;
          Check(kernels(), c);
        }
      }
    }
  }
}

TEST_P(LogitsTest, CapAlibiWindowAndSeveralQueryTokens) {
  for (DType dtype : kDTypes) {
    for (PageFormat format : kExactFormats) {
      for (int variant = 0; variant < 8; ++variant) {
        AttendCase c;
        c.dtype = dtype;
        c.format = format;
        c.soft_cap = variant & 1 ? 1.5f : 0.0f;
        c.alibi = variant & 2;
        c.window = variant & 4 ? 50 : 0;
        c.num_tokens = 1 + 5 * (variant % 3);
        c.group = 3;
        c.length = 150;
        c.scale = 1.0f;
        c.seed = variant;
        Check(kernels(), c);
      }
    }
  }
}

// Logits spread over more exponents than there are bins, the largest last: the bins move down again and again.
TEST_P(LogitsTest, BinsFollowARisingMaximum) {
  for (float step : {0.01f, 0.3f, 1.0f, 5.0f, 100.0f}) {
    AttendCase c;
    c.kv_heads = 1;
    c.group = 2;
    c.length = 600;
    c.scale = 1.0f;
    AttendData data(c);
    for (int position = 0; position < c.length; ++position) {
      for (int dim = 0; dim < c.head_size; ++dim) data.key(position, 0, dim) = dim == 0 ? step * position : 0.0f;
    }
    data.query(0, 0, 0) = 1.0f;
    data.query(0, 1, 0) = -1.0f;
    data.BuildPages(c.format);
    SCOPED_TRACE(step);
    CheckSummary(kernels(), data, 0);
  }
}

TEST_P(LogitsTest, SummaryOfParts) {
  for (PageFormat format : kExactFormats) {
    AttendCase c;
    c.format = format;
    c.kv_heads = 1;
    c.group = 3;
    c.num_tokens = 4;
    c.length = 170;
    c.scale = 2.0f;
    AttendData data(c);
    const Summary whole = Summarise(kernels(), data, 0);
    const std::vector<OracleRow> rows = AttendOracle(data.oracle(0));
    for (size_t cut = 0; cut <= data.pages().size(); ++cut) {
      Summary parts(Rows(data));
      Summarise(kernels(), data, 0, 0, cut, parts);
      Summarise(kernels(), data, 0, cut, data.pages().size(), parts);
      EXPECT_EQ(parts.max, whole.max);
      EXPECT_EQ(parts.bins, whole.bins);
      for (int row = 0; row < Rows(data); ++row) {
        EXPECT_NEAR(parts.max[row] + std::log(parts.sum[row]), rows[row].lse, LseTolerance(rows[row], 2));
      }
    }
  }
}

TEST_P(LogitsTest, StoredAndSummarisedAgreeAndRepeatBitForBit) {
  for (DType dtype : kDTypes) {
    for (PageFormat format : kExactFormats) {
      AttendCase c;
      c.dtype = dtype;
      c.format = format;
      c.kv_heads = 1;
      c.group = 5;
      c.num_tokens = 3;
      c.length = 333;
      AttendData data(c);
      const Summary summary = Summarise(kernels(), data, 0);
      const Stored stored = Store(kernels(), data, 0);
      for (int row = 0; row < Rows(data); ++row) {
        const float* logits = &stored.logits[row * Slots(data)];
        EXPECT_EQ(*std::max_element(logits, logits + Slots(data)), summary.max[row]);
      }
      const Stored again = Store(kernels(), data, 0);
      EXPECT_TRUE(SameBits(again.logits, stored.logits));
      const Summary summary_again = Summarise(kernels(), data, 0);
      EXPECT_TRUE(summary_again.max == summary.max && summary_again.sum == summary.sum &&
                  summary_again.bins == summary.bins);
    }
  }
}

TEST_P(LogitsTest, Infinities) {
  for (DType dtype : kDTypes) {
    for (PageFormat format : kExactFormats) {
      AttendCase c;
      c.dtype = dtype;
      c.format = format;
      c.kv_heads = 1;
      c.group = 2;
      c.length = 90;
      AttendData data(c);
      data.query(0, 0, 0) = data.query(0, 1, 0) = 1.0f;
      for (int position : {0, 40, 89}) data.key(position, 0, 0) = -kInf;
      data.BuildPages(format);
      const Stored stored = Store(kernels(), data, 0);
      const Summary summary = Summarise(kernels(), data, 0);
      ASSERT_EQ(stored.status, KernelResult::kOk);
      ASSERT_EQ(summary.status, KernelResult::kOk);
      for (int row = 0; row < 2; ++row) {
        EXPECT_EQ(stored.logits[row * Slots(data) + 40], -kInf);
        EXPECT_EQ(summary.bins[row * kLogitBins], 3u);
        EXPECT_EQ(summary.Count(row), 90u);
      }
      // All of them: still no NaN.
      for (int position = 0; position < 90; ++position) data.key(position, 0, 0) = -kInf;
      data.BuildPages(format);
      const Summary nothing = Summarise(kernels(), data, 0);
      EXPECT_EQ(nothing.max[0], -kInf);
      EXPECT_EQ(nothing.sum[0], 0.0f);
      EXPECT_EQ(nothing.bins[0], 90u);

      data.query(0, 1, 0) = -1.0f;
      data.BuildPages(format);
      EXPECT_EQ(Store(kernels(), data, 0).status, KernelResult::kInfiniteLogit);
      EXPECT_EQ(Summarise(kernels(), data, 0).status, KernelResult::kInfiniteLogit);
    }
  }
}

TEST_P(LogitsTest, ANaNStaysWithTheRowsThatSeeIt) {
  for (DType dtype : kDTypes) {
    for (PageFormat format : kExactFormats) {
      AttendCase c;
      c.dtype = dtype;
      c.format = format;
      c.kv_heads = 1;
      c.group = 3;
      c.num_tokens = 21;
      c.length = 81;
      AttendData data(c);
      data.key(67, 0, 5) = kNaN;
      data.BuildPages(format);
      const Stored stored = Store(kernels(), data, 0);
      const Summary summary = Summarise(kernels(), data, 0);
      for (int row = 0; row < Rows(data); ++row) {
        const int position = 60 + row / 3;
        EXPECT_EQ(std::isnan(stored.logits[row * Slots(data) + 67]), position >= 67);
        EXPECT_EQ(std::isnan(summary.sum[row]), position >= 67);
        EXPECT_EQ(summary.Count(row), static_cast<uint64_t>(position) + 1);
      }
    }
  }
}

TEST_P(LogitsTest, RandomCases) {
  const uint32_t seed = TestSeed("//kernels/cpu:logits_test", 20251125);
  std::mt19937 random(seed);
  const auto pick = [&](int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(random); };
  for (int i = 0; i < 50; ++i) {
    AttendCase c;
    c.dtype = kDTypes[pick(0, 2)];
    c.format = kExactFormats[pick(0, 1)];
    DrawShape(random, 300, c);
    c.seed = random();
    Check(kernels(), c);
    ASSERT_FALSE(HasFailure()) << "case " << i << " of seed " << seed;
  }
}

}  // namespace
}  // namespace hybridgen
