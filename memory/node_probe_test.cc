// Tests of measuring nodes: which CPUs read, budget and time limit, and this machine's own nodes.
#include "memory/node_probe.h"

#include <iostream>
#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/topology.h"

namespace hybridgen {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using Cpus = std::vector<int>;

constexpr int64_t kMiB = int64_t{1} << 20;

MemoryNode Node(int id, const Cpus& cpus, const std::map<int, int>& distances) {
  MemoryNode node;
  node.id = id;
  node.cpus = cpus;
  node.distances = distances;
  return node;
}

TEST(NodeProbeTest, TheNearestNodesCpusRead) {
  Topology topology;
  topology.nodes = {Node(0, {0, 1}, {{0, 10}, {1, 21}, {2, 30}, {3, 14}}),
                    Node(1, {2, 3}, {{0, 21}, {1, 10}, {2, 24}, {3, 24}}), Node(2, {}, {{0, 30}, {1, 24}, {2, 10}}),
                    Node(3, {}, {})};
  const Cpus all = {0, 1, 2, 3};
  EXPECT_EQ(NearestCpus(topology, 0, all), (Cpus{0, 1}));
  EXPECT_EQ(NearestCpus(topology, 1, all), (Cpus{2, 3}));
  EXPECT_EQ(NearestCpus(topology, 2, all), (Cpus{2, 3}));
  EXPECT_EQ(NearestCpus(topology, 2, {1, 3}), (Cpus{3})) << "of those that the process may use";
  EXPECT_EQ(NearestCpus(topology, 2, {0, 1}), (Cpus{0, 1})) << "the nearest node has none for us";
  EXPECT_EQ(NearestCpus(topology, 1, {0}), (Cpus{0}));
  EXPECT_EQ(NearestCpus(topology, 3, all), all) << "unknown distances";
  EXPECT_EQ(NearestCpus(topology, 9, all), all) << "unknown node";
  EXPECT_EQ(NearestCpus(topology, 0, {}), Cpus());
  EXPECT_EQ(NearestCpus(topology, 0, {7}), (Cpus{7})) << "a CPU of no memory node";
}

TEST(NodeProbeTest, ThisMachinesNodes) {
  const Topology topology = ReadTopology();
  if (topology.nodes.empty()) GTEST_SKIP() << "sysfs lists no memory nodes here";
  const std::map<int, absl::StatusOr<ReadSpeed>> speeds = ProbeNodes(topology);
  ASSERT_EQ(speeds.size(), topology.nodes.size());
  for (const auto& [node, speed] : speeds) {
    if (speed.status().code() == absl::StatusCode::kResourceExhausted) continue;  // a node may be full
    if (speed.status().code() == absl::StatusCode::kFailedPrecondition) GTEST_SKIP() << speed.status();
    ASSERT_TRUE(speed.ok()) << speed.status();
    EXPECT_EQ(speed->threads, static_cast<int>(NearestCpus(topology, node, AllowedCpus()).size()));
    EXPECT_GT(speed->bytes_per_second, 0);
    EXPECT_GT(speed->nanoseconds, 0);
    std::cout << "node " << node << ": " << ToString(*speed) << ", " << speed->clean_samples << " of " << speed->samples
              << " samples clean, " << speed->seconds << " s\n";
  }
}

// One node, so that nothing is bound: the pages come from anywhere, and the figures from a clock.
class OneNodeTest : public ::testing::Test {
 protected:
  OneNodeTest() {
    topology_.nodes = {Node(0, {0}, {{0, 10}})};
    options_.cpus = {0};
    options_.now = [this] { return time_ += step_; };
    options_.budget = [this](int node) {
      EXPECT_EQ(node, -1);
      return MemoryBudget{room_, "a neighbour"};
    };
  }

  absl::StatusOr<ReadSpeed> Probe() { return ProbeNodes(topology_, options_).at(0); }

  Topology topology_;
  NodeProbeOptions options_;
  nanoseconds time_{0};
  nanoseconds step_{1};
  std::optional<int64_t> room_;
};

TEST_F(OneNodeTest, ReadsWhatOneThreadNeeds) { EXPECT_EQ(Probe()->range_bytes, ProbeBytes(1)); }

TEST_F(OneNodeTest, TheBudgetIsRespected) {
  room_ = 8 * kMiB - 1;
  const absl::Status status = Probe().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const char* words : {"to measure node 0", "available 8388607 bytes", "a neighbour"}) {
    EXPECT_TRUE(absl::StrContains(status.message(), words)) << status;
  }
  int64_t asked = 0;
  options_.budget = [&asked](int) { return MemoryBudget{++asked < 15 ? 64 * kMiB : 0, "a neighbour"}; };
  const ReadSpeed speed = Probe().value();
  EXPECT_GE(speed.range_bytes, 8 * kMiB) << "what could be had";
  EXPECT_LT(speed.range_bytes, ProbeBytes(1));
}

TEST_F(OneNodeTest, TheTimeLimitBoundsReservingToo) {
  step_ = milliseconds(100);  // per look; half of 800 ms may pass while pieces are reserved
  const ReadSpeed speed = Probe().value();
  EXPECT_LT(speed.range_bytes, ProbeBytes(1));
  EXPECT_GE(speed.range_bytes, 8 * kMiB);
  EXPECT_LE(time_, milliseconds(2000));  // the limit, and one sample of each kind after it
}

TEST_F(OneNodeTest, NodesShareTheTime) {
  for (int id = 1; id < 4; ++id) topology_.nodes.push_back(Node(id, {}, {}));
  options_.budget = [](int) { return MemoryBudget{0, "nothing"}; };
  step_ = milliseconds(1);
  const auto speeds = ProbeNodes(topology_, options_);
  ASSERT_EQ(speeds.size(), 4u);
  for (const auto& [node, speed] : speeds) {
    EXPECT_EQ(speed.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(absl::StrContains(speed.status().message(), absl::StrCat("node ", node))) << speed.status();
  }
}

TEST(NodeProbeTest, NoNodesNothingMeasured) { EXPECT_TRUE(ProbeNodes(Topology()).empty()); }

TEST(NodeProbeTest, AbsentNodesAreRefused) {
  Topology topology;
  topology.nodes = {Node(700, {0}, {}), Node(701, {0}, {})};
  for (const auto& [node, speed] : ProbeNodes(topology)) {
    EXPECT_FALSE(speed.ok()) << "node " << node << " does not exist, so nothing is measured in its name";
  }
}

}  // namespace
}  // namespace hybridgen
