// In a guest: every page of an arena lies on the node asked for, by the kernel's own word.
#include <atomic>
#include <map>
#include <memory>
#include <numeric>
#include <thread>

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

TEST(ArenaGuestTest, RepairBringsPagesBackWhileTheyAreRead) {
  if (FarNode() == kNoNode) GTEST_SKIP() << "one memory node";
  for (const HugePages huge_pages : {HugePages::kOff, HugePages::kTransparent}) {
    const auto arena = MakeArena(4 * kMiB, FarNode(), NodeBinding::kAdvisory, huge_pages).value();
    const int64_t words = arena->bytes() / sizeof(int64_t);
    int64_t* const data = reinterpret_cast<int64_t*>(arena->data());
    std::iota(data, data + words, int64_t{7});
    std::atomic<bool> done{false};
    std::atomic<int64_t> wrong{0}, reads{0};
    std::thread reader([&] {
      while (!done) {
        for (int64_t i = 0; i < words; i += 64) wrong += static_cast<const volatile int64_t*>(data)[i] != i + 7;
        ++reads;
      }
    });
    const int64_t pages = CountPages(arena->bytes());
    for (int round = 0; round < 4; ++round) {
      MovePages(arena->data(), arena->bytes(), HomeNode());
      const RepairReport report = arena->Repair().value();
      EXPECT_EQ(report.misplaced, pages);
      EXPECT_EQ(report.repaired, pages);
      EXPECT_EQ(PagesByNode(arena->data(), arena->bytes()), (OnNode{{FarNode(), pages}}));
    }
    while (reads < 2) std::this_thread::yield();
    done = true;
    reader.join();
    EXPECT_EQ(wrong, 0);
    for (int64_t i = 0; i < words; ++i) ASSERT_EQ(data[i], i + 7);
  }
}

}  // namespace
}  // namespace hybridgen
