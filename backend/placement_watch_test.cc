// Tests of the placement watch on a pretended machine of two nodes.
#include "backend/placement_watch.h"

#include <cerrno>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "memory/fake_memory_policy.h"
#include "memory/fake_tree.h"

namespace hybridgen {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kPages = 512;  // of one arena

class PlacementWatchTest : public ::testing::Test {
 protected:
  PlacementWatchTest() {
    tree_.Write("sys/devices/system/node/has_memory", "0-1\n");
    for (int i = 0; i < 2; ++i) {
      ArenaOptions options;
      options.node = 1;
      options.calls = &policy_;
      options.roots = tree_.roots();
      options.budget = [](int) { return MemoryBudget(); };
      arenas_.push_back({Tier::kCxl, kPageRoles[i], 0, Arena::Create(kPages * kPage, options).value(), {}});
    }
  }

  // The kernel moves pages of an arena behind our back.
  void Displace(int arena, int first, int count) {
    for (int i = first; i < first + count; ++i) policy_.Place(arenas_[arena].memory->data() + i * kPage, 0);
  }
  const void* PageOf(int arena, int page) { return arenas_[arena].memory->data() + page * kPage; }

  FakeTree tree_;
  FakeMemoryPolicy policy_;
  std::vector<TierArena> arenas_;
  const PlacementWatch::Time start_{};
};

TEST_F(PlacementWatchTest, AllIsWell) {
  PlacementWatch watch(&arenas_, start_);
  for (const ArenaPlacement& arena : watch.Report()) {
    EXPECT_EQ(arena.newest.pages_elsewhere, 0);
    EXPECT_EQ(arena.newest.pages_on_node.at(1), kPages);
    EXPECT_EQ(arena.repairs.misplaced, 0);
    EXPECT_EQ(arena.note, "");
  }
}

TEST_F(PlacementWatchTest, PagesMisplacedAtBindAreRepairedAtOnce) {
  Displace(1, 10, 30);
  PlacementWatch watch(&arenas_, start_);
  const std::vector<ArenaPlacement> report = watch.Report();
  EXPECT_EQ(report[0].repairs.misplaced, 0);
  EXPECT_EQ(report[1].repairs.misplaced, 30);
  EXPECT_EQ(report[1].repairs.repaired, 30);
  EXPECT_EQ(report[1].newest.pages_elsewhere, 0) << "asked again after the repair";
}

TEST_F(PlacementWatchTest, PagesMovedLaterAreFoundAtTheIntervalAndRepairedInTheBackground) {
  PlacementWatch watch(&arenas_, start_);
  Displace(0, 0, 100);
  watch.Tick(start_ + PlacementWatch::kInterval - std::chrono::milliseconds(1));
  watch.Drain();
  EXPECT_EQ(watch.Report()[0].newest.pages_elsewhere, 0) << "not looked at yet";
  watch.Tick(start_ + PlacementWatch::kInterval);
  watch.Drain();
  EXPECT_EQ(watch.Report()[0].repairs.repaired, 100);
  EXPECT_EQ(watch.Report()[0].newest.pages_elsewhere, 0);
  Displace(0, 0, 1);
  watch.Tick(start_ + PlacementWatch::kInterval * 3 / 2);
  watch.Drain();
  EXPECT_EQ(watch.Report()[0].repairs.repaired, 100) << "the next check is an interval later";
}

TEST_F(PlacementWatchTest, PagesThatDoNotMoveAreCountedAndLeftAloneForAWhile) {
  Displace(0, 5, 1);
  policy_.Pin(PageOf(0, 5));
  PlacementWatch watch(&arenas_, start_);
  EXPECT_EQ(watch.Report()[0].repairs.unmovable, 1);
  EXPECT_EQ(watch.Report()[0].newest.pages_elsewhere, 1);
  watch.Tick(start_ + PlacementWatch::kInterval);
  watch.Drain();
  EXPECT_EQ(watch.Report()[0].repairs.misplaced, 1) << "no second attempt yet";
  EXPECT_EQ(watch.Report()[0].newest.pages_elsewhere, 1) << "still reported";
  watch.Tick(start_ + PlacementWatch::kRepairPause);
  watch.Drain();
  EXPECT_EQ(watch.Report()[0].repairs.misplaced, 2) << "tried again after the pause";
}

class Registrar final : public DeviceRegistrar {
 public:
  absl::Status Register(absl::Span<std::byte>) override { return absl::OkStatus(); }
  absl::Status Unregister(absl::Span<std::byte>) override { return absl::OkStatus(); }
};

TEST_F(PlacementWatchTest, RegisteredPagesAreOnlyReported) {
  Registrar registrar;
  ASSERT_TRUE(arenas_[0].memory->Register(registrar).ok());
  Displace(0, 0, 7);
  PlacementWatch watch(&arenas_, start_);
  EXPECT_EQ(watch.Report()[0].newest.pages_elsewhere, 7);
  EXPECT_EQ(watch.Report()[0].repairs.misplaced, 0);
  arenas_[0].memory->Unregister();
}

TEST_F(PlacementWatchTest, AKernelThatTellsNothingIsNoted) {
  policy_.query_error = EPERM;
  PlacementWatch watch(&arenas_, start_);
  const ArenaPlacement arena = watch.Report()[0];
  EXPECT_NE(arena.note.find("not"), std::string::npos) << arena.note;
  EXPECT_TRUE(arena.newest.pages_on_node.empty());
}

// Steps go on while a repair runs, and the watch can be destroyed meanwhile.
TEST_F(PlacementWatchTest, ReportsAndTicksRunBesideARepair) {
  for (int round = 0; round < 20; ++round) {
    PlacementWatch watch(&arenas_, start_);
    Displace(0, 0, kPages);
    Displace(1, 0, kPages);
    for (int tick = 1; tick < 5; ++tick) {
      watch.Tick(start_ + tick * PlacementWatch::kInterval);
      for (const ArenaPlacement& arena : watch.Report()) EXPECT_LE(arena.repairs.repaired, 4 * kPages);
    }
  }
}

}  // namespace
}  // namespace hybridgen
