// Tests of how items are handed out to a team's workers.
#include "backend/executor.h"

#include <atomic>
#include <map>
#include <mutex>
#include <numeric>
#include <vector>

#include "backend/pool_executor.h"
#include "gtest/gtest.h"

namespace hybridgen {
namespace {

std::unique_ptr<Executor> Pool(int workers) {
  PoolExecutorOptions options;
  options.num_workers = workers;
  return CreatePoolExecutor(options).value();
}

struct Taken {
  int worker;
  int share;
};

// What ParallelForShares hands out, by item and in each worker's order.
class Recorder {
 public:
  absl::Status Run(Executor& executor, const std::vector<int32_t>& ends, const std::function<int(int)>& own) {
    return ParallelForShares(executor, ends, own, [this](int worker, int32_t i, int share) {
      std::lock_guard<std::mutex> lock(mutex_);
      EXPECT_TRUE(items_.emplace(i, Taken{worker, share}).second) << "item " << i << " is handed out twice";
      order_[worker].push_back(i);
    });
  }
  std::map<int32_t, Taken> items_;
  std::map<int, std::vector<int32_t>> order_;

 private:
  std::mutex mutex_;
};

TEST(ParallelForSharesTest, EveryItemOnceWithTheShareThatItIsIn) {
  const std::vector<std::vector<int32_t>> cases = {
      {}, {0}, {1}, {7}, {0, 1}, {3, 3, 9}, {5, 5}, {0, 0, 0, 4}, {100, 200, 200, 350}};
  for (const int workers : {1, 2, 5}) {
    const std::unique_ptr<Executor> pool = Pool(workers);
    for (const std::vector<int32_t>& ends : cases) {
      Recorder recorder;
      ASSERT_TRUE(recorder.Run(*pool, ends, [&](int worker) { return worker % std::max<int>(1, ends.size()); }).ok());
      ASSERT_EQ(recorder.items_.size(), ends.empty() ? 0u : static_cast<size_t>(ends.back()));
      for (const auto& [item, taken] : recorder.items_) {
        EXPECT_LT(item, ends[taken.share]);
        EXPECT_GE(item, taken.share == 0 ? 0 : ends[taken.share - 1]);
      }
    }
  }
}

TEST(ParallelForSharesTest, AWorkerTakesItsOwnShareFirst) {
  const std::unique_ptr<Executor> alone = Pool(1);
  Recorder recorder;
  ASSERT_TRUE(recorder.Run(*alone, {2, 4, 6}, [](int) { return 1; }).ok());
  EXPECT_EQ(recorder.order_[0], (std::vector<int32_t>{2, 3, 4, 5, 0, 1})) << "own, then the next ones";
}

TEST(ParallelForSharesTest, NobodyTakesFromAnotherShareWhileItsOwnHasItems) {
  constexpr int kWorkers = 4, kItems = 400;
  const std::unique_ptr<Executor> pool = Pool(kWorkers);
  std::atomic<int> begun[2] = {};
  const std::vector<int32_t> ends = {kItems, 2 * kItems};
  ASSERT_TRUE(ParallelForShares(
                  *pool, ends, [](int worker) { return worker % 2; },
                  [&](int worker, int32_t, int share) {
                    ++begun[share];
                    if (share != worker % 2) {
                      // All items of its own share are handed out; other workers may not have counted theirs yet.
                      EXPECT_GE(begun[worker % 2], kItems - kWorkers);
                    }
                  })
                  .ok());
  EXPECT_EQ(begun[0], kItems);
  EXPECT_EQ(begun[1], kItems);
}

}  // namespace
}  // namespace hybridgen
