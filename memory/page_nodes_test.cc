// Tests of asking for and moving pages, on a pretended machine of several nodes.
#include "memory/page_nodes.h"

#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "memory/address_range.h"
#include "memory/fake_memory_policy.h"

namespace hybridgen {
namespace {

class PageNodesTest : public ::testing::Test {
 protected:
  PageNodesTest() { calls_.PreferNode(range_.data(), static_cast<int64_t>(range_.size()), 1); }

  void* Page(int64_t i) { return range_.data() + i * page_bytes_; }
  int NodeOf(int64_t i) {
    std::vector<int> nodes;
    calls_.QueryPages({Page(i)}, &nodes);
    return nodes[0];
  }
  absl::StatusOr<RepairReport> Move() { return MoveToNode(range_, 1, budget_, calls_); }

  const int64_t page_bytes_ = sysconf(_SC_PAGESIZE);
  const int64_t huge_ = kHugePageBytes / page_bytes_;
  const int64_t pages_ = 2 * huge_ + 3;
  // Addresses alone: nothing touches them.
  const std::unique_ptr<AddressRange> reserved_ = AddressRange::Reserve(pages_ * page_bytes_, kHugePageBytes).value();
  const absl::Span<std::byte> range_ = reserved_->span();
  FakeMemoryPolicy calls_;
  std::function<MemoryBudget(int)> budget_ = [](int) { return MemoryBudget(); };
};

void ExpectRepair(const RepairReport& report, int64_t misplaced, int64_t repaired, int64_t unmovable, int64_t no_room) {
  EXPECT_EQ(report.misplaced, misplaced);
  EXPECT_EQ(report.repaired, repaired);
  EXPECT_EQ(report.unmovable, unmovable);
  EXPECT_EQ(report.no_room, no_room);
}

TEST_F(PageNodesTest, EveryPageIsCountedOnce) {
  for (const int64_t i : {int64_t{0}, huge_, pages_ - 1}) calls_.Place(Page(i), 2);
  calls_.Place(Page(7), 0);
  calls_.Drop(Page(8));
  PlacementReport report = QueryPlacement(range_, 1, 0, calls_).value();
  EXPECT_EQ(report.pages_on_node, (std::map<int, int64_t>{{0, 1}, {1, pages_ - 5}, {2, 3}}));
  EXPECT_EQ(report.pages_unknown, 1);
  EXPECT_EQ(report.pages_elsewhere, 4);
  EXPECT_EQ(report.source, PlacementSource::kKernel);
  report = QueryPlacement(range_, -1, 0, calls_).value();
  EXPECT_EQ(report.pages_elsewhere, 0) << "belongs anywhere";
}

TEST_F(PageNodesTest, SamplesAreSpreadEvenly) {
  for (int64_t i = 0; i < pages_ / 2; ++i) calls_.Place(Page(i), 0);
  const PlacementReport report = QueryPlacement(range_, 1, 10, calls_).value();
  EXPECT_EQ(report.pages_on_node, (std::map<int, int64_t>{{0, 5}, {1, 5}}));
  EXPECT_EQ(report.pages_elsewhere, 5);
  EXPECT_EQ(QueryPlacement(range_, 1, int64_t{1} << 50, calls_)->pages_on_node.at(1), pages_ - pages_ / 2);
}

TEST_F(PageNodesTest, AQuestionThatIsNotPermittedIsAnError) {
  calls_.query_error = EPERM;
  for (const absl::Status& status : {QueryPlacement(range_, 1, 0, calls_).status(), Move().status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_NE(std::string(status.message()).find("move_pages"), std::string::npos) << status;
  }
}

TEST_F(PageNodesTest, NothingMisplacedMovesNothing) {
  calls_.Drop(Page(3));
  calls_.move_error = EPERM;  // would be seen
  ExpectRepair(Move().value(), 0, 0, 0, 0);
}

TEST_F(PageNodesTest, MisplacedPagesAreMoved) {
  for (const int64_t i : {int64_t{0}, int64_t{1}, huge_ - 1, huge_ + 5}) calls_.Place(Page(i), 0);
  calls_.Place(Page(pages_ - 1), 2);
  ExpectRepair(Move().value(), 5, 5, 0, 0);
  EXPECT_EQ(QueryPlacement(range_, 1, 0, calls_)->pages_elsewhere, 0);
}

TEST_F(PageNodesTest, PinnedPagesStayAndSpoilOnlyTheirOwnTwoMebibytes) {
  for (int64_t i = 0; i < 10; ++i) calls_.Place(Page(i), 0);
  for (int64_t i = huge_; i < huge_ + 20; ++i) calls_.Place(Page(i), 0);
  calls_.Pin(Page(4));
  ExpectRepair(Move().value(), 30, 24, 6, 0);
  EXPECT_EQ(NodeOf(3), 1);
  EXPECT_EQ(NodeOf(4), 0);
  EXPECT_EQ(NodeOf(huge_), 1);
}

TEST_F(PageNodesTest, ANodeWithoutRoomIsLeftAlone) {
  for (const int64_t i : {int64_t{0}, huge_, 2 * huge_}) calls_.Place(Page(i), 0);
  int asked = 0;
  budget_ = [&asked](int node) {
    EXPECT_EQ(node, 1);
    MemoryBudget budget;
    budget.bytes = 0;  // a full cgroup: moving takes nothing from it
    budget.node_bytes = ++asked == 2 ? kHugePageBytes - 1 : kHugePageBytes;
    return budget;
  };
  ExpectRepair(Move().value(), 3, 2, 0, 1);
  EXPECT_EQ(NodeOf(0), 1);
  EXPECT_EQ(NodeOf(huge_), 0);
  EXPECT_EQ(NodeOf(2 * huge_), 1);
}

TEST_F(PageNodesTest, AKernelThatFillsUpMeanwhileLeavesPagesWhereTheyAre) {
  calls_.free_pages[1] = pages_ + 1;  // all of the range, and one more
  ASSERT_EQ(QueryPlacement(range_, 1, 0, calls_)->pages_elsewhere, 0);
  calls_.Place(Page(0), 0);
  calls_.Place(Page(1), 0);
  ExpectRepair(Move().value(), 2, 1, 1, 0);
}

TEST_F(PageNodesTest, AMoveThatIsNotPermittedIsAnErrorAndAFailedOneIsCounted) {
  calls_.Place(Page(0), 0);
  calls_.move_error = ENOMEM;
  ExpectRepair(Move().value(), 1, 0, 1, 0);
  calls_.move_error = EPERM;
  const absl::Status status = Move().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
}

}  // namespace
}  // namespace hybridgen
