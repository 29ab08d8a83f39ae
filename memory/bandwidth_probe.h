// Measures how fast memory reads: the bandwidth of several threads together, and the idle latency of one.
#ifndef MEMORY_BANDWIDTH_PROBE_H_
#define MEMORY_BANDWIDTH_PROBE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace hybridgen {

struct ProbeOptions {
  std::vector<int> cpus;  // one thread is pinned to each, as far as the system permits; empty: one thread, not pinned
  std::chrono::nanoseconds time_limit = std::chrono::milliseconds(200);  // bandwidth and latency together
  // Monotonic; called by all threads.
  std::function<std::chrono::nanoseconds()> now = [] {
    return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch());
  };
};

struct ReadSpeed {
  double bytes_per_second = 0;  // read by all threads together; median of the clean samples
  double nanoseconds = 0;       // a read that waits for the one before it, nothing else running; median
  int64_t range_bytes = 0;      // of the memory that was read in each sample
  int64_t bytes_read = 0;       // in all samples of the bandwidth
  int threads = 0;
  int samples = 0;        // of the bandwidth
  int clean_samples = 0;  // of these, the ones in which no thread was held up
  // Fewer than three samples were clean, as other work got in the way: the bandwidth is that of the fastest, since such
  // work only takes from it. Work that takes bandwidth but no time of our CPUs is not noticed.
  bool disturbed = false;
  double seconds = 0;  // that the measurement took
};

// "21.3 GB/s, 110 ns", and " (disturbed)" if so.
std::string ToString(const ReadSpeed& speed);

// One line for a log: "DRAM node 0: 21.3 GB/s, 110 ns; CXL node 1: ...; measured in 0.4 s with 2 threads". What was not
// measured is left out; empty if nothing was.
std::string SpeedSummary(const std::vector<std::pair<std::string, absl::StatusOr<ReadSpeed>>>& named);

// Bytes that a measurement with this many threads reads per sample, if there are as many.
int64_t ProbeBytes(int threads);
// The least that can be measured.
constexpr int64_t kLeastProbeBytes = int64_t{256} << 10;

// Reads the pieces, or as much of them as ProbeBytes says, spread evenly. Nothing is written, so pieces may be in use
// or mapped read-only; every page must have memory (an untouched anonymous page is no memory of its own). Lines are
// flushed from the caches before each sample, so the range need not exceed them. At least one sample is taken of
// bandwidth and latency each, and a sample ends within 256 KiB per thread of the time limit.
// Errors: InvalidArgument (pieces without kLeastProbeBytes in one run, a CPU below 0, a time limit below 0), Internal
// (the system refuses a thread).
absl::StatusOr<ReadSpeed> ProbeRange(const std::vector<absl::Span<const std::byte>>& pieces,
                                     const ProbeOptions& options);

}  // namespace hybridgen

#endif  // MEMORY_BANDWIDTH_PROBE_H_
