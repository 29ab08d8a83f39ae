// Tests of the topology over recorded and made-up trees. The recorded ones are guests of an emulator: NAME-KERNEL.
#include "memory/topology.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "memory/expected_machines.h"
#include "memory/fake_tree.h"
#include "memory/recorded_tree.h"

namespace hybridgen {
namespace {

constexpr int64_t kKiB = 1024;

constexpr MemoryKind kDram = MemoryKind::kDram;
constexpr MemoryKind kCxl = MemoryKind::kCxl;
constexpr MemoryKind kUnknown = MemoryKind::kUnknown;
constexpr RelativeSpeed kSlower = RelativeSpeed::kSlower;

class RecordedTopologyTest : public ::testing::TestWithParam<ExpectedMachine> {};

TEST_P(RecordedTopologyTest, IsClassifiedWithItsEvidence) {
  FakeTree tree;
  WriteTree(ReadRecordedTree(GetParam().name), tree);
  ExpectTopology(ReadTopology(tree.roots()), GetParam());
}

INSTANTIATE_TEST_SUITE_P(Kernels, RecordedTopologyTest, ::testing::ValuesIn(ExpectedMachines()), [](const auto& info) {
  std::string name = info.param.name;
  for (char& c : name) c = isalnum(c) ? c : '_';
  return name;
});

TEST(TopologyTest, ACxlDeviceAndItsRegion) {
  FakeTree tree;
  WriteTree(ReadRecordedTree("cxltype3-6.12"), tree);
  Topology topology = ReadTopology(tree.roots());
  ASSERT_EQ(topology.cxl_regions.size(), 1u);
  EXPECT_EQ(topology.cxl_regions[0].name, "region0");
  EXPECT_EQ(topology.cxl_regions[0].kind, kCxl);
  EXPECT_EQ(topology.cxl_regions[0].start, 0x110000000);
  EXPECT_EQ(topology.cxl_regions[0].bytes, 256 << 20);
  ASSERT_EQ(topology.dax_devices.size(), 1u);
  const DaxDevice& device = topology.dax_devices[0];
  EXPECT_EQ(device.name, "dax0.0");
  EXPECT_EQ(device.kind, kCxl);
  EXPECT_EQ(device.use, DaxUse::kNode);
  EXPECT_EQ(device.target_node, 1);
  EXPECT_EQ(device.bytes, 256 << 20);
  EXPECT_EQ(device.performance.read_nanoseconds, 302);
  EXPECT_TRUE(absl::StrContains(topology.nodes[1].kind_why, "2 of its 2 memory blocks lie inside CXL region0"));
}

TEST(TopologyTest, EitherProofOfCxlIsEnough) {
  const std::vector<TreeEntry> entries = ReadRecordedTree("cxltype3-6.12");
  for (const char* bus : {"sys/bus/dax", "sys/bus/cxl"}) {
    FakeTree tree;
    WriteTree(entries, tree);
    tree.Remove(bus);
    EXPECT_EQ(ReadTopology(tree.roots()).nodes[1].kind, kCxl) << "without " << bus;
    tree.Remove("sys/bus");
    EXPECT_EQ(ReadTopology(tree.roots()).nodes[1].kind, kUnknown) << "slow, and of unknown kind";
    EXPECT_EQ(ReadTopology(tree.roots()).nodes[1].speed, kSlower);
  }
}

// A tree with one socket and a node 1 whose memory a DAX device brought.
void WriteDaxNode(const std::string& device_directory, FakeTree& tree) {
  WriteTree(ReadRecordedTree("nohmat-6.12"), tree);
  tree.Write("sys/devices/" + device_directory + "/dax0.0/target_node", "1\n");
  tree.Write("sys/devices/" + device_directory + "/dax0.0/size", "268435456\n");
  tree.Link("sys/devices/" + device_directory + "/dax0.0/driver", "kmem");
  tree.Link("sys/bus/dax/devices/dax0.0", "../../../devices/" + device_directory + "/dax0.0");
}

TEST(TopologyTest, ProvenanceByTheDevicesPlace) {
  struct Case {
    const char* directory;
    MemoryKind kind;
  };
  for (const Case& c :
       {Case{"platform/ACPI0017:00/root0/decoder0.0/region0/dax_region0", kCxl},
        Case{"platform/ACPI0017:00/root0/nvdimm-bridge0/ndbus0/region0/dax0.0", MemoryKind::kPersistent},
        Case{"LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus0/region0/dax0.0", MemoryKind::kPersistent},
        Case{"platform/hmem.0", kUnknown}, Case{"platform/other.0", kUnknown}}) {
    FakeTree tree;
    WriteDaxNode(c.directory, tree);
    const Topology topology = ReadTopology(tree.roots());
    EXPECT_EQ(topology.dax_devices.at(0).kind, c.kind) << c.directory;
    EXPECT_EQ(topology.nodes.at(1).kind, c.kind) << c.directory;
    EXPECT_TRUE(absl::StrContains(topology.nodes.at(1).kind_why, c.directory)) << topology.nodes.at(1).kind_why;
    EXPECT_EQ(topology.nodes.at(0).kind, kDram);
  }
}

TEST(TopologyTest, WithoutADriverADaxDeviceProvesNothing) {
  FakeTree tree;
  WriteDaxNode("platform/ACPI0017:00/root0/decoder0.0/region0/dax_region0", tree);
  tree.Remove("sys/devices/platform/ACPI0017:00/root0/decoder0.0/region0/dax_region0/dax0.0/driver");
  const Topology topology = ReadTopology(tree.roots());
  EXPECT_EQ(topology.dax_devices.at(0).use, DaxUse::kUnknown);
  EXPECT_EQ(topology.nodes.at(1).kind, kUnknown);
}

TEST(TopologyTest, NodeNumbersMayHaveHoles) {
  FakeTree tree;
  tree.Write("sys/devices/system/node/online", "0,2,5\n");
  tree.Write("sys/devices/system/node/has_memory", "0,5,7\n");  // node 2: all its memory is offline; 7 is not there
  tree.Write("sys/devices/system/node/has_cpu", "0,2\n");
  tree.Write("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 1000 kB\nNode 0 MemFree: 600 kB\n");
  tree.Write("sys/devices/system/node/node0/cpulist", "0-1\n");
  tree.Write("sys/devices/system/node/node5/meminfo", "Node 5 MemTotal: 500 kB\nNode 5 MemFree: nothing\n");
  tree.Write("sys/devices/system/node/node5/cpulist", "\n");
  tree.Write("sys/devices/system/node/node5/distance", "31 32 10\n");
  const Topology topology = ReadTopology(tree.roots());
  ASSERT_EQ(topology.nodes.size(), 2u);
  EXPECT_EQ(topology.nodes[0].cpus, (std::vector<int>{0, 1}));
  EXPECT_EQ(topology.nodes[0].total_bytes, 1000 * kKiB);
  EXPECT_EQ(topology.nodes[0].free_bytes, 600 * kKiB);
  EXPECT_EQ(topology.nodes[1].id, 5);
  EXPECT_EQ(topology.nodes[1].has_cpus, NodeCpus::kNone);
  EXPECT_EQ(topology.nodes[1].total_bytes, 500 * kKiB);
  EXPECT_FALSE(topology.nodes[1].free_bytes.has_value());
  EXPECT_EQ(topology.nodes[1].distances, (std::map<int, int>{{0, 31}, {2, 32}, {5, 10}}));
}

TEST(TopologyTest, WhatContradictsItselfIsUnknown) {
  FakeTree tree;
  WriteTree(ReadRecordedTree("cxl-6.12"), tree);
  tree.Write("sys/devices/system/node/has_cpu", "1\n");
  tree.Write("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 1000 kB\nNode 0 MemFree: 1001 kB\n");
  tree.Write("sys/devices/system/node/node0/distance", "20 10\n");
  tree.Write("sys/devices/virtual/memory_tiering/memory_tier5/nodelist", "0\n");
  const Topology topology = ReadTopology(tree.roots());
  for (const MemoryNode& node : topology.nodes) EXPECT_EQ(node.has_cpus, NodeCpus::kUnknown) << node.id;
  const MemoryNode& node = topology.nodes.at(0);
  EXPECT_EQ(node.kind, kUnknown);
  EXPECT_FALSE(node.total_bytes.has_value());
  EXPECT_FALSE(node.free_bytes.has_value());
  EXPECT_TRUE(node.distances.empty());
  EXPECT_FALSE(node.kernel_tier.has_value());
}

TEST(TopologyTest, AccessesFromCpusCountBeforeAccessesFromAnyDevice) {
  FakeTree tree;
  WriteTree(ReadRecordedTree("cxl-6.12"), tree);
  const std::string access = "sys/devices/system/node/node1/access";
  tree.Write(access + "0/initiators/read_bandwidth", "900000\n");  // a GPU's own view of the node
  EXPECT_EQ(ReadTopology(tree.roots()).nodes[1].performance.read_megabytes_per_second, 25600);
  tree.Remove(access + "1");
  EXPECT_EQ(ReadTopology(tree.roots()).nodes[1].performance.read_megabytes_per_second, 900000);
  EXPECT_TRUE(absl::StrContains(ReadTopology(tree.roots()).nodes[1].performance.source, "access0/"));
}

TEST(TopologyTest, GpusAndTheirNodes) {
  FakeTree tree;
  const auto device = [&tree](const std::string& address, const std::string& pci_class, const std::string& node) {
    tree.Write("sys/bus/pci/devices/" + address + "/class", pci_class + "\n");
    tree.Write("sys/bus/pci/devices/" + address + "/vendor", "0x10de\n");
    tree.Write("sys/bus/pci/devices/" + address + "/device", "0x2330\n");
    tree.Write("sys/bus/pci/devices/" + address + "/numa_node", node + "\n");
  };
  device("0000:01:00.0", "0x020000", "0");  // a network card
  device("0000:18:00.0", "0x030200", "1");
  device("0000:2a:00.0", "0x030000", "-1");
  device("0000:3a:00.0", "garbage", "1");
  const Topology topology = ReadTopology(tree.roots());
  ASSERT_EQ(topology.gpus.size(), 2u);
  EXPECT_EQ(topology.gpus[0].address, "0000:18:00.0");
  EXPECT_EQ(topology.gpus[0].vendor, "0x10de");
  EXPECT_EQ(topology.gpus[0].device, "0x2330");
  EXPECT_EQ(topology.gpus[0].node, 1);
  EXPECT_FALSE(topology.gpus[1].node.has_value()) << "firmware does not tell";
}

TEST(TopologyTest, TheOperatorsWordIsShown) {
  FakeTree tree;
  WriteTree(ReadRecordedTree("nohmat-6.1"), tree);
  const absl::StatusOr<Topology> topology = ReadTopology(tree.roots(), "1:cxl");
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_EQ(topology->nodes[0].kind, kDram);
  EXPECT_EQ(topology->nodes[1].kind, kCxl);
  EXPECT_EQ(topology->nodes[1].kind_why, "set by the operator");
  EXPECT_EQ(ReadTopology(tree.roots(), "1:fast").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadTopology(tree.roots(), "2:cxl").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadTopology(tree.roots(), "")->nodes[1].kind, kUnknown);
}

TEST(TopologyTest, TheModeOfHugePagesStandsInBrackets) {
  FakeTree tree;
  const auto mode = [&tree](const std::string& modes) {
    tree.Write("sys/kernel/mm/transparent_hugepage/enabled", modes);
    return ReadTopology(tree.roots()).transparent_huge_pages;
  };
  EXPECT_EQ(mode("[always] madvise never\n"), TransparentHugePages::kAlways);
  EXPECT_EQ(mode("always [madvise] never\n"), TransparentHugePages::kMadvise);
  EXPECT_EQ(mode("always madvise [never]\n"), TransparentHugePages::kNever);
  EXPECT_EQ(mode("always madvise never\n"), TransparentHugePages::kUnknown);
}

TEST(TopologyTest, WithoutNodesNothingIsKnown) {
  FakeTree tree;
  EXPECT_TRUE(ReadTopology(tree.roots()).nodes.empty());
  tree.Write("sys/devices/system/node/has_memory", "\x01garbage-");
  EXPECT_TRUE(ReadTopology(tree.roots()).nodes.empty());
}

TEST(TopologyTest, ThisMachineIsRead) {
  const Topology topology = ReadTopology();
  if (topology.nodes.empty()) GTEST_SKIP() << "sysfs lists no memory nodes here";
  EXPECT_TRUE(topology.machine_total_bytes.has_value());
  for (const MemoryNode& node : topology.nodes) EXPECT_FALSE(node.kind_why.empty()) << node.id;
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
