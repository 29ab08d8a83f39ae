// Tests of the cut into work items: everything is covered exactly once, whatever the shape.
#include "backend/step_plan.h"

#include <algorithm>
#include <map>
#include <random>
#include <tuple>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

// Adds a sequence with that many pages of 16 tokens on each side.
void AddSequence(int query_len, int pool, int streamed, int host, StepPlan& plan) {
  PlanSequence s;
  s.query_start = plan.num_tokens;
  s.query_len = query_len;
  s.seq_len = 16 * (pool + streamed + host);
  int32_t next = static_cast<int32_t>(plan.pages.size());
  s.pool_pages = {next, next + pool};
  s.host_pages = {next + pool, next + pool + host};
  s.streamed_pages = {next + pool + host, next + pool + host + streamed};
  for (int i = 0; i < pool + streamed + host; ++i) {
    PlanPage page;
    page.first_position = 16 * i;
    page.num_tokens = 16;
    plan.pages.push_back(page);
  }
  plan.num_tokens += query_len;
  plan.sequences.push_back(s);
}

// Every (query token, KV head, page) is attended exactly once, sinks enter once, rows do not collide, and merges name
// exactly the rows that items write.
void CheckCover(const SplitOptions& options, const StepPlan& plan) {
  std::map<std::tuple<int, int, int>, int> seen;  // (token row, head, page)
  std::map<std::pair<int, int>, int> sinks;       // (token row, head)
  std::map<std::pair<int, int>, int> rows;        // (partial row, head) -> token row
  std::map<std::pair<int, int>, int> direct;      // (token row, head) written without a partial
  for (const std::vector<WorkItem>* items : {&plan.device_items, &plan.cpu_items}) {
    for (const WorkItem& item : *items) {
      const PlanSequence& s = plan.sequences[item.sequence];
      EXPECT_GT(item.pool_pages.size() + item.host_pages.size(), 0);
      for (int t = item.tokens.begin; t < item.tokens.end; ++t) {
        for (int h = item.heads.begin; h < item.heads.end; ++h) {
          const int token = s.query_start + t;
          for (int p = item.pool_pages.begin; p < item.pool_pages.end; ++p) ++seen[{token, h, p}];
          for (int p = item.host_pages.begin; p < item.host_pages.end; ++p) ++seen[{token, h, p}];
          if (item.owns_sink) ++sinks[{token, h}];
          if (item.partial_row < 0) {
            ++direct[{token, h}];
          } else {
            const bool fresh = rows.emplace(std::make_pair(item.partial_row + t - item.tokens.begin, h), token).second;
            EXPECT_TRUE(fresh) << "two items write one partial";
          }
        }
      }
    }
  }
  size_t expected_pages = 0;
  for (const PlanSequence& s : plan.sequences) {
    for (int t = 0; t < s.query_len; ++t) {
      for (int h = 0; h < options.num_kv_heads; ++h) {
        const auto key = std::make_pair(s.query_start + t, h);
        EXPECT_EQ(sinks[key], 1);
        for (Range r : {s.pool_pages, s.streamed_pages, s.host_pages}) {
          for (int p = r.begin; p < r.end; ++p) {
            EXPECT_EQ((seen[{s.query_start + t, h, p}]), 1);
            ++expected_pages;
          }
        }
      }
    }
  }
  EXPECT_EQ(seen.size(), expected_pages) << "an item reaches into another sequence's pages";
  size_t merged = 0;
  for (const MergeItem& merge : plan.merges) {
    EXPECT_GE(merge.count, 1);
    for (int p = 0; p < merge.count; ++p) {
      for (int h = 0; h < options.num_kv_heads; ++h) {
        const auto it = rows.find({merge.row + p * merge.stride, h});
        ASSERT_NE(it, rows.end()) << "a merge reads a row that no item writes";
        EXPECT_EQ(it->second, merge.token);
        EXPECT_LT(it->first.first, plan.partial_rows);
        EXPECT_EQ(direct.count({merge.token, h}), 0u);
        ++merged;
      }
    }
  }
  EXPECT_EQ(merged, rows.size()) << "a partial is never merged";
}

// No item crosses from one head group to another, and the CPU's lie where cpu_group_ends says.
void CheckGroups(const SplitOptions& options, const StepPlan& plan) {
  const int heads = options.num_kv_heads / options.head_groups;
  for (const std::vector<WorkItem>* items : {&plan.device_items, &plan.cpu_items}) {
    for (const WorkItem& item : *items) EXPECT_EQ(item.heads.begin / heads, (item.heads.end - 1) / heads);
  }
  ASSERT_EQ(plan.cpu_group_ends.size(), static_cast<size_t>(options.head_groups));
  EXPECT_EQ(plan.cpu_group_ends.back(), static_cast<int32_t>(plan.cpu_items.size()));
  for (int32_t i = 0; i < static_cast<int32_t>(plan.cpu_items.size()); ++i) {
    const int group = plan.cpu_items[i].heads.begin / heads;
    EXPECT_LT(i, plan.cpu_group_ends[group]);
    EXPECT_GE(i, group == 0 ? 0 : plan.cpu_group_ends[group - 1]);
  }
}

TEST(StepPlanTest, EveryPageIsAttendedOnceOverRandomShapes) {
  std::mt19937 random(7);
  const auto uniform = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE(testing::Message() << "round " << round);
    SplitOptions options;
    options.head_groups = uniform(1, 3);
    options.num_kv_heads = options.head_groups * uniform(1, 4);
    options.group = uniform(1, 3) == 1 ? 71 : uniform(1, 9);
    options.cpu_workers = uniform(1, 8);
    options.device_workers = uniform(0, 2);
    StepPlan plan;
    const int sequences = uniform(0, 5);
    for (int i = 0; i < sequences; ++i) {
      const int pool = uniform(0, 3) == 0 ? 0 : uniform(0, 80);
      const int host = uniform(0, 1) == 0 ? 0 : uniform(0, 80);
      const int streamed = options.device_workers > 0 && uniform(0, 1) == 0 ? uniform(0, 40) : 0;
      AddSequence(uniform(0, 3) == 0 ? uniform(20, 90) : uniform(1, 4), pool + (pool + host + streamed == 0), streamed,
                  host, plan);
    }
    SplitWork(options, plan);
    if (options.device_workers == 0) {
      EXPECT_TRUE(plan.device_items.empty());
    }
    CheckCover(options, plan);
    CheckGroups(options, plan);
    if (HasFailure()) return;
  }
}

TEST(StepPlanTest, ALongDecodeIsSplitForAllWorkersAndAShortOneIsNot) {
  SplitOptions options;
  options.num_kv_heads = 8;
  options.cpu_workers = 4;
  StepPlan plan;
  AddSequence(1, 2048, 0, 0, plan);
  SplitWork(options, plan);
  EXPECT_GE(plan.cpu_items.size(), 8u);
  plan.Clear();
  AddSequence(1, 4, 0, 0, plan);
  SplitWork(options, plan);
  ASSERT_EQ(plan.cpu_items.size(), 1u);
  EXPECT_EQ(plan.cpu_items[0].partial_row, -1);
  EXPECT_TRUE(plan.merges.empty());
}

// What a graph's launches are sized by: lengths around multiples of a split, any number of workers.
TEST(StepPlanTest, DecodesHaveNoMoreItemsThanTheirBound) {
  std::mt19937 random(20261125);
  const auto uniform = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  int most_used = 0;
  for (int i = 0; i < 500; ++i) {
    SplitOptions options;
    options.num_kv_heads = uniform(1, 4);
    options.group = uniform(1, 20);
    options.cpu_workers = 2;
    options.device_workers = uniform(1, 150);
    StepPlan plan;
    const int sequences = uniform(1, 20), pages = 1 << uniform(0, 9);
    for (int s = 0; s < sequences; ++s) AddSequence(1, uniform(0, pages), 0, uniform(0, 3), plan);
    SplitWork(options, plan);
    int items = 0;
    for (const WorkItem& item : plan.device_items) items += item.heads.begin == 0;
    const int bound = MaxDeviceSplits(options.device_workers, sequences);
    ASSERT_LE(items, bound) << options.device_workers << " workers, " << sequences << " sequences";
    most_used = std::max(most_used, 100 * items / bound);
  }
  EXPECT_GT(most_used, 80) << "percent of the bound: it may be much too large";
}

TEST(StepPlanTest, SequencesWithoutQueryTokensOrPagesGiveNoItems) {
  SplitOptions options;
  options.cpu_workers = 2;
  StepPlan plan;
  AddSequence(0, 4, 0, 4, plan);
  AddSequence(0, 0, 0, 0, plan);
  SplitWork(options, plan);
  EXPECT_TRUE(plan.cpu_items.empty());
  EXPECT_TRUE(plan.merges.empty());
}

TEST(StepPlanTest, HostPartialsAreMergedByTheDeviceEvenWhenTheyAreAll) {
  SplitOptions options;
  options.device_workers = 1;
  StepPlan plan;
  AddSequence(1, 0, 0, 4, plan);
  SplitWork(options, plan);
  EXPECT_TRUE(plan.device_items.empty());
  ASSERT_EQ(plan.cpu_items.size(), 1u);
  EXPECT_GE(plan.cpu_items[0].partial_row, 0);
  EXPECT_EQ(plan.merges.size(), 1u);
}

}  // namespace
}  // namespace hybridgen
