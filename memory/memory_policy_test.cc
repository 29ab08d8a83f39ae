// Tests of the calls on this machine's own kernel.
#include "memory/memory_policy.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "gtest/gtest.h"
#include "memory/address_range.h"

namespace hybridgen {
namespace {

class MemoryPolicyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const int error = calls_.AllowedNodes(&allowed_); NotPermitted(error)) {
      GTEST_SKIP() << "the kernel permits no NUMA calls here: " << ErrorText(error);
    }
    ASSERT_FALSE(allowed_.empty());
    ASSERT_TRUE(range_->MapAnonymous().ok());
  }

  void* Page(int i) { return range_->span().data() + i * sysconf(_SC_PAGESIZE); }

  const MemoryPolicyCalls& calls_ = KernelMemoryPolicy();
  std::vector<int> allowed_;
  const std::unique_ptr<AddressRange> range_ = AddressRange::Reserve(kHugePageBytes, kHugePageBytes).value();
};

TEST_F(MemoryPolicyTest, PagesLieOnThePreferredNodeAndMoveToIt) {
  for (const int node : allowed_) {
    const int error = calls_.PreferNode(Page(0), kHugePageBytes, node);
    if (error == EINVAL) continue;  // a node without memory
    ASSERT_EQ(error, 0) << ErrorText(error);
    range_->span()[0] = std::byte{1};
    // Touched for an earlier node perhaps.
    EXPECT_EQ(calls_.MovePages({Page(0)}, node), 0);
    std::vector<int> nodes;
    ASSERT_EQ(calls_.QueryPages({Page(0)}, &nodes), 0);
    EXPECT_EQ(nodes, std::vector<int>{node});
  }
}

TEST_F(MemoryPolicyTest, APageWithoutMemoryHasNoNode) {
  std::vector<int> nodes;
  ASSERT_EQ(calls_.QueryPages({Page(1), Page(2)}, &nodes), 0);
  EXPECT_EQ(nodes, (std::vector<int>{-ENOENT, -ENOENT}));
}

TEST_F(MemoryPolicyTest, AbsentNodesAreRefused) {
  int absent = kMaxNodes - 1;
  while (std::find(allowed_.begin(), allowed_.end(), absent) != allowed_.end()) --absent;
  for (const int node : {absent, -1, kMaxNodes, 1 << 20}) {
    EXPECT_EQ(calls_.PreferNode(Page(0), kHugePageBytes, node), EINVAL) << node;
  }
  range_->span()[0] = std::byte{1};
  EXPECT_NE(calls_.MovePages({Page(0)}, absent), 0);
}

TEST(MemoryPolicyErrorTest, WhatIsNotPermittedIsToldFromWhatIsWrong) {
  for (const int error : {EPERM, ENOSYS, EACCES}) EXPECT_TRUE(NotPermitted(error)) << error;
  for (const int error : {0, EINVAL, EIO, ENODEV, ENOMEM}) EXPECT_FALSE(NotPermitted(error)) << error;
  EXPECT_EQ(ErrorText(EPERM), "Operation not permitted (errno 1)");
}

}  // namespace
}  // namespace hybridgen
