// Timed samples on a machine that may not be quiet: work handed out to pinned threads for a short while, and what
// disturbed it.
#ifndef TESTS_BENCH_MEASUREMENT_H_
#define TESTS_BENCH_MEASUREMENT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace hybridgen {

// Processor time that the system has accounted for, in seconds since boot.
struct CpuTimes {
  double busy = 0;  // of all CPUs together, stolen time included
  int cpus = 0;
};

// Of the text of /proc/stat; `ticks_per_second` is sysconf(_SC_CLK_TCK). cpus == 0: the text is not understood.
CpuTimes ParseCpuTimes(const std::string& proc_stat, double ticks_per_second);

struct Sample {
  double rate = 0;  // bytes per second of wall time, all threads together
  double cpu_rate =
      0;               // the sum over threads of bytes per second that the thread ran: what `rate` would be undisturbed
  double lost = 0;     // largest share of a thread's time that it did not run: taken by others or by the hypervisor
  double foreign = 0;  // share of all CPUs that other processes used, beyond the one tick that the system rounds by
};

struct QuietLimits {
  double lost = 0.02;
  double foreign = 0.02;
};

inline bool IsQuiet(const Sample& sample, const QuietLimits& limits) {
  return sample.lost <= limits.lost && sample.foreign <= limits.foreign;
}

// Runs work(thread, item) for items 0, 1, 2, ..., handed out by one counter, on one thread for each of `cpus` (pinned
// to it) until `seconds` have passed. work returns the bytes that it read. Each thread looks for gaps in a busy loop
// before and after, and compares the time that passed with the time that it ran.
Sample Measure(const std::vector<int>& cpus, double seconds, const std::function<int64_t(int, int64_t)>& work);

struct Spread {
  double min = 0;
  double median = 0;
  double max = 0;
};

// Of at least one value; the median of an even number is the mean of the middle two.
Spread SpreadOf(std::vector<double> values);

}  // namespace hybridgen

#endif  // TESTS_BENCH_MEASUREMENT_H_
