// Attention over 8-bit pages: what differs from exact pages. The reference is the oracle over what the pages hold, or,
// where it says so, over what was put into them.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/testing/kernel_set_test.h"

namespace hybridgen {
namespace {

class Int8Test : public KernelSetTest {};

INSTANTIATE_TEST_SUITE_P(Isa, Int8Test, testing::ValuesIn(RunnableKernelSets()), KernelSetName);

AttendCase Int8Case() {
  AttendCase c;
  c.format = PageFormat::kPackedInt8V1;
  c.group = 3;
  c.num_tokens = 4;
  c.length = 100;
  return c;
}

TEST_P(Int8Test, RandomCases) {
  const uint32_t seed = TestSeed("//kernels/cpu:int8_test", 20261125);
  std::mt19937 random(seed);
  const auto pick = [&](int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(random); };
  for (int i = 0; i < 60; ++i) {
    AttendCase c;
    c.format = PageFormat::kPackedInt8V1;
    c.dtype = kDTypes[pick(0, 2)];
    c.output = kDTypes[pick(0, 2)];
    DrawShape(random, 400, c);
    c.sinks = pick(0, 3) == 0;
    c.seed = random();
    CheckCase(kernels(), c);
    ASSERT_FALSE(HasFailure()) << "case " << i << " of seed " << seed;
  }
}

// Values of one size everywhere reach the largest sums that the integers must hold.
TEST_P(Int8Test, TheLargestSumsDoNotOverflow) {
  for (const float sign : {1.0f, -1.0f}) {
    AttendCase c = Int8Case();
    c.kv_heads = c.num_tokens = 1;
    c.group = 8;
    c.head_size = 512;
    c.length = 1024;
    c.page_tokens = 128;
    c.scale = 1e-3f;
    AttendData data(c);
    for (int position = 0; position < c.length; ++position) {
      for (int dim = 0; dim < c.head_size; ++dim) {
        data.key(position, 0, dim) = 2.0f;
        data.value(position, 0, dim) = 3.0f * sign;
      }
    }
    for (int head = 0; head < c.group; ++head) {
      for (int dim = 0; dim < c.head_size; ++dim) data.query(0, head, dim) = sign;
    }
    data.BuildPages(c.format);
    ExpectMatchesOracle(data, 0, RunCase(kernels(), data, 0));
  }
}

// An outlier makes the steps of its token coarse and of no other.
TEST_P(Int8Test, OneHugeOutlier) {
  for (const bool in_key : {true, false}) {
    AttendCase c = Int8Case();
    c.kv_heads = 1;
    AttendData data(c);
    (in_key ? data.key(50, 0, 7) : data.value(50, 0, 7)) = 1e4f;
    for (int token = 0; in_key && token < c.num_tokens; ++token) {
      for (int head = 0; head < c.group; ++head) data.query(token, head, 7) *= 1e-4f;
    }
    const float other = data.key(51, 0, 3);
    data.BuildPages(c.format);
    EXPECT_NEAR(data.key(51, 0, 3), other, 1.0f / 254 + 1e-6f);
    EXPECT_EQ((in_key ? data.key(50, 0, 3) : data.value(50, 0, 3)), 0.0f) << "less than half a step";
    ExpectMatchesOracle(data, 0, RunCase(kernels(), data, 0));
  }
}

TEST_P(Int8Test, ZerosAreExact) {
  AttendCase c = Int8Case();
  c.kv_heads = 1;
  AttendData data(c);
  for (int position = 0; position < c.length; ++position) {
    for (int dim = 0; dim < c.head_size; ++dim) data.key(position, 0, dim) = data.value(position, 0, dim) = 0;
  }
  data.BuildPages(c.format);
  const AttendResult result = RunCase(kernels(), data, 0);
  ASSERT_EQ(result.status, KernelResult::kOk);
  for (const float o : result.o) EXPECT_EQ(o, 0.0f);
  for (size_t row = 0; row < result.lse.size(); ++row) {
    EXPECT_NEAR(result.lse[row], std::log(97.0 + row / c.group), 1e-5);
  }
}

// Against what was put into the pages: half a step per element of K moves a logit by d <= scale * sum |q| * step / 2
// and a weight by a factor of at most e^(2 d), which moves o by (e^(2 d) - 1) max |V|; V adds half a step.
TEST_P(Int8Test, WithinHalfAStepOfWhatWasPutIn) {
  for (const DType dtype : kDTypes) {
    AttendCase c = Int8Case();
    c.dtype = dtype;
    c.kv_heads = 1;
    c.scale = 0.1f;
    AttendCase exact = c;
    exact.format = PageFormat::kStrided;
    AttendData before(exact), data(c);  // the same elements, of one seed
    const std::vector<OracleRow> expected = AttendOracle(before.oracle(0));
    std::vector<OracleRow> arithmetic = AttendOracle(data.oracle(0));
    AddInt8Errors(data.oracle(0), arithmetic);
    double key_step = 0, value_step = 0, value = 0;
    for (int position = 0; position < c.length; ++position) {
      const float* v = &before.value(position, 0, 0);
      key_step = std::max<double>(key_step, AttendData::HalfInt8Step(&before.key(position, 0, 0), c.head_size));
      value_step = std::max<double>(value_step, AttendData::HalfInt8Step(v, c.head_size));
      for (int dim = 0; dim < c.head_size; ++dim) value = std::max<double>(value, std::abs(v[dim]));
    }
    const AttendResult result = RunCase(kernels(), data, 0);
    ASSERT_EQ(result.status, KernelResult::kOk);
    for (size_t row = 0; row < expected.size(); ++row) {
      double query = 0;
      for (int dim = 0; dim < c.head_size; ++dim) {
        query += std::abs(before.query(static_cast<int>(row) / c.group, static_cast<int>(row) % c.group, dim));
      }
      const double logit = 1.001 * c.scale * query * key_step;
      EXPECT_NEAR(result.lse[row], expected[row].lse, logit + LseTolerance(arithmetic[row]));
      const double tolerance =
          (std::exp(2 * logit) - 1) * value + 1.001 * value_step + OutputTolerance(arithmetic[row], c.output);
      for (int dim = 0; dim < c.head_size; ++dim) {
        EXPECT_NEAR(result.o[row * c.head_size + dim], expected[row].o[dim], tolerance) << "row " << row;
      }
    }
  }
}

// What is not finite makes its token NaN in all dims: it is seen, by exactly the rows that see the token.
TEST_P(Int8Test, WhatIsNotFiniteIsNaNForTheRowsThatSeeIt) {
  for (const float poison : {kNaN, kInf, -kInf}) {
    for (const int position : {60, 64, 67, 79}) {
      for (const bool in_key : {true, false}) {
        AttendCase c = Int8Case();
        c.kv_heads = 1;
        c.num_tokens = 21;
        c.length = 81;
        AttendData data(c);
        (in_key ? data.key(position, 0, 5) : data.value(position, 0, 5)) = poison;
        data.BuildPages(c.format);
        const AttendResult result = RunCase(kernels(), data, 0);
        ASSERT_EQ(result.status, KernelResult::kOk);
        for (int row = 0; row < 63; ++row) {
          const bool seen = position <= 60 + row / 3;
          for (int dim = 0; dim < c.head_size; ++dim) {
            ASSERT_EQ(std::isnan(result.o[row * c.head_size + dim]), seen)
                << "row " << row << " dim " << dim << ", " << poison << " at " << position;
          }
          ASSERT_EQ(std::isnan(result.lse[row]), seen && in_key);
        }
      }
    }
  }
}

TEST_P(Int8Test, AQueryThatIsNotFiniteIsNaNInItsRow) {
  for (const float poison : {kNaN, kInf}) {
    AttendCase c = Int8Case();
    c.kv_heads = 1;
    AttendData data(c);
    data.query(2, 1, 5) = poison;
    data.BuildPages(c.format);
    const AttendResult result = RunCase(kernels(), data, 0);
    ASSERT_EQ(result.status, KernelResult::kOk);
    for (int row = 0; row < 12; ++row) {
      EXPECT_EQ(std::isnan(result.lse[row]), row == 7);
      EXPECT_EQ(std::isnan(result.o[row * c.head_size]), row == 7);
    }
  }
}

TEST_P(Int8Test, AnInfiniteLogitIsAnError) {
  AttendCase c = Int8Case();
  c.kv_heads = 1;
  AttendData data(c);
  for (int dim = 0; dim < c.head_size; ++dim) {
    data.query(1, 0, dim) = 1e30f;
    data.key(3, 0, dim) = 1e30f;
  }
  data.BuildPages(c.format);
  EXPECT_EQ(RunCase(kernels(), data, 0).status, KernelResult::kInfiniteLogit);
}

// Disjoint, empty and reversed ranges: groups that some rows see only in part.
TEST_P(Int8Test, EveryTokenHasItsOwnRange) {
  AttendCase c = Int8Case();
  c.num_tokens = 8;
  c.length = 200;
  AttendData data(c);
  for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
    data.oracle(kv_head).kv_begin = {190, 0, 70, 70, 5, 33, 96, 17};
    data.oracle(kv_head).kv_end = {200, 3, 70, 20, 18, 34, 128, 32};
  }
  data.BuildPages(c.format);
  for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
    ExpectMatchesOracle(data, kv_head, RunCase(kernels(), data, kv_head));
  }
}

// Exact pages first, 8-bit pages behind them, as a sequence that is partly on the device has them. The oracle sees
// both.
TEST_P(Int8Test, ListsOfExactAndEightBitPagesContinueOneState) {
  for (const DType dtype : kDTypes) {
    for (const PageFormat format : {PageFormat::kStrided, PageFormat::kPackedV1}) {
      AttendCase c = Int8Case();
      c.dtype = dtype;
      c.length = 150;
      AttendData int8(c);
      c.format = format;
      AttendData exact(c);
      const size_t pages = exact.pages().size();
      for (const size_t cut : {size_t{0}, size_t{1}, pages / 2, pages}) {
        AttendData mixed(c);  // the oracle's
        for (int position = static_cast<int>(cut) * c.page_tokens; position < c.length; ++position) {
          for (int head = 0; head < c.kv_heads; ++head) {
            for (int dim = 0; dim < c.head_size; ++dim) {
              mixed.key(position, head, dim) = int8.key(position, head, dim);
              mixed.value(position, head, dim) = int8.value(position, head, dim);
            }
          }
        }
        for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
          const std::vector<AttendStep> steps = {
              {&exact, {exact.pages().begin(), exact.pages().begin() + cut}},
              {&int8, {int8.pages().begin() + cut, int8.pages().end()}},
          };
          const AttendResult result = RunSteps(kernels(), steps, kv_head, nullptr, c.output);
          std::vector<OracleRow> rows = AttendOracle(mixed.oracle(kv_head));
          AddInt8Errors(mixed.oracle(kv_head), rows);
          for (size_t row = 0; row < rows.size(); ++row) {
            EXPECT_NEAR(result.lse[row], rows[row].lse, LseTolerance(rows[row], 2));
            for (int dim = 0; dim < c.head_size; ++dim) {
              EXPECT_NEAR(result.o[row * c.head_size + dim], rows[row].o[dim], OutputTolerance(rows[row], c.output, 2));
            }
          }
        }
      }
    }
  }
}

TEST_P(Int8Test, RepeatedRunsGiveTheSameBits) {
  AttendCase c = Int8Case();
  c.group = 7;
  c.num_tokens = 9;
  c.length = 333;
  AttendData data(c);
  const AttendResult first = RunCase(kernels(), data, 1);
  const AttendResult again = RunCase(kernels(), data, 1);
  ASSERT_EQ(first.o.size(), again.o.size());
  EXPECT_TRUE(SameBits(first.o, again.o));
  EXPECT_TRUE(SameBits(first.lse, again.lse));
}

}  // namespace
}  // namespace hybridgen
