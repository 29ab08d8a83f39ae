// Tests of the samples' arithmetic and of the probe's promises; none of a speed.
#include "tests/bench/measurement.h"

#include <sched.h>

#include <mutex>
#include <set>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

TEST(MeasurementTest, BusyTimeOfProcStat) {
  const CpuTimes times = ParseCpuTimes(
      "cpu  100 20 30 1000 500 4 6 40 7 8\ncpu0 50 10 15 500 250 2 3 20 3 4\ncpu1 50 10 15 500 250 2 3 20 4 4\nintr "
      "1\n",
      100.0);
  EXPECT_EQ(times.cpus, 2);
  EXPECT_DOUBLE_EQ(times.busy, 2.0);  // neither idle nor waiting, nor guests, who are part of user
}

TEST(MeasurementTest, TextThatIsNotProcStat) {
  EXPECT_EQ(ParseCpuTimes("", 100.0).cpus, 0);
  EXPECT_EQ(ParseCpuTimes("cpu 1 2\ncpu0 1 2\n", 100.0).cpus, 0);
}

TEST(MeasurementTest, SpreadOfOddAndEvenNumbers) {
  const Spread odd = SpreadOf({3, 1, 2});
  EXPECT_EQ(odd.min, 1);
  EXPECT_EQ(odd.median, 2);
  EXPECT_EQ(odd.max, 3);
  EXPECT_EQ(SpreadOf({4, 1, 2, 3}).median, 2.5);
  EXPECT_EQ(SpreadOf({7}).median, 7);
}

TEST(MeasurementTest, QuietIsBothLimits) {
  EXPECT_TRUE(IsQuiet({1, 1, 0.02, 0.02}, {}));
  EXPECT_FALSE(IsQuiet({1, 1, 0.021, 0}, {}));
  EXPECT_FALSE(IsQuiet({1, 1, 0, 0.021}, {}));
}

TEST(MeasurementTest, ItemsAreHandedOutOnceToPinnedThreads) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  int cpu = 0;
  while (!CPU_ISSET(cpu, &allowed)) ++cpu;
  std::mutex mutex;
  std::set<int64_t> items;
  const Sample sample = Measure({cpu, cpu}, 0.001, [&](int thread, int64_t item) {
    EXPECT_EQ(sched_getcpu(), cpu);
    EXPECT_LT(thread, 2);
    const std::lock_guard<std::mutex> lock(mutex);
    EXPECT_TRUE(items.insert(item).second);
    return int64_t{1000};
  });
  EXPECT_EQ(*items.begin(), 0);
  EXPECT_EQ(*items.rbegin(), static_cast<int64_t>(items.size()) - 1);
  EXPECT_GT(sample.rate, 0);
  EXPECT_GE(sample.cpu_rate, sample.rate * 0.99);  // nobody runs for longer than time passes
  // Two threads on one CPU: each must have lost about half of its time, or have been so short that it did not.
  EXPECT_GE(sample.lost, 0);
  EXPECT_LE(sample.lost, 1);
  EXPECT_GE(sample.foreign, 0);
}

}  // namespace
}  // namespace hybridgen
