// The executor catches what the programming model forbids, and runs what it allows, over many orders.
#include "tests/simt/executor.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/arch.h"

namespace hybridgen::simt {
namespace {

using arch::DynamicShared;
using arch::kFullMask;
using testing::AllOf;
using testing::HasSubstr;

absl::Status RunBlocks(int threads, uint64_t seed, const std::function<void()>& kernel, int grid = 1,
                       size_t shared_bytes = 8192) {
  LaunchConfig config;
  config.grid.x = grid;
  config.threads = threads;
  config.shared_bytes = shared_bytes;
  config.seed = seed;
  return Launch(config, kernel);
}

// Every seed of some tens ends with an error that says `part`, as the shadow does not depend on the order.
void ExpectAlwaysCaught(int threads, const std::function<void()>& kernel, const std::string& part) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const absl::Status status = RunBlocks(threads, seed, kernel);
    ASSERT_FALSE(status.ok()) << "seed " << seed;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(part), HasSubstr("; seed ")));
  }
}

void ExpectAlwaysFine(int threads, const std::function<void()>& kernel) {
  for (uint64_t seed = 1; seed <= 20; ++seed) ASSERT_EQ(RunBlocks(threads, seed, kernel), absl::OkStatus());
}

TEST(ExecutorTest, EveryThreadOfEveryBlockRunsOnce) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    std::vector<int> runs(5 * 3 * 2 * 96, 0);
    LaunchConfig config;
    config.grid = {5, 3, 2};
    config.threads = 96;
    config.seed = seed;
    config.resident_blocks = 1 + seed % 4;
    ASSERT_EQ(Launch(config,
                     [&] {
                       const Dim3 b = BlockIndex();
                       ++runs[((b.z * 3 + b.y) * 5 + b.x) * 96 + ThreadIndex()];
                     }),
              absl::OkStatus());
    for (int count : runs) ASSERT_EQ(count, 1);
  }
}

TEST(ExecutorTest, EqualSeedsGiveEqualOrdersAndOthersOthers) {
  const auto order = [](uint64_t seed) {
    std::vector<int> order;
    EXPECT_TRUE(RunBlocks(64, seed, [&] { order.push_back(ThreadIndex()); }).ok());
    return order;
  };
  EXPECT_EQ(order(3), order(3));
  EXPECT_NE(order(3), order(4));
}

TEST(ExecutorTest, BlockReductionThroughSharedMemory) {
  std::vector<uint32_t> sums(4, 0);
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    const auto kernel = [&] {
      const auto values = DynamicShared<uint32_t>(0);
      const int thread = ThreadIndex();
      values.Store(thread, thread + 1000 * BlockIndex().x);
      for (int half = 64; half > 0; half /= 2) {
        arch::SyncThreads();
        if (thread < half) values.Store(thread, values.Load(thread) + values.Load(thread + half));
      }
      if (thread == 0) sums[BlockIndex().x] = values.Load(0);
    };
    ASSERT_EQ(RunBlocks(128, seed, kernel, 4), absl::OkStatus());
    for (int block = 0; block < 4; ++block) EXPECT_EQ(sums[block], 127u * 64 + 128u * 1000 * block);
  }
}

TEST(ExecutorTest, WarpScanAndReductions) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    std::vector<uint32_t> scan(96), total(96), odd(96), bits(96);
    std::vector<float> maximum(96);
    const auto kernel = [&] {
      const int thread = ThreadIndex(), lane = arch::LaneIndex();
      uint32_t x = thread;
      for (int delta = 1; delta < 32; delta *= 2) {
        const uint32_t below = arch::ShflUp(kFullMask, x, delta);
        if (lane >= delta) x += below;
      }
      scan[thread] = x;
      total[thread] = arch::ReduxAdd(kFullMask, 1u << lane);
      float m = static_cast<float>(thread);
      for (int lanes = 16; lanes > 0; lanes /= 2) m = std::max(m, arch::ShflXor(kFullMask, m, lanes));
      maximum[thread] = m;
      bits[thread] = arch::Ballot(kFullMask, lane % 3 == 0);
      // Half a warp at a time, each half with its own mask.
      if (lane % 2 == 1) {
        odd[thread] = arch::Shfl(0xaaaaaaaau, static_cast<uint32_t>(thread), 5);
      } else {
        odd[thread] = arch::ReduxAdd(0x55555555u, 1);
      }
    };
    ASSERT_EQ(RunBlocks(96, seed, kernel), absl::OkStatus());
    for (int thread = 0; thread < 96; ++thread) {
      const int warp = thread / 32, lane = thread % 32;
      EXPECT_EQ(scan[thread], static_cast<uint32_t>((lane + 1) * 32 * warp + lane * (lane + 1) / 2));
      EXPECT_EQ(total[thread], 0xffffffffu);
      EXPECT_EQ(maximum[thread], warp * 32 + 31);
      EXPECT_EQ(bits[thread], 0x49249249u);
      EXPECT_EQ(odd[thread], lane % 2 == 1 ? static_cast<uint32_t>(warp * 32 + 5) : 16u);
    }
  }
}

TEST(ExecutorTest, AtomicsOfManyBlocks) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    uint32_t count = 0, flags = 0;
    const auto kernel = [&] {
      arch::AtomicAdd(&count, 2);
      arch::AtomicOr(&flags, 1u << BlockIndex().x);
    };
    ASSERT_EQ(RunBlocks(64, seed, kernel, 6), absl::OkStatus());
    EXPECT_EQ(count, 2u * 64 * 6);
    EXPECT_EQ(flags, 0x3fu);
  }
}

TEST(ExecutorTest, ABlockMayWaitForAnotherResidentOne) {
  uint64_t flag = 0;
  uint64_t seen = 0;
  const auto kernel = [&] {
    if (BlockIndex().x == 0) {
      if (ThreadIndex() == 0) arch::StoreReleaseSystem(&flag, 7);
    } else if (ThreadIndex() == 0) {
      while (arch::LoadAcquireSystem(&flag) == 0) arch::NanoSleep(100);
      seen = flag;
    }
  };
  ASSERT_EQ(RunBlocks(32, 5, kernel, 2), absl::OkStatus());
  EXPECT_EQ(seen, 7u);
}

TEST(ExecutorTest, APollWithADeadlineEnds) {
  uint64_t flag = 0;
  bool expired = false;
  const auto kernel = [&] {
    if (ThreadIndex() != 0) return;
    const uint64_t start = arch::GlobalTimer();
    while (arch::LoadAcquireSystem(&flag) == 0 && !expired) {
      arch::NanoSleep(1000);
      expired = arch::GlobalTimer() - start > 100000;
    }
  };
  ASSERT_EQ(RunBlocks(32, 1, kernel), absl::OkStatus());
  EXPECT_TRUE(expired);
}

TEST(ExecutorTest, RaceBetweenWarps) {
  const auto kernel = [](bool barrier) {
    const auto values = DynamicShared<float>(0);
    values.Store(ThreadIndex(), 0.0f);
    arch::SyncThreads();
    values.Store(ThreadIndex(), 1.0f);
    if (barrier) arch::SyncThreads();
    (void)values.Load(ThreadIndex() ^ 32);
  };
  ExpectAlwaysCaught(
      64, [&] { kernel(false); }, "race in shared memory");
  ExpectAlwaysFine(64, [&] { kernel(true); });
}

TEST(ExecutorTest, RaceInsideAWarpDespiteAShuffle) {
  const auto kernel = [](bool sync) {
    const auto values = DynamicShared<uint32_t>(0);
    values.Store(ThreadIndex(), 1);
    // Exchanges registers and orders nothing.
    (void)arch::Shfl(kFullMask, 1u, 0);
    if (sync) arch::SyncWarp(kFullMask);
    (void)values.Load(ThreadIndex() ^ 1);
  };
  ExpectAlwaysCaught(
      32, [&] { kernel(false); }, "race in shared memory");
  ExpectAlwaysFine(32, [&] { kernel(true); });
}

TEST(ExecutorTest, RaceOfAWriteWithEarlierReads) {
  const auto kernel = [](bool sync) {
    const auto value = DynamicShared<uint32_t>(0);
    if (ThreadIndex() == 0) value.Store(0, 1);
    arch::SyncThreads();
    (void)value.Load(0);
    if (sync) arch::SyncThreads();
    if (ThreadIndex() == 5) value.Store(0, 2);
  };
  // The writer is among the readers: another reader's record is needed, whichever read last.
  ExpectAlwaysCaught(
      32, [&] { kernel(false); }, "read (line");
  ExpectAlwaysCaught(
      128, [&] { kernel(false); }, "read (line");
  ExpectAlwaysFine(128, [&] { kernel(true); });
}

TEST(ExecutorTest, AWarpSyncOrdersOnlyItsLanes) {
  const auto kernel = [](uint32_t mask) {
    const auto values = DynamicShared<uint32_t>(0);
    values.Store(ThreadIndex(), 1);
    if (mask >> arch::LaneIndex() & 1) arch::SyncWarp(mask);
    if (ThreadIndex() == 3) (void)values.Load(9);
  };
  ExpectAlwaysFine(32, [&] { kernel(0x0000ffffu); });
  for (uint64_t seed = 1; seed <= 20; ++seed)
    EXPECT_FALSE(RunBlocks(32, seed, [&] { kernel(0x000000ffu); }).ok()) << seed;
}

TEST(ExecutorTest, OrderIsTransitiveOverNamedBarriers) {
  const auto kernel = [](bool second) {
    const auto value = DynamicShared<uint32_t>(0);
    const int warp = arch::WarpIndex();
    if (ThreadIndex() == 0) value.Store(0, 1);
    if (warp <= 1) Barrier(1, 64, Site::Here());
    if (second && warp >= 1) Barrier(2, 64, Site::Here());
    if (ThreadIndex() == 64) (void)value.Load(0);
  };
  ExpectAlwaysFine(96, [&] { kernel(true); });
  for (uint64_t seed = 1; seed <= 20; ++seed) EXPECT_FALSE(RunBlocks(96, seed, [&] { kernel(false); }).ok()) << seed;
}

TEST(ExecutorTest, SharedMemoryOutOfBoundsUnwrittenAndMisaligned) {
  ExpectAlwaysCaught(
      32, [] { DynamicShared<float>(0).Store(2048, 1.0f); }, "out of bounds");
  ExpectAlwaysCaught(
      32, [] { (void)DynamicShared<float>(-4).Load(0); }, "out of bounds");
  ExpectAlwaysCaught(
      32, [] { (void)DynamicShared<float>(0).Load(ThreadIndex()); }, "nobody has written");
  ExpectAlwaysCaught(
      32, [] { (void)DynamicShared<arch::Vec16>(8).Load(ThreadIndex()); }, "misaligned");
}

// A plain pointer cannot be watched: the red zones tell at the block's end, the address sanitizer at once.
TEST(ExecutorTest, APlainPointerBesideSharedMemoryHitsTheRedZone) {
  const auto kernel = [] {
    if (ThreadIndex() == 0) *reinterpret_cast<volatile float*>(SharedBase() + 8192 + 4) = 1.0f;
  };
#ifdef __SANITIZE_ADDRESS__
  EXPECT_DEATH((void)RunBlocks(32, 1, kernel), "AddressSanitizer");
#else
  EXPECT_THAT(std::string(RunBlocks(32, 1, kernel).message()), HasSubstr("beside the shared memory"));
#endif
}

TEST(ExecutorTest, BarrierThatSomeThreadsSkip) {
  ExpectAlwaysCaught(
      64,
      [] {
        if (ThreadIndex() < 40) arch::SyncThreads();
      },
      "deadlock: block (0, 0, 0): threads 40 41");
}

TEST(ExecutorTest, BarrierInTwoBranches) {
  ExpectAlwaysCaught(
      64,
      [] {
        if (ThreadIndex() < 40) {
          arch::SyncThreads();
        } else {
          arch::SyncThreads();
        }
      },
      "divergence: ");
}

TEST(ExecutorTest, BarrierCountsAreChecked) {
  ExpectAlwaysCaught(
      64, [] { Barrier(1, 48, Site::Here()); }, "48 threads of 64");
  ExpectAlwaysCaught(
      64, [] { Barrier(16, 64, Site::Here()); }, "id 16 of 16");
  ExpectAlwaysCaught(
      64, [] { Barrier(1, ThreadIndex() < 32 ? 32 : 64, Site::Here()); }, "");
}

TEST(ExecutorTest, CollectivesThatDoNotMeet) {
  ExpectAlwaysCaught(
      32,
      [] {
        if (ThreadIndex() % 2 == 0) (void)arch::Ballot(kFullMask, true);
      },
      "wait at Ballot");
  ExpectAlwaysCaught(
      32,
      [] {
        if (ThreadIndex() % 2 == 0) {
          (void)arch::Ballot(kFullMask, true);
        } else {
          (void)arch::ReduxAdd(kFullMask, 1);
        }
      },
      "divergence: ");
  ExpectAlwaysCaught(
      32, [] { (void)arch::Ballot(0x0000ffffu, true); }, "is not in the mask");
}

TEST(ExecutorTest, DeadlockOfTwoBarriersNamesBothSides) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const absl::Status status = RunBlocks(64, seed, [] {
      const int warp = arch::WarpIndex();
      Barrier(1 + warp, 64, Site::Here());
      Barrier(2 - warp, 64, Site::Here());
    });
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("deadlock"), HasSubstr("threads 0 1 2"),
                                                     HasSubstr("wait at barrier (executor_test.cc:")));
  }
}

TEST(ExecutorTest, AnEndlessLoopIsStopped) {
  LaunchConfig config;
  config.max_switches = 1000;
  uint64_t never = 0;
  const absl::Status status = Launch(config, [&] {
    while (arch::LoadAcquireSystem(&never) == 0) arch::NanoSleep(10);
  });
  EXPECT_THAT(std::string(status.message()), HasSubstr("no end after 1000 switches"));
}

// Copies 16 bytes per thread through a stage and hands them to the neighbour.
void CopyThrough(const arch::Vec16* in, arch::Vec16* out, bool wait, bool sync, int bytes) {
  const auto stage = DynamicShared<arch::Vec16>(0);
  const int thread = ThreadIndex();
  arch::CpAsync16(stage.At(thread), in + thread, bytes);
  arch::CpAsyncCommit();
  if (wait) arch::CpAsyncWait<0>();
  if (sync) arch::SyncThreads();
  out[thread] = stage.Load(thread ^ 1);
  if (!wait) arch::CpAsyncWait<0>();
}

TEST(ExecutorTest, CpAsync) {
  std::vector<arch::Vec16> in(64), out(64);
  for (uint32_t i = 0; i < 64; ++i) in[i] = {{i, i + 1, i + 2, i + 3}};
  ExpectAlwaysFine(64, [&] { CopyThrough(in.data(), out.data(), true, true, 16); });
  for (uint32_t i = 0; i < 64; ++i) EXPECT_EQ(out[i].x[3], (i ^ 1) + 3);
  ExpectAlwaysFine(64, [&] { CopyThrough(in.data(), out.data(), true, true, 6); });
  for (uint32_t i = 0; i < 64; ++i) {
    EXPECT_EQ(out[i].x[0], i ^ 1);
    EXPECT_EQ(out[i].x[1], ((i ^ 1) + 1) & 0xffff);
    EXPECT_EQ(out[i].x[2], 0u);
  }
  ExpectAlwaysFine(64, [&] { CopyThrough(nullptr, out.data(), true, true, 0); });
  ExpectAlwaysCaught(
      64, [&] { CopyThrough(in.data(), out.data(), false, true, 16); }, "has not been waited for");
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    EXPECT_FALSE(RunBlocks(64, seed, [&] { CopyThrough(in.data(), out.data(), true, false, 16); }).ok()) << seed;
  }
}

TEST(ExecutorTest, CpAsyncWaitsForOldGroupsOnly) {
  std::vector<arch::Vec16> in(96);
  const auto kernel = [&](int stage_read) {
    const auto stage = DynamicShared<arch::Vec16>(0);
    for (int group = 0; group < 3; ++group) {
      arch::CpAsync16(stage.At(group * 32 + ThreadIndex()), &in[group * 32 + ThreadIndex()], 16);
      arch::CpAsyncCommit();
    }
    arch::CpAsyncWait<1>();
    (void)stage.Load(stage_read * 32 + ThreadIndex());
    arch::CpAsyncWait<0>();
  };
  ExpectAlwaysFine(32, [&] { kernel(1); });
  ExpectAlwaysCaught(
      32, [&] { kernel(2); }, "has not been waited for");
}

TEST(ExecutorTest, CpAsyncLeftBehindAndOverReads) {
  std::vector<arch::Vec16> in(32);
  ExpectAlwaysCaught(
      32, [&] { arch::CpAsync16(DynamicShared<arch::Vec16>(0).At(ThreadIndex()), &in[ThreadIndex()], 16); },
      "ends with a cp.async");
  const auto overwrite = [&](bool sync) {
    const auto stage = DynamicShared<arch::Vec16>(0);
    stage.Store(ThreadIndex(), in[0]);
    arch::SyncThreads();
    (void)stage.Load(ThreadIndex() ^ 1);
    if (sync) arch::SyncThreads();
    arch::CpAsync16(stage.At(ThreadIndex()), &in[ThreadIndex()], 16);
    arch::CpAsyncCommit();
    arch::CpAsyncWait<0>();
  };
  ExpectAlwaysFine(32, [&] { overwrite(true); });
  for (uint64_t seed = 1; seed <= 20; ++seed) EXPECT_FALSE(RunBlocks(32, seed, [&] { overwrite(false); }).ok()) << seed;
}

TEST(ExecutorTest, LaunchesThatCannotBe) {
  EXPECT_FALSE(RunBlocks(0, 1, [] {}).ok());
  EXPECT_FALSE(RunBlocks(33, 1, [] {}).ok());
  EXPECT_FALSE(RunBlocks(1056, 1, [] {}).ok());
}

}  // namespace
}  // namespace hybridgen::simt
