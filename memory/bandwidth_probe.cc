// Bandwidth: threads take chunks from a counter and read each as several sequential streams. Latency: a chain of
// dependent reads over one line per page in random order.
#include "memory/bandwidth_probe.h"

#include <emmintrin.h>  // SSE2, which every x86-64 has: memory is the limit long before the width of a load
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace hybridgen {
namespace {

using std::chrono::nanoseconds;

constexpr int64_t kLine = 64;
constexpr int64_t kPage = 4096;
constexpr int64_t kChunk = kLeastProbeBytes;
// Sequential streams of one thread: several keep more reads in flight than one.
constexpr int kStreams = 4;
constexpr int kSamples = 9;
constexpr int kFewestClean = 3;
constexpr int kLatencySamples = 15;
constexpr int kReadsPerLatencySample = 512;
constexpr double kBandwidthShare = 0.75;  // of the time limit
// A thread was held up if it got nothing done for four chunks' time and for this share of the sample.
constexpr double kHeldUpShare = 0.02;
constexpr double kHeldUpChunks = 4;

void ReadChunk(const std::byte* chunk) {
  constexpr int64_t kStream = kChunk / kStreams;
  __m128i sums[kStreams];
  for (__m128i& sum : sums) sum = _mm_setzero_si128();
  for (int64_t at = 0; at < kStream; at += kLine) {
    for (int stream = 0; stream < kStreams; ++stream) {
      const std::byte* line = chunk + stream * kStream + at;
      for (int64_t i = 0; i < kLine; i += sizeof(__m128i)) {
        sums[stream] = _mm_xor_si128(sums[stream], _mm_load_si128(reinterpret_cast<const __m128i*>(line + i)));
      }
    }
  }
  for (const __m128i& sum : sums) asm volatile("" ::"x"(sum));  // the reads are needed
}

void FlushChunk(const std::byte* chunk) {
  for (int64_t at = 0; at < kChunk; at += kLine) _mm_clflush(chunk + at);
}

// Each address depends on what the last read returned, so reads cannot overlap; no pointer has to be stored for it.
void Chase(absl::Span<const std::byte* const> lines) {
  uint64_t zero = 0;
  asm volatile("" : "+r"(zero));  // the compiler does not know that it is 0
  uint64_t value = 0;
  for (const std::byte* line : lines) std::memcpy(&value, line + (value & zero), sizeof(value));
  asm volatile("" ::"r"(value));
}

template <typename T>
T Median(std::vector<T> values) {
  const auto middle = values.begin() + values.size() / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// For as many threads as CPUs. Spins, since waking up takes as long as a sample; yields, for where CPUs are short.
class Barrier {
 public:
  explicit Barrier(int parties) : parties_(parties) {}
  void Wait() {
    const int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parties_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    while (round_.load(std::memory_order_acquire) == round) std::this_thread::yield();
  }

 private:
  const int parties_;
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
};

class Probe {
 public:
  Probe(std::vector<const std::byte*> chunks, const ProbeOptions& options, int threads)
      : chunks_(std::move(chunks)), options_(options), barrier_(threads), workers_(threads) {}

  absl::StatusOr<ReadSpeed> Run() {
    begin_ = options_.now();
    std::vector<std::thread> threads;
    absl::Status status;
    for (size_t i = 0; i < workers_.size() && status.ok(); ++i) {
      try {
        threads.emplace_back([this, i] { Work(static_cast<int>(i)); });
      } catch (const std::system_error& error) {
        status = absl::InternalError(absl::StrCat("bandwidth probe: the system refused thread ", i + 1, " of ",
                                                  workers_.size(), ": ", error.what(), "; use fewer CPUs"));
      }
    }
    gate_.store(status.ok() ? Gate::kOpen : Gate::kAbandoned, std::memory_order_release);
    for (std::thread& thread : threads) thread.join();
    if (!status.ok()) return status;
    return Result();
  }

 private:
  enum class Gate { kClosed, kOpen, kAbandoned };
  struct alignas(kLine) Worker {
    int64_t chunks_read = 0;
    nanoseconds longest_gap{0};  // in which it finished no chunk
  };
  struct Sample {
    double bytes_per_second;
    bool clean;
  };

  void Work(int id) {
    if (!options_.cpus.empty()) {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(options_.cpus[id], &set);
      pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
    }
    Gate gate;
    while ((gate = gate_.load(std::memory_order_acquire)) == Gate::kClosed) std::this_thread::yield();
    if (gate == Gate::kAbandoned) return;
    while (!done_) {
      for (size_t i = id; i < chunks_.size(); i += workers_.size()) FlushChunk(chunks_[i]);
      _mm_mfence();
      barrier_.Wait();
      if (id == 0) StartSample();
      barrier_.Wait();
      TakeChunks(id);
      barrier_.Wait();
      if (id == 0) EndSample();
      barrier_.Wait();
    }
    if (id == 0) MeasureLatency();
  }

  void StartSample() {
    next_.store(0, std::memory_order_relaxed);
    late_.store(false, std::memory_order_relaxed);
    sample_begin_ = options_.now();
  }

  void TakeChunks(int id) {
    Worker& worker = workers_[id];
    worker = Worker();
    nanoseconds last = sample_begin_;
    const auto look_at_clock = [&] {
      const nanoseconds now = options_.now();
      worker.longest_gap = std::max(worker.longest_gap, now - last);
      last = now;
      if (now - begin_ >= kBandwidthShare * options_.time_limit) late_.store(true, std::memory_order_relaxed);
    };
    for (;;) {
      const size_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
      // Chunk 0 is read even when it is late: a sample has bytes.
      if (chunk >= chunks_.size() || (chunk > 0 && late_.load(std::memory_order_relaxed))) break;
      ReadChunk(chunks_[chunk]);
      ++worker.chunks_read;
      look_at_clock();
    }
    look_at_clock();  // a thread that came too late for any chunk was held up, too
  }

  void EndSample() {
    const nanoseconds now = options_.now();
    const double duration = std::max<double>(1, (now - sample_begin_).count());
    int64_t chunks = 0;
    nanoseconds longest_gap{0};
    for (const Worker& worker : workers_) {
      chunks += worker.chunks_read;
      longest_gap = std::max(longest_gap, worker.longest_gap);
    }
    const double chunk_time = duration * workers_.size() / chunks;
    const double held_up = std::max(kHeldUpChunks * chunk_time, chunk_time + kHeldUpShare * duration);
    const bool clean = longest_gap.count() <= held_up;
    samples_.push_back({chunks * kChunk / duration * 1e9, clean});
    bytes_read_ += chunks * kChunk;
    const size_t most = clean_samples() < kFewestClean ? 2 * kSamples : kSamples;
    done_ = samples_.size() >= most || now - begin_ >= kBandwidthShare * options_.time_limit;
  }

  // The other threads have ended.
  void MeasureLatency() {
    std::mt19937_64 rng(1);
    std::vector<const std::byte*> lines;  // one per page, so that neither neighbours nor strides are fetched ahead
    for (const std::byte* chunk : chunks_) {
      for (int64_t page = 0; page < kChunk; page += kPage)
        lines.push_back(chunk + page + rng() % (kPage / kLine) * kLine);
    }
    std::shuffle(lines.begin(), lines.end(), rng);
    const size_t reads = std::min<size_t>(kReadsPerLatencySample, lines.size());
    size_t first = 0;
    for (int sample = 0; sample < kLatencySamples; ++sample) {
      if (first + reads > lines.size()) first = 0;
      const absl::Span<const std::byte* const> chain(lines.data() + first, reads);
      first += reads;
      for (const std::byte* line : chain) _mm_clflush(line);
      _mm_mfence();
      const nanoseconds begin = options_.now();
      Chase(chain);
      const nanoseconds end = options_.now();
      latencies_.push_back(static_cast<double>((end - begin).count()) / reads);
      if (end - begin_ >= options_.time_limit) break;
    }
  }

  int clean_samples() const {
    return std::count_if(samples_.begin(), samples_.end(), [](const Sample& sample) { return sample.clean; });
  }

  ReadSpeed Result() const {
    ReadSpeed speed;
    speed.clean_samples = clean_samples();
    speed.disturbed = speed.clean_samples < kFewestClean;
    std::vector<double> rates;
    for (const Sample& sample : samples_) {
      if (sample.clean || speed.disturbed) rates.push_back(sample.bytes_per_second);
    }
    speed.bytes_per_second = speed.disturbed ? *std::max_element(rates.begin(), rates.end()) : Median(std::move(rates));
    speed.nanoseconds = Median(latencies_);
    speed.range_bytes = static_cast<int64_t>(chunks_.size()) * kChunk;
    speed.bytes_read = bytes_read_;
    speed.threads = static_cast<int>(workers_.size());
    speed.samples = static_cast<int>(samples_.size());
    speed.seconds = (options_.now() - begin_).count() * 1e-9;
    return speed;
  }

  const std::vector<const std::byte*> chunks_;
  const ProbeOptions& options_;
  Barrier barrier_;
  std::vector<Worker> workers_;
  std::atomic<Gate> gate_{Gate::kClosed};
  std::atomic<size_t> next_{0};
  std::atomic<bool> late_{false};
  // Written by thread 0 between barriers.
  bool done_ = false;
  nanoseconds begin_{0};
  nanoseconds sample_begin_{0};
  std::vector<Sample> samples_;
  int64_t bytes_read_ = 0;
  std::vector<double> latencies_;
};

int64_t ChunksPerSample(int threads) { return std::clamp<int64_t>(int64_t{32} * threads, 256, 2048); }

}  // namespace

std::string ToString(const ReadSpeed& speed) {
  return absl::StrFormat("%.1f GB/s, %.0f ns%s", speed.bytes_per_second * 1e-9, speed.nanoseconds,
                         speed.disturbed ? " (disturbed)" : "");
}

std::string SpeedSummary(const std::vector<std::pair<std::string, absl::StatusOr<ReadSpeed>>>& named) {
  std::string text;
  double seconds = 0;
  int fewest = 0;
  int most = 0;
  for (const auto& [name, speed] : named) {
    if (!speed.ok()) continue;
    absl::StrAppend(&text, name, ": ", ToString(*speed), "; ");
    seconds += speed->seconds;
    fewest = most == 0 ? speed->threads : std::min(fewest, speed->threads);
    most = std::max(most, speed->threads);
  }
  if (text.empty()) return text;
  absl::StrAppendFormat(&text, "measured in %.2f s with ", seconds);
  absl::StrAppend(&text, fewest < most ? absl::StrCat(fewest, " to ") : "", most, most == 1 ? " thread" : " threads");
  return text;
}

int64_t ProbeBytes(int threads) { return ChunksPerSample(threads) * kChunk; }

absl::StatusOr<ReadSpeed> ProbeRange(const std::vector<absl::Span<const std::byte>>& pieces,
                                     const ProbeOptions& options) {
  if (options.time_limit < nanoseconds(0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("bandwidth probe: time_limit is ", options.time_limit.count(), " ns; accepted: 0 or more"));
  }
  for (const int cpu : options.cpus) {
    if (cpu >= 0 && cpu < CPU_SETSIZE) continue;
    return absl::InvalidArgumentError(absl::StrCat("bandwidth probe: CPU ", cpu, " is not in [0, ", CPU_SETSIZE, ")"));
  }
  std::vector<const std::byte*> all;
  int64_t bytes = 0;
  for (const absl::Span<const std::byte> piece : pieces) {
    bytes += static_cast<int64_t>(piece.size());
    const int64_t head = -reinterpret_cast<uintptr_t>(piece.data()) & (kLine - 1);
    for (int64_t at = head; at + kChunk <= static_cast<int64_t>(piece.size()); at += kChunk) {
      all.push_back(piece.data() + at);
    }
  }
  if (all.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("bandwidth probe: ", bytes, " bytes in ", pieces.size(),
                                                   " pieces; accepted: a piece of at least ", kChunk,
                                                   " bytes aligned to ", kLine));
  }
  const int threads = std::max<int>(1, options.cpus.size());
  const int64_t count = std::min<int64_t>(all.size(), ChunksPerSample(threads));
  std::vector<const std::byte*> chunks;
  for (int64_t i = 0; i < count; ++i) chunks.push_back(all[i * all.size() / count]);
  return Probe(std::move(chunks), options, threads).Run();
}

}  // namespace hybridgen
