// Tests of the room for pinned pages, over fake trees.
#include "memory/pin_room.h"

#include <map>

#include "gtest/gtest.h"
#include "memory/fake_tree.h"

namespace hybridgen {
namespace {

constexpr char kUnmovable[] = "sys/devices/system/node/has_normal_memory";

class PinRoomTest : public ::testing::Test {
 protected:
  absl::Status Check(int node, int64_t bytes) {
    return CheckPinRoom(
        node, bytes,
        [this](int asked) {
          MemoryBudget budget;
          budget.bytes = 0;  // of machine or cgroup, which moving takes nothing from
          if (room_.count(asked) > 0) budget.node_bytes = room_.at(asked);
          return budget;
        },
        tree_.roots());
  }

  FakeTree tree_;
  std::map<int, int64_t> room_;
};

TEST_F(PinRoomTest, PagesOfUnmovableNodesStay) {
  tree_.Write(kUnmovable, "0-1\n");
  EXPECT_TRUE(Check(1, int64_t{1} << 50).ok());
}

TEST_F(PinRoomTest, PagesOfAMovableNodeNeedRoomElsewhere) {
  tree_.Write(kUnmovable, "0,2\n");
  room_ = {{0, 100}, {1, 1 << 20}, {2, 50}};
  EXPECT_TRUE(Check(1, 150).ok());
  const absl::Status status = Check(1, 151);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(
      status.message(),
      "all memory of node 1 is movable, so pinning moves its pages to nodes 0, 2: wanted 151 bytes, available 150 "
      "there; online the node's memory as not movable (daxctl online-memory --no-movable) or map the device");
}

TEST_F(PinRoomTest, WhatCannotBeReadRefusesNothing) {
  EXPECT_TRUE(Check(1, int64_t{1} << 50).ok()) << "no file";
  tree_.Write(kUnmovable, "none\n");
  EXPECT_TRUE(Check(1, int64_t{1} << 50).ok()) << "garbage";
  tree_.Write(kUnmovable, "0\n");
  EXPECT_TRUE(Check(1, int64_t{1} << 50).ok()) << "no number for node 0";
}

}  // namespace
}  // namespace hybridgen
