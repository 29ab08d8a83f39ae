// Tests of the bandwidth probe: with a clock of their own, where every figure is known, and on real memory.
#include "memory/bandwidth_probe.h"

#include <sys/mman.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace hybridgen {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using Pieces = std::vector<absl::Span<const std::byte>>;

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kChunk = kLeastProbeBytes;

// A clock that moves by a step each time it is looked at.
struct FakeClock {
  nanoseconds step;
  nanoseconds time{0};
  nanoseconds Now() { return time += step; }
};

ProbeOptions Options(FakeClock& clock, nanoseconds time_limit) {
  ProbeOptions options;
  options.time_limit = time_limit;
  options.now = [&clock] { return clock.Now(); };
  return options;
}

// Memory that faults when it is written: the probe only reads.
class ReadOnlyMemory {
 public:
  explicit ReadOnlyMemory(int64_t bytes) : bytes_(bytes) {
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    EXPECT_NE(data_, MAP_FAILED);
    for (int64_t at = 0; at < bytes; at += 8) static_cast<uint8_t*>(data_)[at] = static_cast<uint8_t>(at >> 3);
    EXPECT_EQ(mprotect(data_, bytes, PROT_READ), 0);
  }
  ~ReadOnlyMemory() { munmap(data_, bytes_); }
  absl::Span<const std::byte> span() const {
    return {static_cast<const std::byte*>(data_), static_cast<size_t>(bytes_)};
  }

 private:
  const int64_t bytes_;
  void* data_;
};

TEST(BandwidthProbeTest, FiguresFollowFromTheClock) {
  const ReadOnlyMemory memory(2 * kMiB);
  FakeClock clock{nanoseconds(1000)};
  const absl::StatusOr<ReadSpeed> speed = ProbeRange({memory.span()}, Options(clock, milliseconds(1000)));
  ASSERT_TRUE(speed.ok()) << speed.status();
  EXPECT_EQ(speed->threads, 1);
  EXPECT_EQ(speed->range_bytes, 2 * kMiB);
  EXPECT_EQ(speed->samples, 9);
  EXPECT_EQ(speed->clean_samples, 9);
  EXPECT_FALSE(speed->disturbed);
  EXPECT_EQ(speed->bytes_read, 9 * 2 * kMiB);
  // Between begin and end of a sample the clock is looked at after each of the 8 chunks, once more, and at the end.
  EXPECT_DOUBLE_EQ(speed->bytes_per_second, 2 * kMiB / 10e-6);
  EXPECT_DOUBLE_EQ(speed->nanoseconds, 1000.0 / 512);
  EXPECT_DOUBLE_EQ(speed->seconds, (clock.time - clock.step).count() * 1e-9) << "the first look is its beginning";
}

TEST(BandwidthProbeTest, TheTimeLimitEndsIt) {
  const ReadOnlyMemory memory(16 * kMiB);
  // 64 chunks would take 64 ms. Three quarters of the limit belong to the bandwidth, and one look may be late.
  for (const int limit : {0, 1, 20, 100}) {
    FakeClock clock{milliseconds(1)};
    const absl::StatusOr<ReadSpeed> speed = ProbeRange({memory.span()}, Options(clock, milliseconds(limit)));
    ASSERT_TRUE(speed.ok()) << speed.status();
    EXPECT_GE(speed->samples, 1);
    EXPECT_GE(speed->bytes_read, kChunk);
    EXPECT_LE(speed->bytes_read, std::max<int64_t>(1, limit * 3 / 4) * kChunk) << limit;
    EXPECT_LE(speed->seconds, (limit + 8) * 1e-3) << limit;
    EXPECT_GT(speed->bytes_per_second, 0);
    EXPECT_GT(speed->nanoseconds, 0);
  }
}

TEST(BandwidthProbeTest, SamplesInWhichAThreadIsHeldUpAreLeftOut) {
  const ReadOnlyMemory memory(2 * kMiB);
  constexpr int kLooks = 11;  // per sample: its begin, 8 chunks, once more, its end
  int looks = 0;
  nanoseconds time{0};
  ProbeOptions options;
  options.now = [&] {
    const bool held_up = looks % kLooks == 5 && looks < 5 * kLooks;  // in five of the nine samples
    ++looks;
    return time += held_up ? milliseconds(1) : nanoseconds(1000);
  };
  const ReadSpeed speed = ProbeRange({memory.span()}, options).value();
  EXPECT_EQ(speed.samples, 9);
  EXPECT_EQ(speed.clean_samples, 4);
  EXPECT_FALSE(speed.disturbed);
  EXPECT_DOUBLE_EQ(speed.bytes_per_second, 2 * kMiB / 10e-6);
}

TEST(BandwidthProbeTest, WithoutThreeCleanSamplesItIsCalledDisturbed) {
  const ReadOnlyMemory memory(2 * kMiB);
  int64_t looks = 0;
  nanoseconds time{0};
  ProbeOptions options;
  // A sample looks 11 times, so that one is held up for more than a millisecond but the seventh for half as long.
  options.now = [&] {
    const bool seventh = looks / 11 == 6;
    return time += (++looks % 10 != 0 ? nanoseconds(1000) : seventh ? nanoseconds(500'000) : milliseconds(1));
  };
  const ReadSpeed speed = ProbeRange({memory.span()}, options).value();
  EXPECT_TRUE(speed.disturbed);
  EXPECT_LT(speed.clean_samples, 3);
  EXPECT_EQ(speed.samples, 18) << "it tries for longer";
  EXPECT_DOUBLE_EQ(speed.bytes_per_second, 2 * kMiB / (9e-6 + 500e-6)) << "the fastest";
  EXPECT_TRUE(absl::StrContains(ToString(speed), "disturbed"));
}

TEST(BandwidthProbeTest, PiecesAreReadTogether) {
  const ReadOnlyMemory memory(2 * kMiB);
  FakeClock clock{nanoseconds(1000)};
  const absl::Span<const std::byte> span = memory.span();
  // An odd start: the chunk begins at the next line. The last piece is too small for a chunk.
  const Pieces pieces = {span.subspan(1, kChunk + 63), span.subspan(kMiB, 2 * kChunk), span.subspan(0, kChunk - 1)};
  EXPECT_EQ(ProbeRange(pieces, Options(clock, milliseconds(1000)))->range_bytes, 3 * kChunk);
}

TEST(BandwidthProbeTest, OfALargeRangeASampleIsRead) {
  EXPECT_EQ(ProbeBytes(1), 64 * kMiB);
  EXPECT_EQ(ProbeBytes(16), 128 * kMiB);
  EXPECT_EQ(ProbeBytes(512), 512 * kMiB);
  // Reserved, never touched: the chunks all share the zero page.
  constexpr int64_t kBytes = 256 * kMiB;
  void* data = mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(data, MAP_FAILED);
  FakeClock clock{nanoseconds(1)};
  const Pieces pieces = {{static_cast<const std::byte*>(data), kBytes}};
  EXPECT_EQ(ProbeRange(pieces, Options(clock, milliseconds(0)))->range_bytes, 64 * kMiB);
  munmap(data, kBytes);
}

TEST(BandwidthProbeTest, RealMemoryWithSeveralThreads) {
  const ReadOnlyMemory memory(8 * kMiB);
  ProbeOptions options;
  options.cpus = {0, 0, 0};  // more threads than CPUs: they must get along
  options.time_limit = milliseconds(20);
  const absl::StatusOr<ReadSpeed> speed = ProbeRange({memory.span()}, options);
  ASSERT_TRUE(speed.ok()) << speed.status();
  EXPECT_EQ(speed->threads, 3);
  EXPECT_GE(speed->samples, 1);
  EXPECT_GE(speed->bytes_read, kChunk);
  EXPECT_LE(speed->bytes_read, speed->samples * speed->range_bytes);
  EXPECT_GT(speed->bytes_per_second, 0);
  EXPECT_GT(speed->nanoseconds, 0);
  EXPECT_GT(speed->seconds, 0);
}

TEST(BandwidthProbeTest, WrongArgumentsAreRefusedByName) {
  const ReadOnlyMemory memory(kChunk);
  ProbeOptions options;
  for (const Pieces& pieces : {Pieces(), Pieces{memory.span().subspan(1)}, Pieces{memory.span().subspan(64)}}) {
    const absl::Status status = ProbeRange(pieces, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(status.message(), "at least 262144 bytes")) << status;
  }
  options.time_limit = nanoseconds(-1);
  EXPECT_TRUE(absl::StrContains(ProbeRange({memory.span()}, options).status().message(), "time_limit is -1"));
  options.time_limit = nanoseconds(0);
  for (const int cpu : {-1, 1024}) {
    options.cpus = {cpu};
    EXPECT_TRUE(absl::StrContains(ProbeRange({memory.span()}, options).status().message(), "is not in [0, 1024)"));
  }
}

TEST(BandwidthProbeTest, TextForTheLog) {
  ReadSpeed speed;
  speed.bytes_per_second = 21.34e9;
  speed.nanoseconds = 110.4;
  EXPECT_EQ(ToString(speed), "21.3 GB/s, 110 ns");
  speed.threads = 2;
  speed.seconds = 0.2;
  EXPECT_EQ(SpeedSummary({{"DRAM node 0", speed}}),
            "DRAM node 0: 21.3 GB/s, 110 ns; measured in 0.20 s with 2 threads");
  ReadSpeed other = speed;
  other.threads = 1;
  EXPECT_EQ(SpeedSummary({{"a", speed}, {"b", absl::InternalError("no")}, {"c", other}}),
            "a: 21.3 GB/s, 110 ns; c: 21.3 GB/s, 110 ns; measured in 0.40 s with 1 to 2 threads");
  EXPECT_EQ(SpeedSummary({{"c", other}}), "c: 21.3 GB/s, 110 ns; measured in 0.20 s with 1 thread");
  EXPECT_EQ(SpeedSummary({{"b", absl::InternalError("no")}}), "");
}

}  // namespace
}  // namespace hybridgen
