// Tests of pacing, on a clock of their own.
#include "backend/pacer.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// Time passes by sleeping, or when the test says so.
struct FakeClock {
  TokenBucket::Time now{};
  PacerClock Functions() {
    return {[this] { return now; }, [this](TokenBucket::Time time) { now = std::max(now, time); }};
  }
  void Pass(TokenBucket::Duration time) { now += time; }
  double milliseconds() const { return std::chrono::duration<double, std::milli>(now.time_since_epoch()).count(); }
};

TEST(PacerTest, ACallTakesItsBytesDividedByTheRate) {
  for (const int64_t piece : {1000, 30'000, 1'000'000}) {
    FakeClock clock;
    Pacer pacer(1.0, clock.Functions());  // a megabyte per millisecond
    pacer.Begin();
    for (int64_t read = 0; read < 6'000'000; read += piece) pacer.Read(std::min<int64_t>(piece, 6'000'000 - read));
    pacer.Finish();
    EXPECT_NEAR(clock.milliseconds(), 6, 1e-3) << piece;
  }
}

TEST(PacerTest, IdleTimeBeforeACallEarnsNothing) {
  FakeClock clock;
  Pacer pacer(1.0, clock.Functions());
  pacer.Begin();
  pacer.Finish();
  clock.Pass(milliseconds(50));
  pacer.Begin();
  pacer.Read(500'000);
  pacer.Finish();
  EXPECT_NEAR(clock.milliseconds(), 50.5, 1e-3);
}

TEST(PacerTest, ReadsOfOtherMediaOverlap) {
  FakeClock clock;
  Pacer pacer(1.0, clock.Functions());
  pacer.Begin();
  for (int i = 0; i < 10; ++i) {
    clock.Pass(microseconds(500));  // another medium
    pacer.Read(300'000);
  }
  pacer.Finish();
  EXPECT_NEAR(clock.milliseconds(), 5.0 + 0.3, 0.31) << "as long as the slower medium, not the sum of 8 ms";
}

TEST(PacerTest, ALongPauseIsNotMadeUpFor) {
  FakeClock clock;
  Pacer pacer(1.0, clock.Functions());
  pacer.Begin();
  clock.Pass(milliseconds(20));
  pacer.Read(6'000'000);
  pacer.Finish();
  EXPECT_NEAR(clock.milliseconds(), 21, 1e-3) << "five milliseconds of the twenty count";
}

TEST(PacerTest, ThreadsShareTheRate) {
  Pacer pacer(1.0);
  const TokenBucket::Time begin = std::chrono::steady_clock::now();
  pacer.Begin();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&pacer] {
      for (int r = 0; r < 50; ++r) pacer.Read(20'000);
    });
  }
  for (std::thread& thread : threads) thread.join();
  pacer.Finish();
  // A lower bound only: nothing bounds how late a thread wakes.
  EXPECT_GE(std::chrono::steady_clock::now() - begin, milliseconds(4));
}

}  // namespace
}  // namespace hybridgen
