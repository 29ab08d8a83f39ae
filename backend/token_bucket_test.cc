// Tests of the token bucket on times that the test makes up.
#include "backend/token_bucket.h"

#include <random>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(TokenBucketTest, EachAmountIsPaidForAtTheRate) {
  const TokenBucket::Time start{};
  TokenBucket bucket(1000, milliseconds(0), start);
  EXPECT_EQ(bucket.Take(500, start), start + milliseconds(500));
  EXPECT_EQ(bucket.Take(250, start + milliseconds(100)), start + milliseconds(750));
  EXPECT_EQ(bucket.Take(1000, start + seconds(5)), start + seconds(6)) << "idle time without credit is lost";
}

TEST(TokenBucketTest, IdleTimeIsMadeUpForUpToTheCredit) {
  const TokenBucket::Time start{};
  TokenBucket bucket(1000, milliseconds(300), start);
  const TokenBucket::Time later = start + seconds(10);
  EXPECT_EQ(bucket.Take(300, later), later);
  EXPECT_EQ(bucket.Take(1, later), later + milliseconds(1));
}

TEST(TokenBucketTest, NeverAheadOfTheRate) {
  std::mt19937 random(7);
  const double rate = 1e6;
  const milliseconds credit(10);
  TokenBucket::Time now{};
  TokenBucket bucket(rate, credit, now);
  double taken = 0;
  for (int i = 0; i < 100000; ++i) {
    now += std::chrono::nanoseconds(std::uniform_int_distribution<int>(0, 2000)(random));
    const double amount = std::uniform_int_distribution<int>(1, 3000)(random);
    now = std::max(now, bucket.Take(amount, now));
    taken += amount;
    const std::chrono::duration<double> allowed = now.time_since_epoch() + credit;
    ASSERT_LE(taken, rate * allowed.count() * (1 + 1e-12) + 1) << "take " << i;
  }
}

}  // namespace
}  // namespace hybridgen
