// Tests of the host mirror of the block tables.
#include "backend/block_table_mirror.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hybridgen {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

TEST(BlockTableMirrorTest, TablesFollowTheDeltas) {
  BlockTableMirror mirror(100);
  ASSERT_TRUE(mirror.Set(7, {1, 2}).ok());
  ASSERT_TRUE(mirror.Append(7, {9}).ok());
  EXPECT_THAT(*mirror.Table(7), ElementsAre(1, 2, 9));
  ASSERT_TRUE(mirror.Set(7, {4}).ok());  // resumed with another table
  EXPECT_THAT(*mirror.Table(7), ElementsAre(4));
  mirror.Remove(7);
  EXPECT_EQ(mirror.Table(7).status().code(), absl::StatusCode::kNotFound);
  mirror.Remove(7);  // a request that never ran may end
  EXPECT_EQ(mirror.num_requests(), 0);
}

TEST(BlockTableMirrorTest, SharedBlocksStayReferencedUntilTheLastRequestLeaves) {
  BlockTableMirror mirror(100);
  ASSERT_TRUE(mirror.Set(1, {5, 6, 7}).ok());
  ASSERT_TRUE(mirror.Set(2, {5, 6, 8}).ok());
  mirror.Remove(1);
  EXPECT_THAT(mirror.TakeUnreferenced(), ElementsAre(7));
  EXPECT_TRUE(mirror.IsReferenced(5));
  mirror.Remove(2);
  EXPECT_THAT(mirror.TakeUnreferenced(), UnorderedElementsAre(5, 6, 8));
  EXPECT_THAT(mirror.TakeUnreferenced(), IsEmpty());
}

TEST(BlockTableMirrorTest, ReplacingATableKeepsWhatBothHold) {
  BlockTableMirror mirror(100);
  ASSERT_TRUE(mirror.Set(1, {5, 6}).ok());
  ASSERT_TRUE(mirror.Set(1, {6, 7}).ok());
  EXPECT_THAT(mirror.TakeUnreferenced(), ElementsAre(5));
  EXPECT_TRUE(mirror.IsReferenced(6));
}

TEST(BlockTableMirrorTest, BadDeltasChangeNothing) {
  BlockTableMirror mirror(10);
  ASSERT_TRUE(mirror.Set(1, {3}).ok());
  EXPECT_EQ(mirror.Set(1, {4, 10}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(mirror.Append(1, {-1}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(mirror.Append(2, {1}).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(*mirror.Table(1), ElementsAre(3));
  EXPECT_FALSE(mirror.IsReferenced(4));
}

}  // namespace
}  // namespace hybridgen
