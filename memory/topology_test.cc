// Tests of the topology over fake trees.
#include "memory/topology.h"

#include "gtest/gtest.h"
#include "memory/fake_tree.h"

namespace hybridgen {
namespace {

TEST(TopologyTest, NodesWithMemoryAndTheirCpus) {
  FakeTree tree;
  tree.Write("sys/devices/system/node/online", "0-3\n");
  tree.Write("sys/devices/system/node/has_memory", "0,2-3\n");  // node 1: all its memory is offline
  tree.Write("sys/devices/system/node/has_cpu", "0-1\n");
  tree.Write("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 1000 kB\nNode 0 MemFree: 600 kB\n");
  tree.Write("sys/devices/system/node/node2/meminfo", "Node 2 MemTotal: 500 kB\nNode 2 MemFree: nothing\n");
  const Topology topology = ReadTopology(tree.roots());
  ASSERT_EQ(topology.nodes.size(), 3u);
  EXPECT_EQ(topology.nodes[0].id, 0);
  EXPECT_EQ(topology.nodes[0].cpus, NodeCpus::kSome);
  EXPECT_EQ(topology.nodes[0].kind, MemoryKind::kDram);
  EXPECT_EQ(topology.nodes[0].total_bytes, 1000 * 1024);
  EXPECT_EQ(topology.nodes[0].free_bytes, 600 * 1024);
  EXPECT_EQ(topology.nodes[1].id, 2);
  EXPECT_EQ(topology.nodes[1].cpus, NodeCpus::kNone);
  EXPECT_EQ(topology.nodes[1].kind, MemoryKind::kUnknown);
  EXPECT_EQ(topology.nodes[1].total_bytes, 500 * 1024);
  EXPECT_EQ(topology.nodes[1].free_bytes, 0);
  EXPECT_EQ(topology.nodes[2].id, 3);
  EXPECT_EQ(topology.nodes[2].total_bytes, 0);
}

TEST(TopologyTest, WithoutNodesNothingIsKnown) {
  FakeTree tree;
  EXPECT_TRUE(ReadTopology(tree.roots()).nodes.empty());
  tree.Write("sys/devices/system/node/has_memory", "\x01garbage-");
  EXPECT_TRUE(ReadTopology(tree.roots()).nodes.empty());
  tree.Write("sys/devices/system/node/has_memory", "0\n");
  tree.Write("sys/devices/system/node/has_cpu", "zero\n");
  ASSERT_EQ(ReadTopology(tree.roots()).nodes.size(), 1u);
  EXPECT_EQ(ReadTopology(tree.roots()).nodes[0].kind, MemoryKind::kUnknown) << "unknown CPUs prove nothing";
}

TEST(TopologyTest, EveryKindHasAName) {
  EXPECT_STREQ(MemoryKindName(MemoryKind::kUnknown), "unknown");
  EXPECT_STREQ(MemoryKindName(MemoryKind::kDram), "dram");
  EXPECT_STREQ(MemoryKindName(MemoryKind::kCxl), "cxl");
  EXPECT_STREQ(MemoryKindName(MemoryKind::kHbm), "hbm");
  EXPECT_STREQ(MemoryKindName(MemoryKind::kPersistent), "persistent");
}

}  // namespace
}  // namespace hybridgen
