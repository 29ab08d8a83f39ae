// In a guest: every page of an arena lies on the node asked for, by the kernel's own word.
#include <map>
#include <memory>

#include "gtest/gtest.h"
#include "memory/arena.h"
#include "memory/topology.h"
#include "tests/numa_vm/guest.h"

namespace hybridgen {
namespace {

using OnNode = std::map<int, int64_t>;

constexpr int64_t kMiB = int64_t{1} << 20;

absl::StatusOr<std::unique_ptr<Arena>> MakeArena(int64_t bytes, int node, NodeBinding binding,
                                                 HugePages huge_pages = HugePages::kTransparent) {
  ArenaOptions options;
  options.name = "guest";
  options.node = node;
  options.binding = binding;
  options.huge_pages = huge_pages;
  return Arena::Create(bytes, options);
}

TEST(ArenaGuestTest, EveryPageLiesOnTheNodeAskedFor) {
  for (const MemoryNode& node : ReadTopology().nodes) {
    for (const NodeBinding binding : {NodeBinding::kAdvisory, NodeBinding::kStrict}) {
      for (const HugePages huge_pages : {HugePages::kOff, HugePages::kTransparent}) {
        const auto arena = MakeArena(4 * kMiB, node.id, binding, huge_pages);
        ASSERT_TRUE(arena.ok()) << arena.status();
        EXPECT_EQ(PagesByNode((*arena)->data(), (*arena)->bytes()), (OnNode{{node.id, CountPages(4 * kMiB)}}));
        const PlacementReport report = (*arena)->VerifyPlacement(0).value();
        EXPECT_EQ(report.pages_on_node, (OnNode{{node.id, CountPages(4 * kMiB)}}));
      }
    }
  }
}

TEST(ArenaGuestTest, TheReportCountsPagesThatWereMovedAway) {
  if (FarNode() == kNoNode) GTEST_SKIP() << "one memory node";
  const auto arena = MakeArena(4 * kMiB, FarNode(), NodeBinding::kAdvisory, HugePages::kOff).value();
  MovePages(arena->data() + kMiB, kMiB, HomeNode());
  const OnNode expected = {{HomeNode(), CountPages(kMiB)}, {FarNode(), CountPages(3 * kMiB)}};
  EXPECT_EQ(PagesByNode(arena->data(), arena->bytes()), expected);
  EXPECT_EQ(arena->VerifyPlacement(0)->pages_on_node, expected);
}

}  // namespace
}  // namespace hybridgen
