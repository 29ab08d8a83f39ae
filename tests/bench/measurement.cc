#include "tests/bench/measurement.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <sstream>
#include <thread>

namespace hybridgen {
namespace {

constexpr double kGapProbe = 0.0005;  // seconds before and after a sample
constexpr double kGap = 5e-6;         // two readings of the clock that are further apart were interrupted

double Seconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double OwnCpuTime() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

CpuTimes ReadCpuTimes() {
  std::ifstream file("/proc/stat");
  std::stringstream text;
  text << file.rdbuf();
  return ParseCpuTimes(text.str(), static_cast<double>(sysconf(_SC_CLK_TCK)));
}

// Seconds that a busy loop of kGapProbe seconds did not run.
double LostInProbe() {
  const double end = Seconds(CLOCK_MONOTONIC) + kGapProbe;
  double lost = 0;
  double last = end - kGapProbe;
  while (last < end) {
    const double now = Seconds(CLOCK_MONOTONIC);
    if (now - last > kGap) lost += now - last;
    last = now;
  }
  return lost;
}

}  // namespace

CpuTimes ParseCpuTimes(const std::string& proc_stat, double ticks_per_second) {
  CpuTimes times;
  std::istringstream lines(proc_stat);
  for (std::string line; std::getline(lines, line) && line.rfind("cpu", 0) == 0;) {
    std::istringstream words(line);
    std::string name;
    double user, nice, system, idle, iowait, irq, softirq, steal;
    if (!(words >> name >> user >> nice >> system >> idle >> iowait >> irq >> softirq >> steal)) return {};
    if (name == "cpu") {
      times.busy = (user + nice + system + irq + softirq + steal) / ticks_per_second;
    } else {
      ++times.cpus;
    }
  }
  return times;
}

Sample Measure(const std::vector<int>& cpus, double seconds, const std::function<int64_t(int, int64_t)>& work) {
  struct alignas(64) Thread {
    int64_t bytes = 0;
    double ran = 0;  // seconds
    double lost = 0;
    double begin = 0;
    double end = 0;
  };
  std::vector<Thread> threads(cpus.size());
  std::atomic<int64_t> next_item{0};
  std::atomic<size_t> ready{0};

  const CpuTimes system_before = ReadCpuTimes();
  const double own_before = OwnCpuTime();
  const double wall_before = Seconds(CLOCK_MONOTONIC);
  const auto body = [&](int index) {
    Thread& self = threads[index];
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpus[index], &set);
    pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
    double lost = LostInProbe();
    ++ready;
    while (ready.load() < cpus.size()) sched_yield();  // all begin together
    const double ran = Seconds(CLOCK_THREAD_CPUTIME_ID);
    self.begin = Seconds(CLOCK_MONOTONIC);
    do {
      self.bytes += work(index, next_item.fetch_add(1, std::memory_order_relaxed));
      self.end = Seconds(CLOCK_MONOTONIC);
    } while (self.end < self.begin + seconds);
    self.ran = Seconds(CLOCK_THREAD_CPUTIME_ID) - ran;
    lost += self.end - self.begin - self.ran;
    lost += LostInProbe();
    self.lost = lost / (self.end - self.begin + 2 * kGapProbe);
  };
  std::vector<std::thread> running;
  for (size_t i = 0; i < cpus.size(); ++i) running.emplace_back(body, static_cast<int>(i));
  for (std::thread& thread : running) thread.join();

  const double wall = Seconds(CLOCK_MONOTONIC) - wall_before;
  const double own = OwnCpuTime() - own_before;
  const CpuTimes system_after = ReadCpuTimes();
  Sample sample;
  double begin = threads[0].begin;
  double end = threads[0].end;
  int64_t bytes = 0;
  for (const Thread& thread : threads) {
    begin = std::min(begin, thread.begin);
    end = std::max(end, thread.end);
    bytes += thread.bytes;
    sample.cpu_rate += static_cast<double>(thread.bytes) / thread.ran;
    sample.lost = std::max(sample.lost, thread.lost);
  }
  sample.rate = static_cast<double>(bytes) / (end - begin);
  if (system_after.cpus > 0) {
    const double tick = 1.0 / static_cast<double>(sysconf(_SC_CLK_TCK));
    const double foreign = system_after.busy - system_before.busy - own - tick;
    sample.foreign = std::max(0.0, foreign / (wall * system_after.cpus));
  }
  return sample;
}

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return {values.front(), (values[(n - 1) / 2] + values[n / 2]) / 2, values.back()};
}

}  // namespace hybridgen
