// Steps padded to graphs: what is added does nothing, and what does not fit is named.
#include "backend/cuda_graphs.h"

#include <functional>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace hybridgen {
namespace {

constexpr GraphShape kShape = {4, 2};

CudaGraphLimits Limits() {
  CudaGraphLimits limits;
  limits.max_tokens = 8;
  limits.max_pages = 10;
  limits.query_tokens = 4;
  limits.device_workers = 3;
  limits.num_windows = 2;
  limits.num_layers = 1;
  limits.joined = true;
  return limits;
}

// One sequence of two tokens, with two splits on the device and a part of the CPU's, built for the graph's rows.
CudaStep SmallStep() {
  CudaStep step;
  step.step = 7;
  step.num_tokens = kShape.num_tokens;
  step.slots = {5, 6, -1, -1};
  step.pages.resize(3);
  step.decode.list = {{0, 2, 0, 1, 4, 1}, {0, 2, 1, 2, 6, 0}};
  step.decode.max_tokens = 2;
  step.row_merges = {{0, 4, 2, 2}, {1, 5, 2, 2}};
  step.joins = {{0, 0, 2, kFirstHostRow}, {1, 1, 2, kFirstHostRow}};
  step.query_tokens = {0, 1};
  step.partial_rows = 8;
  step.calls.resize(1);
  return step;
}

TEST(CudaGraphsTest, WhatIsAddedDoesNothing) {
  CudaGraphs graphs(Limits());
  absl::StatusOr<CudaGraph*> graph = graphs.Make(kShape);
  ASSERT_TRUE(graph.ok()) << graph.status();
  CudaStep step = SmallStep();
  ASSERT_TRUE(graphs.Pad(**graph, step).ok());
  const CudaStep small = SmallStep(), &launched = (*graph)->launches;
  EXPECT_EQ(step.decode.list.size(), launched.decode.list.size());
  EXPECT_EQ(step.decode.list[1].partial_row, 6);
  for (size_t i = small.decode.list.size(); i < step.decode.list.size(); ++i) {
    EXPECT_EQ(step.decode.list[i].num_tokens, 0);
  }
  for (const auto list : {&CudaStep::output_merges, &CudaStep::row_merges, &CudaStep::joins}) {
    EXPECT_EQ((step.*list).size(), 4u);
    EXPECT_EQ((launched.*list).size(), 4u);
    for (size_t i = (small.*list).size(); i < 4; ++i) EXPECT_EQ((step.*list)[i].count, 0);
  }
  EXPECT_EQ(step.slots, (std::vector<int64_t>{5, 6, -1, -1}));
  EXPECT_EQ(step.query_tokens, (std::vector<int32_t>{0, 1, -1, -1}));
  EXPECT_EQ(step.write_tokens, (std::vector<int32_t>{-1, -1, -1, -1}));
  EXPECT_TRUE(step.prefill.list.empty());
  EXPECT_EQ(launched.kv_begin.size(), 8u) << "[window][token]";
}

TEST(CudaGraphsTest, WhatDoesNotFitIsNamed) {
  CudaGraphs graphs(Limits());
  CudaGraph& graph = **graphs.Make(kShape);
  const auto refusal = [&](const std::function<void(CudaStep&)>& change) {
    CudaStep step = SmallStep();
    change(step);
    const absl::Status status = graphs.Pad(graph, step);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "step 7 does not fit the graph of 4 tokens")) << status;
    return std::string(status.message());
  };
  using absl::StrContains;
  EXPECT_TRUE(StrContains(refusal([](CudaStep& s) { s.num_tokens = 5; }), "5 tokens; accepted: up to 4"));
  EXPECT_TRUE(StrContains(refusal([](CudaStep& s) { s.prefill.list.resize(1); }), "1 items of prefill"));
  EXPECT_TRUE(StrContains(refusal([](CudaStep& s) { s.decode.max_tokens = 3; }), "3 query tokens of a sequence"));
  EXPECT_TRUE(StrContains(refusal([](CudaStep& s) { s.pages.resize(11); }), "graph_pages"));
  EXPECT_TRUE(StrContains(refusal([](CudaStep& s) { s.calls.resize(2); }), "2 calls of the joint a layer"));
  EXPECT_TRUE(StrContains(refusal([](CudaStep& s) { s.decode.list.resize(100); }), "100 items of decode"));
  EXPECT_TRUE(StrContains(refusal([](CudaStep& s) { s.partial_rows = 1000; }), "1000 rows of partials"));
}

TEST(CudaGraphsTest, ShapesAreCheckedAndUncapturedGraphsAreNotReplayed) {
  CudaGraphs graphs(Limits());
  for (const GraphShape& shape : {GraphShape{0, 1}, GraphShape{9, 1}, GraphShape{4, 0}, GraphShape{4, 5}}) {
    EXPECT_EQ(graphs.Make(shape).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(graphs.Find(kShape).status().code(), absl::StatusCode::kFailedPrecondition);
  CudaGraph* const graph = *graphs.Make(kShape);
  EXPECT_TRUE(absl::StrContains(graphs.Find(kShape).status().message(), "0 of 1 layers"));
  graph->layers.resize(1);
  ASSERT_TRUE(graphs.Make({8, 1}).ok());
  EXPECT_EQ(*graphs.Find(kShape), graph) << "a graph stays where it is";
  const CudaStep largest = graphs.Largest();
  EXPECT_EQ(largest.num_tokens, 8);
  EXPECT_EQ(largest.pages.size(), 10u);
  EXPECT_GE(largest.partial_rows, graph->launches.partial_rows);
}

// Without host tiers a graph has no call.
TEST(CudaGraphsTest, AStepWithAPartOfTheCpuDoesNotFitAGraphWithout) {
  CudaGraphLimits limits = Limits();
  limits.joined = false;
  CudaGraphs graphs(limits);
  CudaStep step = SmallStep();
  EXPECT_TRUE(absl::StrContains(graphs.Pad(**graphs.Make(kShape), step).message(), "calls of the joint"));
}

}  // namespace
}  // namespace hybridgen
