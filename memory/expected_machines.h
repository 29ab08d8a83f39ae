// What the topology must say of each emulated machine: of its recorded tree (testdata/*.tree), and of the running
// guest.
#ifndef MEMORY_EXPECTED_MACHINES_H_
#define MEMORY_EXPECTED_MACHINES_H_

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "memory/memory_node.h"

namespace hybridgen {

struct ExpectedNode {
  MemoryKind kind;
  RelativeSpeed speed;
  std::optional<int64_t> read_megabytes_per_second;
  std::optional<int64_t> read_nanoseconds;
  int kernel_tier;
  MovableOnly movable_only;
  const char* kind_evidence;
};

struct ExpectedDaxDevice {
  MemoryKind kind;
  DaxUse use;
  int target_node;
  std::optional<int64_t> read_nanoseconds;
};

struct ExpectedMachine {
  const char* name;  // MACHINE-KERNEL, of its tree
  std::vector<ExpectedNode> nodes;
  std::vector<ExpectedDaxDevice> dax_devices = {};
};

inline void PrintTo(const ExpectedMachine& machine, std::ostream* out) { *out << machine.name; }

inline std::vector<ExpectedMachine> ExpectedMachines() {
  using Kind = MemoryKind;
  using Speed = RelativeSpeed;
  constexpr MovableOnly kStays = MovableOnly::kNo;
  constexpr std::nullopt_t kUnknown = std::nullopt;
  const ExpectedNode socket = {Kind::kDram, Speed::kSimilar, 204800, 100, 4, kStays, "/cpulist"};
  const ExpectedNode silent_socket = {Kind::kDram, Speed::kSimilar, kUnknown, kUnknown, 4, kStays, "/cpulist"};
  const ExpectedNode silent = {Kind::kUnknown, Speed::kUnknown, kUnknown, kUnknown, 4, kStays, "no device names it"};
  const auto far = [](int kernel_tier) {
    return ExpectedNode{Kind::kUnknown, Speed::kSlower, 25600, 250, kernel_tier, kStays, "no device names it"};
  };
  const auto hbm = [](int kernel_tier) {
    return ExpectedNode{
        Kind::kHbm, Speed::kFaster, 819200, 120, kernel_tier, kStays, "access1/initiators/read_bandwidth"};
  };
  const auto cxl = [](MovableOnly movable_only) {
    return ExpectedNode{Kind::kCxl, Speed::kSlower, 16000, 302, 27, movable_only, "ACPI0017:00/root0/"};
  };
  return {
      {"one-6.1", {silent_socket}},
      {"one-6.12", {silent_socket}},
      {"nohmat-6.1", {silent_socket, silent}},
      {"nohmat-6.12", {silent_socket, silent}},
      {"cxl-6.1", {socket, far(4)}},
      {"cxl-6.12", {socket, far(90)}},
      {"2s-cxl-6.1", {socket, socket, far(4)}},
      {"2s-cxl-6.12", {socket, socket, far(90)}},
      {"hbm-cxl-6.1", {socket, hbm(4), far(4)}},
      {"hbm-cxl-6.12", {socket, hbm(1), far(90)}},
      // The device tells no kind: such memory may be CXL or HBM.
      {"hmem-6.12",
       {silent_socket, {Kind::kUnknown, Speed::kSlower, kUnknown, kUnknown, 22, kStays, "hmem.0"}},
       {{Kind::kUnknown, DaxUse::kNode, 1, kUnknown}}},
      {"cxltype3-6.12", {socket, cxl(MovableOnly::kYes)}, {{Kind::kCxl, DaxUse::kNode, 1, 302}}},
      {"cxltype3-kernel-6.12", {socket, cxl(kStays)}, {{Kind::kCxl, DaxUse::kNode, 1, 302}}},
      {"cxltype3-persistent-6.12",
       {socket, {Kind::kPersistent, Speed::kSlower, 16000, 302, 27, MovableOnly::kYes, "/ndbus0/"}},
       {{Kind::kPersistent, DaxUse::kNode, 1, kUnknown}}},
      // The kernel computes a region's access classes when its memory becomes a node.
      {"cxltype3-devdax-6.12", {socket}, {{Kind::kCxl, DaxUse::kMapped, 1, kUnknown}}},
  };
}

// Facts and conclusions of every node and DAX device, with their evidence.
inline void ExpectTopology(const Topology& topology, const ExpectedMachine& machine) {
  ASSERT_EQ(topology.nodes.size(), machine.nodes.size());
  for (size_t i = 0; i < topology.nodes.size(); ++i) {
    const MemoryNode& node = topology.nodes[i];
    const ExpectedNode& expected = machine.nodes[i];
    SCOPED_TRACE(i);
    EXPECT_EQ(node.id, static_cast<int>(i));
    EXPECT_EQ(node.kind, expected.kind) << node.kind_why;
    EXPECT_TRUE(absl::StrContains(node.kind_why, expected.kind_evidence)) << node.kind_why;
    EXPECT_EQ(node.speed, expected.speed) << node.speed_why;
    EXPECT_EQ(node.performance.read_megabytes_per_second, expected.read_megabytes_per_second);
    EXPECT_EQ(node.performance.read_nanoseconds, expected.read_nanoseconds);
    EXPECT_EQ(node.kernel_tier, expected.kernel_tier);
    EXPECT_EQ(node.movable_only, expected.movable_only);
    EXPECT_TRUE(absl::StrContains(node.movable_why, "/has_normal_memory")) << node.movable_why;
    EXPECT_TRUE(node.total_bytes && node.free_bytes && *node.free_bytes <= *node.total_bytes);
    EXPECT_GE(node.distances.size(), topology.nodes.size());
    EXPECT_EQ(node.distances.at(node.id), 10);
    ASSERT_EQ(node.huge_pages.size(), 2u);
    EXPECT_EQ(node.huge_pages[0].page_bytes, 2 << 20);
    EXPECT_EQ(node.huge_pages[0].total_pages, 0);
    EXPECT_EQ(node.huge_pages[1].page_bytes, 1 << 30);
  }
  ASSERT_EQ(topology.dax_devices.size(), machine.dax_devices.size());
  for (size_t i = 0; i < topology.dax_devices.size(); ++i) {
    const DaxDevice& device = topology.dax_devices[i];
    const ExpectedDaxDevice& expected = machine.dax_devices[i];
    SCOPED_TRACE(device.name);
    EXPECT_EQ(device.kind, expected.kind) << device.kind_why;
    EXPECT_EQ(device.use, expected.use);
    EXPECT_EQ(device.target_node, expected.target_node);
    EXPECT_EQ(device.performance.read_nanoseconds, expected.read_nanoseconds);
    EXPECT_GT(device.bytes.value_or(0), 0);
  }
  EXPECT_NE(topology.transparent_huge_pages, TransparentHugePages::kUnknown);
  EXPECT_TRUE(topology.machine_total_bytes && topology.machine_available_bytes);
}

}  // namespace hybridgen

#endif  // MEMORY_EXPECTED_MACHINES_H_
