// Tests of the conclusions, from facts alone.
#include "memory/node_classifier.h"

#include <string>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

MemoryNode Dram(int id) {
  MemoryNode node;
  node.id = id;
  node.has_cpus = NodeCpus::kSome;
  node.cpus = {id};
  node.total_bytes = 64 * kGiB;
  node.performance = {200'000, 100, "dram/"};
  node.kernel_tier = 4;
  return node;
}

MemoryNode CpuLess(int id, Performance performance = {}) {
  MemoryNode node;
  node.id = id;
  node.has_cpus = NodeCpus::kNone;
  node.total_bytes = kGiB;
  node.performance = std::move(performance);
  return node;
}

// The conclusion about `node` beside one node of DRAM.
MemoryNode Classified(MemoryNode node, MemoryNode dram = Dram(0)) {
  std::vector<MemoryNode> nodes = {std::move(dram), std::move(node)};
  EXPECT_TRUE(ClassifyNodes({}, nodes).ok());
  EXPECT_FALSE(nodes[1].kind_why.empty());
  EXPECT_FALSE(nodes[1].speed_why.empty());
  return nodes[1];
}

TEST(NodeClassifierTest, CpusMeanDramOnlyIfNoDeviceBroughtTheMemory) {
  EXPECT_EQ(Classified(Dram(1)).kind, MemoryKind::kDram);
  EXPECT_EQ(Classified(Dram(1)).speed, RelativeSpeed::kSimilar);
  MemoryNode node = Dram(1);
  node.provenance = {{ProvenanceSource::kDaxDevice, MemoryKind::kCxl, 16 * kGiB, "dax0.0"}};
  EXPECT_EQ(Classified(node).kind, MemoryKind::kUnknown) << "DRAM and CXL in one node";
  node.provenance[0].bytes = 64 * kGiB;  // a socket without DIMMs
  EXPECT_EQ(Classified(node).kind, MemoryKind::kCxl);
  node = Dram(1);
  node.has_cpus = NodeCpus::kUnknown;
  EXPECT_EQ(Classified(node).kind, MemoryKind::kUnknown);
}

TEST(NodeClassifierTest, ADeviceProvesOnlyWhatItAccountsFor) {
  MemoryNode node = CpuLess(1);
  node.provenance = {{ProvenanceSource::kDaxDevice, MemoryKind::kCxl, kGiB, "dax0.0"}};
  EXPECT_EQ(Classified(node).kind, MemoryKind::kCxl);
  EXPECT_EQ(Classified(node).kind_why, "dax0.0");
  node.provenance[0].kind = MemoryKind::kPersistent;
  EXPECT_EQ(Classified(node).kind, MemoryKind::kPersistent);
  node.provenance[0].bytes = kGiB - 1;
  EXPECT_EQ(Classified(node).kind, MemoryKind::kUnknown);
  node.provenance[0].bytes = kGiB;
  node.total_bytes = std::nullopt;
  EXPECT_EQ(Classified(node).kind, MemoryKind::kUnknown) << "all of an unknown amount is unknown";
  node.total_bytes = kGiB;
  node.block_bytes = 2 * kGiB;
  EXPECT_EQ(Classified(node).kind, MemoryKind::kUnknown) << "a block is not the device's";
}

TEST(NodeClassifierTest, TwoDevicesMayShareANodeTwoViewsOfOneAreNotAdded) {
  MemoryNode node = CpuLess(1);
  node.provenance = {{ProvenanceSource::kDaxDevice, MemoryKind::kCxl, kGiB / 2, "dax0.0"},
                     {ProvenanceSource::kDaxDevice, MemoryKind::kCxl, kGiB / 2, "dax1.0"}};
  EXPECT_EQ(Classified(node).kind, MemoryKind::kCxl);
  node.provenance[1].kind = MemoryKind::kPersistent;
  EXPECT_EQ(Classified(node).kind, MemoryKind::kUnknown);
  node.provenance[1] = {ProvenanceSource::kCxlRegion, MemoryKind::kCxl, kGiB / 2, "region0"};
  EXPECT_EQ(Classified(node).kind, MemoryKind::kUnknown) << "half of the node, seen twice";
}

TEST(NodeClassifierTest, HbmIsTwiceAsFastAsDram) {
  const Performance fast = {400'001, 200, "hbm/"};
  EXPECT_EQ(Classified(CpuLess(1, fast)).kind, MemoryKind::kHbm);
  EXPECT_EQ(Classified(CpuLess(1, fast)).speed, RelativeSpeed::kFaster);
  EXPECT_EQ(Classified(CpuLess(1, {400'000, 100, "dimm/"})).kind, MemoryKind::kUnknown);
  MemoryNode node = CpuLess(1, fast);
  node.has_cpus = NodeCpus::kUnknown;
  EXPECT_EQ(Classified(node).kind, MemoryKind::kUnknown);
  node = CpuLess(1, fast);
  node.provenance = {{ProvenanceSource::kDaxDevice, MemoryKind::kUnknown, kGiB, "set aside by firmware"}};
  EXPECT_EQ(Classified(node).kind, MemoryKind::kHbm);
  node.provenance[0].kind = MemoryKind::kCxl;
  EXPECT_EQ(Classified(node).kind, MemoryKind::kCxl) << "provenance is proof, speed is not";
  node.provenance[0].bytes = 1;
  EXPECT_EQ(Classified(node).kind, MemoryKind::kUnknown) << "some of it is CXL";
  MemoryNode silent = Dram(0);
  silent.performance = {};
  EXPECT_EQ(Classified(CpuLess(1, fast), silent).kind, MemoryKind::kUnknown) << "nothing to compare with";
}

TEST(NodeClassifierTest, SlowMemoryWithoutCpusHasNoKindButASpeed) {
  MemoryNode node = Classified(CpuLess(1, {25'600, 250, "far/"}));
  EXPECT_EQ(node.kind, MemoryKind::kUnknown);
  EXPECT_EQ(node.speed, RelativeSpeed::kSlower);
  EXPECT_NE(node.speed_why.find("far/read_bandwidth"), std::string::npos) << node.speed_why;
  EXPECT_EQ(Classified(CpuLess(1, {150'000, 151, "far/"})).speed, RelativeSpeed::kSlower) << "by latency";
  EXPECT_EQ(Classified(CpuLess(1, {150'000, 150, "near/"})).speed, RelativeSpeed::kSimilar);
  EXPECT_EQ(Classified(CpuLess(1, {150'000, std::nullopt, "near/"})).speed, RelativeSpeed::kUnknown);
  EXPECT_EQ(Classified(CpuLess(1, {std::nullopt, 500, "hbm or far/"})).speed, RelativeSpeed::kUnknown);
}

TEST(NodeClassifierTest, KernelTiersAreComparedWhereFirmwareIsSilent) {
  MemoryNode node = CpuLess(1);
  EXPECT_EQ(Classified(node).speed, RelativeSpeed::kUnknown);
  node.kernel_tier = 4;
  EXPECT_EQ(Classified(node).speed, RelativeSpeed::kUnknown) << "one tier tells nothing: Linux 6.1 puts all in one";
  node.kernel_tier = 5;
  EXPECT_EQ(Classified(node).speed, RelativeSpeed::kSlower);
  node.kernel_tier = 3;
  EXPECT_EQ(Classified(node).speed, RelativeSpeed::kFaster);
  EXPECT_EQ(Classified(node).kind, MemoryKind::kUnknown) << "the kernel's order names no medium";
}

TEST(NodeClassifierTest, TheOperatorWins) {
  std::vector<MemoryNode> nodes = {Dram(0), CpuLess(1), CpuLess(2, {900'000, 120, "hbm/"})};
  ASSERT_TRUE(ClassifyNodes({{1, MemoryKind::kCxl}, {2, MemoryKind::kUnknown}}, nodes).ok());
  EXPECT_EQ(nodes[1].kind, MemoryKind::kCxl);
  EXPECT_EQ(nodes[1].kind_why, "set by the operator");
  EXPECT_EQ(nodes[2].kind, MemoryKind::kUnknown);
  const absl::Status status = ClassifyNodes({{7, MemoryKind::kCxl}}, nodes);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "memory topology: node 7 is named but has no memory; accepted: nodes 0, 1, 2");
}

TEST(NodeClassifierTest, OverridesAreParsed) {
  EXPECT_EQ(*ParseKindOverrides(""), KindOverrides());
  EXPECT_EQ(*ParseKindOverrides(" \n"), KindOverrides());
  EXPECT_EQ(*ParseKindOverrides("2:cxl"), (KindOverrides{{2, MemoryKind::kCxl}}));
  EXPECT_EQ(*ParseKindOverrides(" 2 : cxl, 1023:hbm,0:dram,4:persistent,5:unknown"),
            (KindOverrides{{2, MemoryKind::kCxl},
                           {1023, MemoryKind::kHbm},
                           {0, MemoryKind::kDram},
                           {4, MemoryKind::kPersistent},
                           {5, MemoryKind::kUnknown}}));
}

TEST(NodeClassifierTest, WrongOverridesAreRefusedByItem) {
  const auto refusal = [](const std::string& text) {
    const absl::StatusOr<KindOverrides> overrides = ParseKindOverrides(text);
    EXPECT_EQ(overrides.status().code(), absl::StatusCode::kInvalidArgument) << text;
    return std::string(overrides.status().message());
  };
  EXPECT_EQ(refusal("2:cxl,3:ssd"),
            "memory topology: item '3:ssd' of '2:cxl,3:ssd' names no kind of memory; accepted: NODE:KIND with NODE 0 "
            "to 1023, each once, and KIND one of unknown, dram, cxl, hbm, persistent, such as 2:cxl,3:hbm");
  for (const char* text : {"cxl", ":cxl", "1024:cxl", "-1:cxl", "0-2:cxl", "2-2:cxl", "1;2:cxl", "99999999999:cxl"}) {
    EXPECT_NE(refusal(text).find("names no node"), std::string::npos) << text;
  }
  for (const char* text : {"2", "2:", "2:CXL", "2:cxl:hbm", "2=cxl"}) {
    EXPECT_NE(refusal(text).find("; accepted: NODE:KIND"), std::string::npos) << text;
  }
  EXPECT_NE(refusal("2:cxl,").find("item '' of"), std::string::npos);
  EXPECT_NE(refusal("2:cxl,2:hbm").find("'2:hbm' of '2:cxl,2:hbm' names a node for the second time"),
            std::string::npos);
}

}  // namespace
}  // namespace hybridgen
