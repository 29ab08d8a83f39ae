// In a guest: what a long-term pin does to the placement of pages, by the kernel's word and by ours.
#include <numaif.h>

#include <cstring>
#include <map>
#include <memory>

#include "gtest/gtest.h"
#include "memory/arena.h"
#include "memory/topology.h"
#include "tests/numa_vm/guest.h"
#include "tests/numa_vm/io_uring_registrar.h"

namespace hybridgen {
namespace {

using OnNode = std::map<int, int64_t>;

constexpr int64_t kBytes = int64_t{4} << 20;

std::unique_ptr<Arena> MakeArena(int node, HugePages huge_pages) {
  ArenaOptions options;
  options.name = "guest";
  options.node = node;
  options.binding = NodeBinding::kStrict;
  options.huge_pages = huge_pages;
  return Arena::Create(kBytes, options).value();
}

class PinGuestTest : public ::testing::TestWithParam<HugePages> {};

TEST_P(PinGuestTest, PinnedPagesStayExceptOnANodeThatIsAllMovable) {
  const int64_t pages = CountPages(kBytes);
  for (const MemoryNode& node : ReadTopology().nodes) {
    SCOPED_TRACE(node.id);
    ASSERT_NE(node.movable_only, MovableOnly::kUnknown);
    const bool movable_only = node.movable_only == MovableOnly::kYes;
    IoUringRegistrar registrar;
    const std::unique_ptr<Arena> arena = MakeArena(node.id, GetParam());
    memset(arena->data(), 0x5a, kBytes);
    const RegistrationReport report = arena->Register(registrar).value();
    EXPECT_EQ(report.pin.registered_bytes, kBytes) << report.pin.first_error;

    // The kernel migrates silently: the registration succeeded, and the pages are elsewhere.
    const OnNode pinned = PagesByNode(arena->data(), kBytes);
    EXPECT_EQ(pinned.count(node.id), movable_only ? 0u : 1u);
    ASSERT_EQ(pinned.size(), 1u);
    EXPECT_EQ(report.before->pages_on_node, (OnNode{{node.id, pages}}));
    EXPECT_EQ(report.before->pages_elsewhere, 0);
    EXPECT_EQ(report.after->pages_on_node, pinned);
    EXPECT_EQ(report.after->pages_elsewhere, movable_only ? pages : 0);
    EXPECT_EQ(arena->VerifyPlacement(0)->pages_elsewhere, report.after->pages_elsewhere);

    // Nothing is repaired while it is pinned; afterwards all of it.
    EXPECT_EQ(arena->Repair().status().code(), absl::StatusCode::kFailedPrecondition);
    arena->Unregister();
    const RepairReport repair = arena->Repair().value();
    EXPECT_EQ(repair.misplaced, report.after->pages_elsewhere);
    EXPECT_EQ(repair.repaired, repair.misplaced);
    EXPECT_EQ(PagesByNode(arena->data(), kBytes), (OnNode{{node.id, pages}}));
    for (int64_t at = 0; at < kBytes; at += 4096) ASSERT_EQ(arena->data()[at], std::byte{0x5a}) << at;
  }
}

// Somebody pinned pages of an arena while they lay on another node, without our knowing.
TEST_P(PinGuestTest, PinnedPagesDoNotMoveAndRepairSaysSo) {
  if (FarNode() == kNoNode) GTEST_SKIP() << "one memory node";
  const int64_t pages = CountPages(kBytes);
  const std::unique_ptr<Arena> arena = MakeArena(FarNode(), GetParam());
  MovePages(arena->data(), kBytes, HomeNode());
  const absl::Span<std::byte> half(arena->data(), kBytes / 2);
  IoUringRegistrar registrar;
  ASSERT_TRUE(registrar.Register(half).ok());

  // The kernel answers with the number of pages that it left, and writes no status.
  void* page = arena->data();
  int target = FarNode(), status = -99;
  EXPECT_EQ(move_pages(0, 1, &page, &target, &status, MPOL_MF_MOVE), 1);
  EXPECT_EQ(status, -99);

  RepairReport repair = arena->Repair().value();
  EXPECT_EQ(repair.misplaced, pages);
  EXPECT_EQ(repair.unmovable, pages / 2);
  EXPECT_EQ(repair.repaired, pages / 2);
  EXPECT_EQ(PagesByNode(arena->data(), kBytes), (OnNode{{HomeNode(), pages / 2}, {FarNode(), pages / 2}}));

  ASSERT_TRUE(registrar.Unregister(half).ok());
  repair = arena->Repair().value();
  EXPECT_EQ(repair.repaired, pages / 2);
  EXPECT_EQ(PagesByNode(arena->data(), kBytes), (OnNode{{FarNode(), pages}}));
}

INSTANTIATE_TEST_SUITE_P(Pages, PinGuestTest, ::testing::Values(HugePages::kOff, HugePages::kTransparent),
                         [](const auto& info) { return info.param == HugePages::kOff ? "Small" : "Huge"; });

}  // namespace
}  // namespace hybridgen
