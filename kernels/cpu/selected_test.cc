// Attention over selected tokens, of every ISA level that this CPU has, against the oracle.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/kernel_set_test.h"
#include "kernels/testing/red_zone.h"

namespace hybridgen {
namespace {

// Where the logits come from.
enum class Logits { kFromKeys, kGiven };
constexpr Logits kBoth[] = {Logits::kFromKeys, Logits::kGiven};

class SelectedTest : public KernelSetTest {};

INSTANTIATE_TEST_SUITE_P(Isa, SelectedTest, testing::ValuesIn(RunnableKernelSets()), KernelSetName);

// Attends the slots, cut into calls of `call_slots`. Pages without a selected token fault, and K where logits are
// given.
AttendResult RunSelected(const KernelSet& kernels, AttendData& data, int kv_head, const std::vector<int32_t>& slots,
                         Logits source, int call_slots = std::numeric_limits<int>::max()) {
  const AttendCase& c = data.c();
  const QueryTile tile = data.Tile(kv_head);
  const int rows = c.num_tokens * c.group;
  const size_t padded = PaddedHeadSize(c.head_size);
  RedZoned<float> max(rows), sum(rows, 4), acc(rows * padded, 8);
  RedZoned<uint8_t> scratch(AttendScratchBytes(c.head_size), 4);
  const RowState state = {max.data(), sum.data(), acc.data()};
  AttendArgs args = data.Args(kv_head);
  const int64_t stride = static_cast<int64_t>(data.pages().size()) * c.page_tokens;
  RedZoned<float> logits(rows * stride);
  AttendResult result;
  if (source == Logits::kGiven) {
    result.status = kernels.selection.store_logits(tile, args, logits.data(), stride, scratch.data());
    if (result.status != KernelResult::kOk) return result;
  }
  std::vector<KvPage> pages = data.pages();
  for (size_t i = 0; i < pages.size(); ++i) {
    const bool chosen = std::any_of(slots.begin(), slots.end(),
                                    [&](int32_t slot) { return slot / c.page_tokens == static_cast<int>(i); });
    if (!chosen || source == Logits::kGiven) pages[i].k = kPoisonedPage;
    if (!chosen) pages[i].v = kPoisonedPage;
  }
  args.pages = pages.data();
  const std::vector<float>& sinks = data.oracle(kv_head).sinks;
  kernels.init_rows(tile, sinks.empty() ? nullptr : sinks.data(), state);
  const int count = static_cast<int>(slots.size());
  for (int first = 0; first == 0 || first < count; first += call_slots) {
    SelectedTokens selected;
    selected.slots = slots.data() + first;
    selected.count = std::min(call_slots, count - first);
    selected.logits = source == Logits::kGiven ? logits.data() : nullptr;
    selected.logit_row_stride = stride;
    result.status = kernels.selection.attend_selected(tile, args, selected, state, scratch.data());
    if (result.status != KernelResult::kOk || call_slots > count) break;
  }
  RowOutput out;
  out.scale = data.c().v_scale;
  result.o.resize(rows * c.head_size);
  result.lse.resize(rows);
  out.o = result.o.data();
  out.token_stride = c.group * c.head_size;
  out.head_stride = c.head_size;
  out.lse = result.lse.data();
  out.lse_token_stride = c.group;
  out.lse_head_stride = 1;
  kernels.finalize_rows(tile, state, out);
  EXPECT_TRUE(max.Intact() && sum.Intact() && acc.Intact() && scratch.Intact() && logits.Intact());
  return result;
}

std::vector<int32_t> Every(int step, int length) {
  std::vector<int32_t> slots;
  for (int slot = 0; slot < length; slot += step) slots.push_back(slot);
  return slots;
}

// Makes everything that is not selected NaN and compares with the oracle of the selection.
void Check(const KernelSet& kernels, const AttendCase& c, const std::vector<int32_t>& slots, int call_slots) {
  SCOPED_TRACE(testing::Message() << kernels.name << ": " << c.ToString() << " selected=" << slots.size());
  AttendData data(c);
  const auto selected = [&](int position) { return std::binary_search(slots.begin(), slots.end(), position); };
  for (int position = 0; position < c.length; ++position) {
    if (selected(position)) continue;
    for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
      for (int dim = 0; dim < c.head_size; ++dim) {
        data.key(position, kv_head, dim) = kNaN;
        data.value(position, kv_head, dim) = position % 2 == 0 ? kNaN : kInf;
      }
    }
  }
  data.BuildPages(c.format);
  for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
    data.oracle(kv_head).selected = selected;
    for (Logits source : kBoth) {
      SCOPED_TRACE(source == Logits::kGiven ? "given logits" : "logits from K");
      ExpectMatchesOracle(data, kv_head, RunSelected(kernels, data, kv_head, slots, source, call_slots), 2);
    }
  }
}

TEST_P(SelectedTest, CountsRoundGroupsAndCalls) {
  for (DType dtype : kKvDTypes) {
    for (PageFormat format : kExactFormats) {
      for (int count : {0, 1, 2, 15, 16, 17, 100, 127, 128, 129, 300}) {
        AttendCase c;
        c.SetStorage(dtype);
        c.format = format;
        c.group = 1 + count % 9;
        c.head_size = 8 * (1 + count % 4);
        c.length = 300;
        c.page_tokens = count % 2 == 0 ? 16 : 64;
        c.seed = count;
        std::vector<int32_t> slots = Every(1, c.length);
        std::shuffle(slots.begin(), slots.end(), std::mt19937(count));
        slots.resize(count);
        std::sort(slots.begin(), slots.end());
        Check(kernels(), c, slots, count % 3 == 0 ? 40 : 1000);
      }
    }
  }
}

// Rows that see a part of the selection only, of which the group's other tokens are NaN for nobody.
TEST_P(SelectedTest, EdgesCapAlibiAndSinks) {
  for (DType dtype : kDTypes) {
    for (PageFormat format : kExactFormats) {
      for (int variant = 0; variant < 8; ++variant) {
        AttendCase c;
        c.dtype = dtype;
        c.format = format;
        c.soft_cap = variant & 1 ? 1.5f : 0.0f;
        c.alibi = variant & 2;
        c.window = variant & 4 ? 40 : 0;
        c.sinks = variant & 1;
        c.num_tokens = 5;
        c.group = 3;
        c.length = 150;
        c.seed = variant;
        Check(kernels(), c, Every(3, c.length), 1000);
      }
    }
  }
}

TEST_P(SelectedTest, ANaNStaysWithTheRowsThatSeeIt) {
  for (DType dtype : kDTypes) {
    for (PageFormat format : kExactFormats) {
      for (bool in_key : {true, false}) {
        for (Logits source : kBoth) {
          AttendCase c;
          c.dtype = dtype;
          c.format = format;
          c.kv_heads = 1;
          c.group = 3;
          c.num_tokens = 21;
          c.length = 81;
          AttendData data(c);
          (in_key ? data.key(66, 0, 5) : data.value(66, 0, 5)) = kNaN;
          data.BuildPages(format);
          const AttendResult result = RunSelected(kernels(), data, 0, Every(2, c.length), source);
          ASSERT_EQ(result.status, KernelResult::kOk);
          for (int row = 0; row < 63; ++row) {
            const bool seen = 66 <= 60 + row / 3;
            for (int dim = 0; dim < c.head_size; ++dim) {
              ASSERT_EQ(std::isnan(result.o[row * c.head_size + dim]), seen && (in_key || dim == 5)) << row;
            }
            ASSERT_EQ(std::isnan(result.lse[row]), seen && in_key);
          }
        }
      }
    }
  }
}

TEST_P(SelectedTest, Infinities) {
  for (PageFormat format : kExactFormats) {
    AttendCase c;
    c.format = format;
    c.kv_heads = 1;
    c.group = 2;
    c.length = 60;
    AttendData data(c);
    data.query(0, 0, 0) = data.query(0, 1, 0) = 1.0f;
    for (int position = 0; position < 60; position += 2) data.key(position, 0, 0) = -kInf;
    data.BuildPages(format);
    for (Logits source : kBoth) {
      const AttendResult result = RunSelected(kernels(), data, 0, Every(2, 60), source);
      EXPECT_EQ(result.status, KernelResult::kOk);
      for (float lse : result.lse) EXPECT_EQ(lse, -kInf);
      for (float o : result.o) EXPECT_EQ(o, 0.0f);
    }
    data.query(0, 1, 0) = -1.0f;
    data.BuildPages(format);
    for (Logits source : kBoth) {
      EXPECT_EQ(RunSelected(kernels(), data, 0, Every(2, 60), source).status, KernelResult::kInfiniteLogit);
    }
    EXPECT_EQ(RunSelected(kernels(), data, 0, {1, 3, 5}, Logits::kFromKeys).status, KernelResult::kOk)
        << "none selected";
  }
}

// Selected and other tokens, two partials of one row, merge to the attention over all.
TEST_P(SelectedTest, MergesWithTheRest) {
  for (DType dtype : kDTypes) {
    AttendCase c;
    c.dtype = dtype;
    c.kv_heads = 1;
    c.group = 4;
    c.length = 200;
    AttendData data(c);
    std::vector<int32_t> rest;
    for (int slot = 0; slot < c.length; ++slot) {
      if (slot % 7 != 0) rest.push_back(slot);
    }
    const AttendResult a = RunSelected(kernels(), data, 0, Every(7, c.length), Logits::kFromKeys);
    const AttendResult b = RunSelected(kernels(), data, 0, rest, Logits::kGiven);
    AttendResult merged;
    merged.o.resize(a.o.size());
    for (int row = 0; row < c.group; ++row) {
      const float* o[] = {&a.o[row * c.head_size], &b.o[row * c.head_size]};
      const float lse[] = {a.lse[row], b.lse[row]};
      merged.lse.push_back(kernels().merge_rows(o, lse, 2, c.head_size, &merged.o[row * c.head_size], DType::kFloat32));
    }
    ExpectMatchesOracle(data, 0, merged, 2);
  }
}

TEST_P(SelectedTest, RepeatedRunsAndGivenLogitsGiveTheSameBits) {
  for (DType dtype : kDTypes) {
    AttendCase c;
    c.dtype = dtype;
    c.group = 7;
    c.num_tokens = 3;
    c.length = 333;
    AttendData data(c);
    const std::vector<int32_t> slots = Every(2, c.length);
    const AttendResult first = RunSelected(kernels(), data, 1, slots, Logits::kFromKeys);
    for (Logits source : kBoth) {
      const AttendResult again = RunSelected(kernels(), data, 1, slots, source);
      EXPECT_TRUE(first.o == again.o && first.lse == again.lse);
    }
  }
}

TEST_P(SelectedTest, RandomCases) {
  const uint32_t seed = TestSeed("//kernels/cpu:selected_test", 20251125);
  std::mt19937 random(seed);
  const auto pick = [&](int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(random); };
  for (int i = 0; i < 60; ++i) {
    AttendCase c;
    c.dtype = kDTypes[pick(0, 2)];
    c.format = kExactFormats[pick(0, 1)];
    DrawShape(random, 300, c);
    c.sinks = pick(0, 3) == 0;
    c.seed = random();
    const int percent = pick(0, 100);
    std::vector<int32_t> slots;
    for (int slot = 0; slot < c.length; ++slot) {
      if (pick(0, 99) < percent) slots.push_back(slot);
    }
    Check(kernels(), c, slots, pick(1, 200));
    ASSERT_FALSE(HasFailure()) << "case " << i << " of seed " << seed;
  }
}

}  // namespace
}  // namespace hybridgen
