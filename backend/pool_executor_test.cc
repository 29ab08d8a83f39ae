// Tests of the pool: every worker runs, in every round, parked or spinning; the watchdog ends a stuck round.
#include "backend/pool_executor.h"

#include <atomic>
#include <chrono>
#include <future>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

std::unique_ptr<Executor> Pool(int workers, absl::Duration spin, absl::Duration timeout = absl::Seconds(60)) {
  PoolExecutorOptions options;
  options.num_workers = workers;
  options.spin = spin;
  options.timeout = timeout;
  return *CreatePoolExecutor(options);
}

TEST(PoolExecutorTest, EveryWorkerRunsOnceARound) {
  for (int workers : {1, 2, 5}) {
    // No spin: every round parks and wakes. Long spin: none does.
    for (absl::Duration spin : {absl::ZeroDuration(), absl::Microseconds(50)}) {
      std::unique_ptr<Executor> pool = Pool(workers, spin);
      std::vector<int> calls(workers, 0);  // plain ints: tsan checks that Run orders the rounds
      for (int round = 1; round <= 500; ++round) {
        ASSERT_TRUE(pool->Run([&](int worker) { ++calls[worker]; }).ok());
        for (int worker = 0; worker < workers; ++worker) ASSERT_EQ(calls[worker], round);
      }
    }
  }
}

TEST(PoolExecutorTest, ParallelForHandsOutEveryItemOnce) {
  std::unique_ptr<Executor> pool = Pool(3, absl::Microseconds(30));
  for (int64_t count : {0, 1, 2, 3, 100, 1001}) {
    std::vector<std::atomic<int>> seen(count);
    ASSERT_TRUE(ParallelFor(*pool, count, [&](int worker, int64_t i) {
                  ASSERT_GE(worker, 0);
                  ASSERT_LT(worker, 3);
                  ++seen[i];
                }).ok());
    for (int64_t i = 0; i < count; ++i) EXPECT_EQ(seen[i], 1) << i;
  }
}

TEST(PoolExecutorTest, TwoPoolsInOneProcessDoNotDisturbEachOther) {
  std::unique_ptr<Executor> a = Pool(2, absl::ZeroDuration());
  std::unique_ptr<Executor> b = Pool(2, absl::ZeroDuration());
  std::atomic<int> total{0};
  std::thread other([&] {
    for (int i = 0; i < 200; ++i) EXPECT_TRUE(b->Run([&](int) { ++total; }).ok());
  });
  for (int i = 0; i < 200; ++i) EXPECT_TRUE(a->Run([&](int) { ++total; }).ok());
  other.join();
  EXPECT_EQ(total, 800);
}

TEST(PoolExecutorTest, AStuckWorkerIsAnErrorAndThePoolStaysDead) {
  // Outlives the pool: the stuck worker is abandoned, not joined.
  static std::promise<void>* const release = new std::promise<void>();
  static std::shared_future<void>* const released = new std::shared_future<void>(release->get_future());
  static std::atomic<bool>* const left = new std::atomic<bool>(false);
  {
    std::unique_ptr<Executor> pool = Pool(2, absl::ZeroDuration(), absl::Milliseconds(50));
    const absl::Status status = pool->Run([](int worker) {
      if (worker == 0) return;
      released->wait();
      *left = true;
    });
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_EQ(pool->Run([](int) {}).code(), absl::StatusCode::kFailedPrecondition);
  }
  release->set_value();
  while (!*left) std::this_thread::yield();
}

TEST(PoolExecutorTest, NoWorkersIsRefused) {
  PoolExecutorOptions options;
  options.num_workers = 0;
  EXPECT_EQ(CreatePoolExecutor(options).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hybridgen
