// Tests of the free list and the quarantine.
#include "memory/page_pool.h"

#include <set>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

TEST(PagePoolTest, HandsOutEveryPageOnceThenNone) {
  PagePool pool(3);
  std::set<int32_t> pages;
  for (int i = 0; i < 3; ++i) pages.insert(pool.Allocate());
  EXPECT_EQ(pages, (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(pool.Allocate(), -1);
  EXPECT_EQ(pool.num_allocated(), 3);
  EXPECT_TRUE(pool.CheckInvariants().ok());
}

TEST(PagePoolTest, EmptyPoolHasNoPages) {
  PagePool pool(0);
  EXPECT_EQ(pool.Allocate(), -1);
  pool.RetireThrough(1);
  EXPECT_TRUE(pool.CheckInvariants().ok());
}

TEST(PagePoolTest, AnUnusedPageIsFreeAtOnce) {
  PagePool pool(1);
  const int32_t page = pool.Allocate();
  EXPECT_TRUE(pool.Idle(page));
  pool.Release(page);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.num_quarantined(), 0);
}

TEST(PagePoolTest, AReleasedPageWaitsForItsLastStep) {
  PagePool pool(1);
  const int32_t page = pool.Allocate();
  pool.Use(page, 5);
  pool.Use(page, 4);  // an earlier step does not bring retirement forward
  pool.Release(page);
  EXPECT_EQ(pool.num_quarantined(), 1);
  pool.RetireThrough(4);
  EXPECT_EQ(pool.Allocate(), -1);
  pool.RetireThrough(5);
  EXPECT_EQ(pool.num_quarantined(), 0);
  EXPECT_EQ(pool.Allocate(), page);
  EXPECT_TRUE(pool.CheckInvariants().ok());
}

TEST(PagePoolTest, AReleasedPageWaitsForEveryPin) {
  PagePool pool(1);
  const int32_t page = pool.Allocate();
  pool.Pin(page);
  pool.Pin(page);
  pool.Release(page);
  pool.RetireThrough(9);
  pool.Unpin(page);
  EXPECT_EQ(pool.num_quarantined(), 1);
  EXPECT_TRUE(pool.CheckInvariants().ok());
  pool.Unpin(page);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_TRUE(pool.CheckInvariants().ok());
}

TEST(PagePoolTest, PinAndStepMustBothEnd) {
  PagePool pool(1);
  const int32_t page = pool.Allocate();
  pool.Use(page, 3);
  pool.Pin(page);
  pool.Release(page);
  pool.Unpin(page);  // the step still reads it
  EXPECT_EQ(pool.num_quarantined(), 1);
  EXPECT_TRUE(pool.CheckInvariants().ok());
  pool.RetireThrough(3);
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(PagePoolTest, UnpinningAnOwnedPageFreesNothing) {
  PagePool pool(1);
  const int32_t page = pool.Allocate();
  pool.Pin(page);
  EXPECT_FALSE(pool.Idle(page));
  pool.Unpin(page);
  EXPECT_TRUE(pool.Idle(page));
  EXPECT_EQ(pool.num_allocated(), 1);
}

}  // namespace
}  // namespace hybridgen
