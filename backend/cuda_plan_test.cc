// Tests of a step's arrays for the CUDA device: plans written down by hand with the arrays that must come out, and
// random ones, of which every (query row, KV head, page) must be attended exactly once and every row be merged.
#include "backend/cuda_plan.h"

#include <algorithm>
#include <map>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"

namespace hybridgen {
namespace {

constexpr int32_t kPage = 16;             // tokens
constexpr uint64_t kPageBytes = 1000;     // a number that no shift makes
constexpr int32_t kHost = kFirstHostRow;  // row 0 of the CPU's
constexpr Range kAllHeads = {0, 2};
constexpr Range kNone = {0, 0};

using Item = std::vector<int>;     // first_token, num_tokens, first_page, num_pages, partial_row, owns_sink
using Merge = std::vector<int>;    // token, row, count, stride
using CpuItem = std::vector<int>;  // sequence, tokens, heads.begin, host_pages, partial_row, owns_sink

std::vector<Item> Items(const CudaStep::Items& items) {
  std::vector<Item> list;
  for (const cuda::AttendItem& i : items.list) {
    list.push_back({i.first_token, i.num_tokens, i.first_page, i.num_pages, i.partial_row, i.owns_sink});
  }
  return list;
}

template <typename T>
std::vector<Merge> Merges(const std::vector<T>& merges) {
  std::vector<Merge> list;
  for (const T& m : merges) list.push_back({m.token, m.row, m.count, m.stride});
  return list;
}

std::vector<CpuItem> CpuItems(const CudaStep& step, Range range) {
  std::vector<CpuItem> list;
  for (int32_t n = range.begin; n < range.end; ++n) {
    const WorkItem& i = step.host.cpu_items[n];
    list.push_back({i.sequence, i.tokens.begin, i.tokens.end, i.heads.begin, i.host_pages.begin, i.host_pages.end,
                    i.partial_row, i.owns_sink});
  }
  return list;
}

std::vector<int> Ends(Range r) { return {r.begin, r.end}; }

// A sequence's next page: `place` is an index in the engine's tensor, or an address.
void AddPage(StepPlan& plan, uint64_t place, int32_t first_position, int32_t num_tokens = kPage) {
  PlanPage page;
  page.k = place;
  page.v = place + 1;
  page.first_position = first_position;
  page.num_tokens = num_tokens;
  plan.pages.push_back(page);
}

void AddSequence(StepPlan& plan, int32_t query_len, int32_t seq_len) {
  PlanSequence s;
  s.query_start = plan.num_tokens;
  s.query_len = query_len;
  s.seq_len = seq_len;
  plan.sequences.push_back(s);
  plan.num_tokens += query_len;
}

WorkItem MakeItem(int32_t sequence, Range tokens, Range heads, Range pool, Range host, int32_t row, bool sink) {
  WorkItem item;
  item.sequence = sequence;
  item.tokens = tokens;
  item.heads = heads;
  item.pool_pages = pool;
  item.host_pages = host;
  item.partial_row = row;
  item.owns_sink = sink;
  return item;
}

CudaPlanLimits Limits() {
  CudaPlanLimits limits;
  limits.page_tokens = kPage;
  limits.page_bytes = kPageBytes;
  limits.windows = {0};
  return limits;
}

TEST(CudaPlanTest, DeviceAlone) {
  StepPlan plan;
  plan.step = 9;
  AddSequence(plan, 1, 40);
  AddSequence(plan, 2, 20);
  AddSequence(plan, 0, 5);  // nothing to answer
  AddSequence(plan, 1, 3);  // its K/V is not written: a hit in the prefix cache, say
  AddPage(plan, 7, 0);
  AddPage(plan, 3, 16);
  AddPage(plan, 9, 32, 8);
  AddPage(plan, 2, 0);
  AddPage(plan, 5, 16, 4);
  AddPage(plan, 4, 0, 3);
  plan.pool_writes = {{PageKind::kPool, 9, 9, 7, 0, 1}, {PageKind::kPool, 5, 5, 2, 1, 2}};
  plan.device_items = {MakeItem(0, {0, 1}, kAllHeads, {0, 3}, kNone, -1, true),
                       MakeItem(1, {0, 2}, kAllHeads, {3, 5}, kNone, -1, true),
                       MakeItem(3, {0, 1}, kAllHeads, {5, 6}, kNone, -1, false)};
  CudaPlanLimits limits = Limits();
  limits.windows = {0, 12};
  limits.decode_tokens = 1;
  CudaStep step;
  BuildCudaStep(plan, limits, step);

  EXPECT_EQ(step.step, 9);
  EXPECT_EQ(step.num_tokens, 4);
  EXPECT_EQ(step.slots, (std::vector<int64_t>{9 * 16 + 7, 5 * 16 + 2, 5 * 16 + 3, -1}));
  EXPECT_EQ(step.position, (std::vector<int32_t>{39, 18, 19, 2}));
  EXPECT_EQ(step.kv_end, (std::vector<int32_t>{40, 19, 20, 3}));
  EXPECT_EQ(step.kv_begin, (std::vector<int32_t>{0, 0, 0, 0, 28, 7, 8, 0}));
  EXPECT_EQ(Items(step.decode), (std::vector<Item>{{0, 1, 0, 3, -1, 1}, {3, 1, 5, 1, -1, 0}}));
  EXPECT_EQ(Items(step.prefill), (std::vector<Item>{{1, 2, 3, 2, -1, 1}}));
  EXPECT_EQ(step.decode.max_tokens, 1);
  EXPECT_EQ(step.prefill.max_tokens, 2);
  ASSERT_EQ(step.pages.size(), 6u);
  EXPECT_EQ(step.pages[2].k, 9 * kPageBytes);
  EXPECT_EQ(step.pages[2].v, 10 * kPageBytes);
  EXPECT_EQ(step.pages[2].first_position, 32);
  EXPECT_EQ(step.pages[2].num_tokens, 8);
  // Without a window 40 + 20 + 3; with it the last 12, those from the first token's 12 on, and 3.
  EXPECT_EQ(step.device_tokens, (std::vector<int64_t>{63, 12 + 13 + 3}));
  EXPECT_EQ(step.partial_rows, 4);
  EXPECT_TRUE(step.output_merges.empty() && step.row_merges.empty() && step.joins.empty());
  EXPECT_TRUE(step.calls.empty() && step.query_tokens.empty() && step.write_tokens.empty());
}

TEST(CudaPlanTest, WithoutCausalityEveryTokenSeesTheSequence) {
  StepPlan plan;
  plan.causal = false;
  AddSequence(plan, 3, 10);
  CudaStep step;
  BuildCudaStep(plan, Limits(), step);
  EXPECT_EQ(step.kv_end, (std::vector<int32_t>{10, 10, 10}));
  EXPECT_EQ(step.position, (std::vector<int32_t>{7, 8, 9}));
  EXPECT_TRUE(step.slots.empty()) << "nothing is written";
  EXPECT_FALSE(step.host.causal);
}

// Sequences with both sides split, the device alone split, one item against two, and the CPU alone.
StepPlan MixedPlan() {
  StepPlan plan;
  AddSequence(plan, 1, 64);
  AddSequence(plan, 2, 48);
  AddSequence(plan, 1, 48);
  AddSequence(plan, 1, 32);
  for (int i = 0; i < 12; ++i) AddPage(plan, 10 * i, 16 * i);
  // Rows of the plan's workspace: 0-1 and 2; 3-8; 9 and 10-11; 12-13. The second sequence has a tile per head.
  plan.device_items = {
      MakeItem(0, {0, 1}, kAllHeads, {0, 1}, kNone, 0, true), MakeItem(0, {0, 1}, kAllHeads, {1, 3}, kNone, 1, false),
      MakeItem(1, {0, 2}, {0, 1}, {4, 5}, kNone, 3, true),    MakeItem(1, {0, 2}, {1, 2}, {4, 5}, kNone, 3, true),
      MakeItem(1, {0, 2}, {0, 1}, {5, 6}, kNone, 5, false),   MakeItem(1, {0, 2}, {1, 2}, {5, 6}, kNone, 5, false),
      MakeItem(1, {0, 2}, {0, 1}, {6, 7}, kNone, 7, false),   MakeItem(1, {0, 2}, {1, 2}, {6, 7}, kNone, 7, false),
      MakeItem(2, {0, 1}, kAllHeads, {7, 8}, kNone, 9, true),
  };
  plan.cpu_items = {
      MakeItem(0, {0, 1}, kAllHeads, kNone, {3, 4}, 2, false),
      MakeItem(2, {0, 1}, kAllHeads, kNone, {8, 9}, 10, false),
      MakeItem(2, {0, 1}, kAllHeads, kNone, {9, 10}, 11, false),
      MakeItem(3, {0, 1}, kAllHeads, kNone, {10, 11}, 12, true),
      MakeItem(3, {0, 1}, kAllHeads, kNone, {11, 12}, 13, false),
  };
  plan.cpu_group_ends = {5};
  return plan;
}

void ExpectMixed(const CudaStep& step) {
  // Rows 0 to 4 are the tokens', then two splits of the first sequence, then three of the second, of two tokens each.
  EXPECT_EQ(Items(step.decode), (std::vector<Item>{{0, 1, 0, 1, 5, 1},
                                                   {0, 1, 1, 2, 6, 0},
                                                   {1, 2, 3, 1, 7, 1},
                                                   {1, 2, 4, 1, 9, 0},
                                                   {1, 2, 5, 1, 11, 0},
                                                   {3, 1, 6, 1, 3, 1}}));
  EXPECT_TRUE(step.prefill.list.empty());
  EXPECT_EQ(step.pages.size(), 7u) << "the host's pages are not the device's";
  EXPECT_EQ(step.partial_rows, 13);
  EXPECT_EQ(Merges(step.row_merges), (std::vector<Merge>{{0, 5, 2, 1}}));
  EXPECT_EQ(Merges(step.output_merges), (std::vector<Merge>{{1, 7, 3, 2}, {2, 8, 3, 2}}));
  EXPECT_EQ(Merges(step.joins), (std::vector<Merge>{{0, 0, 2, kHost}, {3, 3, 2, kHost + 1 - 3}, {4, kHost + 2, 1, 0}}));

  EXPECT_EQ(step.query_tokens, (std::vector<int32_t>{0, 3, 4}));
  ASSERT_EQ(step.calls.size(), 1u);
  const CudaCall& call = step.calls[0];
  EXPECT_EQ(Ends(call.query_rows), (std::vector<int>{0, 3}));
  EXPECT_EQ(Ends(call.joins), (std::vector<int>{0, 3}));
  EXPECT_EQ(Ends(call.write_rows), (std::vector<int>{0, 0}));
  EXPECT_EQ(call.partial_rows, 5);
  EXPECT_EQ(call.cpu_group_ends, (std::vector<int32_t>{5}));
  EXPECT_EQ(CpuItems(step, call.cpu_items), (std::vector<CpuItem>{{0, 0, 1, 0, 3, 4, 0, 0},
                                                                  {1, 0, 1, 0, 8, 9, 1, 0},
                                                                  {1, 0, 1, 0, 9, 10, 2, 0},
                                                                  {2, 0, 1, 0, 10, 11, 3, 1},
                                                                  {2, 0, 1, 0, 11, 12, 4, 0}}));
  EXPECT_EQ(Merges(step.host.merges), (std::vector<Merge>{{0, 0, 1, 1}, {1, 1, 2, 1}, {2, 3, 2, 1}}));
  ASSERT_EQ(step.host.sequences.size(), 3u);
  EXPECT_EQ(step.host.sequences[1].query_start, 1);
  EXPECT_EQ(step.host.sequences[1].seq_len, 48);
  EXPECT_EQ(step.host_partial_rows, 5);
}

TEST(CudaPlanTest, SplitsMergeByRowAndJoinTheCpus) {
  CudaStep step;
  BuildCudaStep(MixedPlan(), Limits(), step);
  ExpectMixed(step);
}

// Seven query tokens in tiles of four and three, two splits, five tokens to write: calls of three rows.
StepPlan LongPlan() {
  StepPlan plan;
  AddSequence(plan, 7, 32);
  AddPage(plan, 1000, 0);
  AddPage(plan, 3000, 16);
  plan.host_writes = {{PageKind::kHost, 1000, 1001, 12, 0, 4}, {PageKind::kHost, 3000, 3001, 0, 4, 1}};
  plan.cpu_items = {
      MakeItem(0, {0, 4}, kAllHeads, kNone, {0, 1}, 0, true),
      MakeItem(0, {4, 7}, kAllHeads, kNone, {0, 1}, 4, true),
      MakeItem(0, {0, 4}, kAllHeads, kNone, {1, 2}, 7, false),
      MakeItem(0, {4, 7}, kAllHeads, kNone, {1, 2}, 11, false),
  };
  plan.cpu_group_ends = {4};
  return plan;
}

TEST(CudaPlanTest, CallsAreCutAndAllWritesComeBeforeTheFirstQuery) {
  CudaPlanLimits limits = Limits();
  limits.max_call_rows = 3;
  CudaStep step;
  BuildCudaStep(LongPlan(), limits, step);

  ASSERT_EQ(step.calls.size(), 4u);
  const std::vector<std::vector<int>> writes = {{0, 3}, {3, 5}, {5, 5}, {5, 5}},
                                      runs = {{0, 1}, {1, 3}, {3, 3}, {3, 3}},
                                      queries = {{0, 0}, {0, 3}, {3, 6}, {6, 7}};
  const std::vector<int> partial_rows = {0, 6, 6, 2};
  for (size_t i = 0; i < 4; ++i) {
    const CudaCall& call = step.calls[i];
    EXPECT_EQ(Ends(call.write_rows), writes[i]) << i;
    EXPECT_EQ(Ends(call.host_writes), runs[i]) << i;
    EXPECT_EQ(Ends(call.query_rows), queries[i]) << i;
    EXPECT_EQ(Ends(call.joins), queries[i]) << i;
    EXPECT_EQ(Ends(call.cpu_merges), queries[i]) << i;
    EXPECT_EQ(call.partial_rows, partial_rows[i]) << i;
  }
  EXPECT_EQ(step.write_tokens, (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(step.host.tokens_written, 5);
  std::vector<std::vector<uint64_t>> parts;  // k, offset, row of the call, tokens
  for (const WriteRun& run : step.host.host_writes) {
    parts.push_back({run.k, static_cast<uint64_t>(run.offset), static_cast<uint64_t>(run.token),
                     static_cast<uint64_t>(run.num_tokens)});
  }
  EXPECT_EQ(parts, (std::vector<std::vector<uint64_t>>{{1000, 12, 0, 3}, {1000, 15, 0, 1}, {3000, 0, 1, 1}}));

  EXPECT_EQ(step.query_tokens, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_TRUE(CpuItems(step, step.calls[0].cpu_items).empty());
  EXPECT_EQ(CpuItems(step, step.calls[1].cpu_items),
            (std::vector<CpuItem>{{0, 0, 3, 0, 0, 1, 0, 1}, {0, 0, 3, 0, 1, 2, 3, 0}}));
  EXPECT_EQ(
      CpuItems(step, step.calls[2].cpu_items),
      (std::vector<CpuItem>{
          {1, 3, 4, 0, 0, 1, 0, 1}, {1, 4, 6, 0, 0, 1, 1, 1}, {1, 3, 4, 0, 1, 2, 3, 0}, {1, 4, 6, 0, 1, 2, 4, 0}}));
  EXPECT_EQ(CpuItems(step, step.calls[3].cpu_items),
            (std::vector<CpuItem>{{2, 6, 7, 0, 0, 1, 0, 1}, {2, 6, 7, 0, 1, 2, 1, 0}}));
  // Token t of the sequence's query is row query_start + t of its call.
  ASSERT_EQ(step.host.sequences.size(), 3u);
  EXPECT_EQ(step.host.sequences[0].query_start, 0);
  EXPECT_EQ(step.host.sequences[1].query_start, -3);
  EXPECT_EQ(step.host.sequences[2].query_start, -6);
  EXPECT_EQ(Merges(step.host.merges),
            (std::vector<Merge>{
                {0, 0, 2, 3}, {1, 1, 2, 3}, {2, 2, 2, 3}, {0, 0, 2, 3}, {1, 1, 2, 3}, {2, 2, 2, 3}, {0, 0, 2, 1}}));
  EXPECT_EQ(Merges(step.joins), (std::vector<Merge>{{0, kHost, 1, 0},
                                                    {1, kHost + 1, 1, 0},
                                                    {2, kHost + 2, 1, 0},
                                                    {3, kHost, 1, 0},
                                                    {4, kHost + 1, 1, 0},
                                                    {5, kHost + 2, 1, 0},
                                                    {6, kHost, 1, 0}}));
  EXPECT_EQ(step.host_partial_rows, 6);
}

TEST(CudaPlanTest, ItemsOfACallAreInTheOrderOfTheirHeadGroups) {
  StepPlan plan;
  AddSequence(plan, 1, 16);
  AddSequence(plan, 1, 16);
  AddPage(plan, 1000, 0);
  AddPage(plan, 2000, 0);
  plan.cpu_items = {
      MakeItem(0, {0, 1}, {0, 2}, kNone, {0, 1}, 0, true),
      MakeItem(1, {0, 1}, {0, 2}, kNone, {1, 2}, 1, true),
      MakeItem(0, {0, 1}, {2, 4}, kNone, {0, 1}, 0, true),
      MakeItem(1, {0, 1}, {2, 4}, kNone, {1, 2}, 1, true),
  };
  plan.cpu_group_ends = {2, 4};
  CudaPlanLimits limits = Limits();
  limits.head_groups = 2;
  CudaStep step;
  BuildCudaStep(plan, limits, step);
  ASSERT_EQ(step.calls.size(), 1u);
  EXPECT_EQ(step.calls[0].cpu_group_ends, (std::vector<int32_t>{2, 4}));
  EXPECT_EQ(
      CpuItems(step, step.calls[0].cpu_items),
      (std::vector<CpuItem>{
          {0, 0, 1, 0, 0, 1, 0, 1}, {1, 0, 1, 0, 1, 2, 1, 1}, {0, 0, 1, 2, 0, 1, 0, 1}, {1, 0, 1, 2, 1, 2, 1, 1}}));

  limits.max_call_rows = 1;
  BuildCudaStep(plan, limits, step);
  ASSERT_EQ(step.calls.size(), 2u);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(step.calls[i].cpu_group_ends, (std::vector<int32_t>{1, 2})) << "relative to the call's items";
    EXPECT_EQ(CpuItems(step, step.calls[i].cpu_items),
              (std::vector<CpuItem>{{i, 0, 1, 0, i, i + 1, 0, 1}, {i, 0, 1, 2, i, i + 1, 0, 1}}));
  }
}

TEST(CudaPlanTest, AStepsMemoryIsUsedAgain) {
  CudaPlanLimits limits = Limits();
  limits.max_call_rows = 3;
  CudaStep step;
  BuildCudaStep(LongPlan(), limits, step);
  BuildCudaStep(MixedPlan(), Limits(), step);
  ExpectMixed(step);
}

// Plans as the backend makes them, by SplitWork. A key is (step's token, KV head, page).
void CheckCover(const StepPlan& plan, const CudaPlanLimits& limits, int kv_heads) {
  CudaStep step;
  BuildCudaStep(plan, limits, step);
  std::map<std::tuple<int, int, int>, int> seen, wanted;
  std::map<std::pair<int, int>, int> sinks;
  for (const PlanSequence& s : plan.sequences) {
    for (int t = s.query_start; t < s.query_start + s.query_len; ++t) {
      for (int h = 0; h < kv_heads; ++h) {
        for (int p = s.pool_pages.begin; p < s.pool_pages.end; ++p) ++wanted[{t, h, p}];
        for (int p = s.host_pages.begin; p < s.host_pages.end; ++p) ++wanted[{t, h, p}];
      }
    }
  }
  std::map<int, int> rows;      // row of the device's partials -> token
  std::map<int, int> complete;  // token -> times that its output is written
  for (const CudaStep::Items* items : {&step.decode, &step.prefill}) {
    for (const cuda::AttendItem& i : items->list) {
      ASSERT_LE(i.num_tokens, items->max_tokens);
      ASSERT_EQ(i.num_tokens <= limits.decode_tokens, items == &step.decode);
      for (int t = 0; t < i.num_tokens; ++t) {
        if (i.partial_row < 0) ++complete[i.first_token + t];
        if (i.partial_row >= 0) {
          ASSERT_TRUE(rows.emplace(i.partial_row + t, i.first_token + t).second) << "two items write one row";
        }
        for (int h = 0; h < kv_heads; ++h) {
          if (i.owns_sink) ++sinks[{i.first_token + t, h}];
          // A page's address is its number here.
          for (int p = i.first_page; p < i.first_page + i.num_pages; ++p) {
            ++seen[{i.first_token + t, h, static_cast<int>(step.pages[p].k / kPageBytes)}];
          }
        }
      }
    }
  }
  for (const cuda::MergeItem& m : step.row_merges) {
    for (int i = 0; i < m.count; ++i) {
      ASSERT_EQ(rows.count(m.row + i * m.stride), 1u);
      ASSERT_EQ(rows[m.row + i * m.stride], m.token);
      rows.erase(m.row + i * m.stride);
    }
    ASSERT_TRUE(rows.emplace(m.token, m.token).second) << "the merged row is written twice";
  }
  for (const cuda::MergeItem& m : step.output_merges) {
    ++complete[m.token];
    for (int i = 0; i < m.count; ++i) {
      ASSERT_EQ(rows[m.row + i * m.stride], m.token);
      rows.erase(m.row + i * m.stride);
    }
  }
  int before = 0;
  for (const CudaCall& call : step.calls) {
    ASSERT_LE(call.query_rows.size(), limits.max_call_rows);
    ASSERT_EQ(call.query_rows.begin, before);
    before = call.query_rows.end;
    ASSERT_LE(call.partial_rows, step.host_partial_rows);
    std::map<std::pair<int, int>, int> partials;  // (row of the call's partials, KV head) -> row of the call
    for (int n = call.cpu_items.begin; n < call.cpu_items.end; ++n) {
      const WorkItem& i = step.host.cpu_items[n];
      const int group = i.heads.begin / (kv_heads / limits.head_groups);
      ASSERT_LT(n - call.cpu_items.begin, call.cpu_group_ends[group]);
      ASSERT_GE(n - call.cpu_items.begin, group == 0 ? 0 : call.cpu_group_ends[group - 1]);
      for (int t = i.tokens.begin; t < i.tokens.end; ++t) {
        const int row = step.host.sequences[i.sequence].query_start + t;
        ASSERT_GE(row, 0);
        ASSERT_LT(row, call.query_rows.size());
        ASSERT_LT(i.partial_row + t - i.tokens.begin, call.partial_rows);
        const int token = step.query_tokens[call.query_rows.begin + row];
        for (int h = i.heads.begin; h < i.heads.end; ++h) {
          ASSERT_TRUE(partials.emplace(std::make_pair(i.partial_row + t - i.tokens.begin, h), row).second);
          if (i.owns_sink) ++sinks[{token, h}];
          for (int p = i.host_pages.begin; p < i.host_pages.end; ++p) ++seen[{token, h, p}];
        }
      }
    }
    for (int n = call.cpu_merges.begin; n < call.cpu_merges.end; ++n) {
      const MergeItem& m = step.host.merges[n];
      for (int i = 0; i < m.count; ++i) {
        for (int h = 0; h < kv_heads; ++h) {
          const auto found = partials.find({m.row + i * m.stride, h});
          ASSERT_TRUE(found != partials.end() && found->second == m.token) << "a row that no item writes";
          partials.erase(found);
        }
      }
    }
    ASSERT_TRUE(partials.empty()) << "a partial that no merge takes";
    for (int n = call.joins.begin; n < call.joins.end; ++n) {
      const cuda::MergeItem& m = step.joins[n];
      ++complete[m.token];
      const int host_row = m.row + (m.count - 1) * m.stride - kHost;
      ASSERT_EQ(step.query_tokens[call.query_rows.begin + host_row], m.token);
      if (m.count == 2) {
        ASSERT_EQ(rows[m.row], m.token);
        rows.erase(m.row);
      }
    }
  }
  ASSERT_EQ(before, static_cast<int>(step.query_tokens.size()));
  ASSERT_TRUE(rows.empty()) << "a partial of the device that nothing takes";
  ASSERT_EQ(seen, wanted);
  for (const auto& [key, count] : sinks) ASSERT_EQ(count, 1);
  for (const PlanSequence& s : plan.sequences) {
    for (int t = s.query_start; t < s.query_start + s.query_len; ++t) {
      ASSERT_EQ(complete[t], s.pool_pages.size() + s.host_pages.size() > 0 ? 1 : 0) << "token " << t;
    }
  }
}

TEST(CudaPlanTest, RandomPlansAreCoveredOnce) {
  const uint32_t seed = TestSeed("//backend:cuda_plan_test", 1);
  for (uint32_t round = 0; round < 300; ++round) {
    std::mt19937 random(seed + round);
    SplitOptions split;
    split.head_groups = 1 + random() % 2;
    split.num_kv_heads = split.head_groups * (1 + random() % 2);
    split.group = 1 + random() % 8;
    split.cpu_workers = 1 + random() % 4;
    split.device_workers = 1 + random() % 8;
    StepPlan plan;
    for (int s = random() % 5; s >= 0; --s) {
      const int32_t pool = random() % 40, host = random() % 40, pages = pool + host;
      const int32_t query_len = pages == 0 ? 0 : random() % 3 == 0 ? random() % 90 : 1;
      AddSequence(plan, std::min(query_len, kPage * pages), kPage * pages);
      const int32_t first = static_cast<int32_t>(plan.pages.size());
      for (int32_t i = 0; i < pages; ++i) AddPage(plan, first + i, kPage * i);
      plan.sequences.back().pool_pages = {first, first + pool};
      plan.sequences.back().host_pages = {first + pool, first + pages};
    }
    SplitWork(split, plan);
    CudaPlanLimits limits = Limits();
    limits.head_groups = split.head_groups;
    limits.max_call_rows = 1 + random() % 50;
    CheckCover(plan, limits, split.num_kv_heads);
    ASSERT_FALSE(HasFailure()) << "round " << round;
  }
}

}  // namespace
}  // namespace hybridgen
