// In a guest whose CXL device is a node of movable memory: the node goes offline and comes back.
#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/arena.h"
#include "memory/topology.h"
#include "tests/numa_vm/guest.h"

namespace hybridgen {
namespace {

constexpr int64_t kBytes = int64_t{2} << 20;

absl::StatusOr<std::unique_ptr<Arena>> MakeArena(int node) {
  ArenaOptions options;
  options.name = "guest";
  options.node = node;
  options.binding = NodeBinding::kStrict;
  return Arena::Create(kBytes, options);
}

bool Lists(const Topology& topology, int node) {
  for (const MemoryNode& known : topology.nodes) {
    if (known.id == node) return true;
  }
  return false;
}

void SetBlocks(int node, const std::string& state) {
  for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat("/sys/devices/system/node/node", node))) {
    if (std::filesystem::exists(entry.path() / "state")) WriteFile(entry.path() / "state", state);
  }
}

TEST(HotplugGuestTest, ANodeThatWentOfflineIsRefusedByNameAndServesAgain) {
  const int node = FarNode();
  ASSERT_NE(node, kNoNode);
  ASSERT_TRUE(MakeArena(node).ok());
  SetBlocks(node, "offline");
  EXPECT_FALSE(Lists(ReadTopology(), node));
  const absl::Status offline = MakeArena(node).status();
  EXPECT_EQ(offline.code(), absl::StatusCode::kInvalidArgument) << offline;
  EXPECT_TRUE(absl::StrContains(offline.message(), absl::StrCat("node ", node, " is absent or has no memory")))
      << offline;
  SetBlocks(node, "online_movable");
  EXPECT_TRUE(Lists(ReadTopology(), node));
  const auto arena = MakeArena(node);
  ASSERT_TRUE(arena.ok()) << arena.status();
  EXPECT_EQ(PagesByNode((*arena)->data(), kBytes), (std::map<int, int64_t>{{node, CountPages(kBytes)}}));
}

}  // namespace
}  // namespace hybridgen
