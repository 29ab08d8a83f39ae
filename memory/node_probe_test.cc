// Tests of measuring nodes: which CPUs read, budget and time limit, and this machine's own nodes.
#include "memory/node_probe.h"

#include <cerrno>
#include <fstream>
#include <iostream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/fake_dax_device.h"
#include "memory/fake_memory_policy.h"
#include "memory/fake_tree.h"
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
  const NodeSpeeds speeds = ProbeMemory(topology).nodes;
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
    options_.arena.budget = [this](int node) {
      EXPECT_EQ(node, -1);
      return MemoryBudget{room_, "a neighbour"};
    };
  }

  absl::StatusOr<ReadSpeed> Probe() { return ProbeMemory(topology_, options_).nodes.at(0); }

  Topology topology_;
  NodeProbeOptions options_;
  nanoseconds time_{0};
  nanoseconds step_{1};
  std::optional<int64_t> room_;
};

TEST_F(OneNodeTest, ReadsWhatOneThreadNeeds) { EXPECT_EQ(Probe()->range_bytes, ProbeBytes(1)); }

TEST_F(OneNodeTest, TheBudgetIsRespected) {
  room_ = 2 * kMiB - 1;
  const absl::Status status = Probe().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const char* words : {"to measure node 0", "available 2097151 bytes", "a neighbour"}) {
    EXPECT_TRUE(absl::StrContains(status.message(), words)) << status;
  }
  int64_t asked = 0;
  options_.arena.budget = [&asked](int) { return MemoryBudget{++asked < 15 ? 64 * kMiB : 0, "a neighbour"}; };
  const ReadSpeed speed = Probe().value();
  EXPECT_GE(speed.range_bytes, 2 * kMiB) << "what could be had";
  EXPECT_LT(speed.range_bytes, ProbeBytes(1));
}

TEST_F(OneNodeTest, TheTimeLimitBoundsReservingToo) {
  step_ = milliseconds(100);  // per look; half of 800 ms may pass while pieces are reserved
  const ReadSpeed speed = Probe().value();
  EXPECT_LT(speed.range_bytes, ProbeBytes(1));
  EXPECT_GE(speed.range_bytes, 2 * kMiB);
  EXPECT_LE(time_, milliseconds(2000));  // the limit, and one sample of each kind after it
}

TEST(NodeProbeTest, NoNodesNothingMeasured) { EXPECT_TRUE(ProbeMemory(Topology()).nodes.empty()); }

// Three nodes, two of them there, whose pages lie where the pretended kernel says.
class PretendedNodesTest : public ::testing::Test {
 protected:
  PretendedNodesTest() {
    topology_.nodes = {Node(0, {0}, {}), Node(1, {}, {{0, 20}, {1, 10}}), Node(700, {}, {})};
    options_.cpus = {0};
    options_.arena.budget = [](int) { return MemoryBudget(); };
    options_.arena.calls = &kernel_;
    tree_.Write("sys/devices/system/node/has_memory", "0-1\n");
    options_.arena.roots = tree_.roots();
    options_.now = [this] { return time_ += milliseconds(1); };
  }

  Topology topology_;
  FakeMemoryPolicy kernel_;
  FakeTree tree_;
  NodeProbeOptions options_;
  nanoseconds time_{0};
};

TEST_F(PretendedNodesTest, NodesShareTheTimeAndAbsentOnesAreRefused) {
  const NodeSpeeds speeds = ProbeMemory(topology_, options_).nodes;
  ASSERT_EQ(speeds.size(), 3u);
  for (const int node : {0, 1}) {
    const absl::StatusOr<ReadSpeed>& speed = speeds.at(node);
    ASSERT_TRUE(speed.ok()) << speed.status();
    EXPECT_LE(speed->seconds, 0.2 + 0.02) << node;
  }
  const absl::Status absent = speeds.at(700).status();
  EXPECT_EQ(absent.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(absent.message(), "node 700")) << absent;
  EXPECT_LE(time_, milliseconds(850));
}

TEST_F(PretendedNodesTest, APieceThatLiesElsewhereIsNotMeasured) {
  kernel_.free_pages[1] = 0;
  const NodeSpeeds speeds = ProbeMemory(topology_, options_).nodes;
  EXPECT_TRUE(speeds.at(0).ok());
  EXPECT_EQ(speeds.at(1).status().code(), absl::StatusCode::kResourceExhausted) << speeds.at(1).status();
}

TEST_F(PretendedNodesTest, WhereNobodyMayBindNoNodeIsMeasured) {
  kernel_.prefer_error = EPERM;
  for (const auto& [node, speed] : ProbeMemory(topology_, options_).nodes) {
    if (node == 700) continue;
    EXPECT_EQ(speed.status().code(), absl::StatusCode::kFailedPrecondition) << node << ": " << speed.status();
  }
  topology_.nodes.resize(1);
  EXPECT_TRUE(ProbeMemory(topology_, options_).nodes.at(0).ok()) << "all memory is the only node's";
}

TEST(DeviceProbeTest, MappedCxlDevicesAreReadAndNotWritten) {
  FakeTree tree;
  constexpr int64_t kBytes = 8 * kMiB;
  MakeDaxDevice(tree, "dax0.0", kBytes, 2 * kMiB, 1);
  MakeDaxDevice(tree, "dax0.1", kBytes, 2 * kMiB, 1);
  const std::string path = tree.root() + "/dev/dax0.0";
  {
    std::fstream content(path, std::ios::in | std::ios::out);
    content << "what was there";
  }
  Topology topology;
  for (const auto& [kind, use] :
       {std::pair(MemoryKind::kCxl, DaxUse::kMapped), std::pair(MemoryKind::kCxl, DaxUse::kNode),
        std::pair(MemoryKind::kPersistent, DaxUse::kMapped), std::pair(MemoryKind::kCxl, DaxUse::kMapped)}) {
    DaxDevice device;
    device.name = absl::StrCat("dax0.", topology.dax_devices.size());
    device.kind = kind;
    device.use = use;
    device.bytes = kBytes;
    topology.dax_devices.push_back(device);
  }
  nanoseconds time{0};
  NodeProbeOptions options;
  options.cpus = {0};
  options.now = [&time] { return time += nanoseconds(1000); };
  options.device_directory = tree.root() + "/dev/";
  options.arena.roots = tree.roots();
  const DeviceSpeeds speeds = ProbeMemory(topology, options).devices;
  ASSERT_EQ(speeds.size(), 2u) << "what is a node's, or persistent, is left alone";
  const absl::StatusOr<ReadSpeed>& speed = speeds.at("dax0.0");
  ASSERT_TRUE(speed.ok()) << speed.status();
  EXPECT_EQ(speed->range_bytes, kBytes) << "all of it, as it is small";
  EXPECT_EQ(speeds.at("dax0.3").status().code(), absl::StatusCode::kNotFound) << speeds.at("dax0.3").status();
  std::string words(14, ' ');
  std::ifstream(path).read(words.data(), words.size());
  EXPECT_EQ(words, "what was there");
}

}  // namespace
}  // namespace hybridgen
