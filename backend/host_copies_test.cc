// Tests of the thread that copies memory.
#include "backend/host_copies.h"

#include <vector>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

TEST(HostCopiesTest, CopiesAreMadeInOrderAndTold) {
  std::vector<std::vector<int>> chain(100, std::vector<int>(1000, 0));
  chain[0].assign(1000, 42);
  HostCopies copies;
  EXPECT_EQ(copies.done(), 0);
  for (size_t i = 1; i < chain.size(); ++i) {  // each from where the one before it went
    const absl::StatusOr<int64_t> number = copies.Start({{chain[i].data(), chain[i - 1].data(), 1000 * sizeof(int)}});
    ASSERT_TRUE(number.ok()) << number.status();
    EXPECT_EQ(*number, static_cast<int64_t>(i));
  }
  ASSERT_TRUE(copies.Wait(99, absl::Seconds(60)).ok());
  EXPECT_EQ(copies.done(), 99);
  for (const std::vector<int>& part : chain) EXPECT_EQ(part, chain[0]);
  EXPECT_GT(copies.seconds(), 0);
}

TEST(HostCopiesTest, WhatIsNotDoneIsNamed) {
  HostCopies copies;
  const absl::Status status = copies.Wait(1, absl::Milliseconds(1));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
}

TEST(HostCopiesTest, EndsWithCopiesQueued) {
  std::vector<char> from(1 << 20, 1), to(1 << 20);
  HostCopies copies;
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(copies.Start({{to.data(), from.data(), from.size()}}).ok());
}

}  // namespace
}  // namespace hybridgen
