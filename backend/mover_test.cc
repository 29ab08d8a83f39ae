// Tests of the mover: contents, budget on a clock of the test's own, layers and writes that come in between, the
// watchdog, and teardown with work queued.
#include "backend/mover.h"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <numeric>
#include <thread>

#include "gtest/gtest.h"
#include "kernels/kernel_table.h"
#include "kernels/page_format.h"

namespace hybridgen {
namespace {

constexpr int kLayers = 3;
constexpr int kPages = 12;
constexpr double kFast = 1e12;  // bytes per second: no wait that matters

// A gate inside the copy of a page, which the mover's thread passes in each chunk.
class Gate {
 public:
  void Pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++inside_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
    --inside_;
  }
  void Set(bool open) {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = open;
    changed_.notify_all();
  }
  void AwaitSomebodyInside() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return inside_ > 0; });
  }
  int inside() {
    std::lock_guard<std::mutex> lock(mutex_);
    return inside_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int inside_ = 0;
};

Gate& TheGate() {
  static Gate* const gate = new Gate;
  return *gate;
}

void GatedConvert(KvRole role, const PageGeometry& from, uint64_t from_page, const PageGeometry& to, uint64_t to_page,
                  int num_tokens) {
  TheGate().Pass();
  SelectKernels(CpuFeatures()).convert_page(role, from, from_page, to, to_page, num_tokens);
}

class MoverTest : public testing::Test {
 protected:
  void SetUp() override {
    TheGate().Set(true);
    geometry_.format = PageFormat::kPackedV1;
    geometry_.page_tokens = 16;
    geometry_.kv_heads = 2;
    geometry_.head_size = 16;
    layer_bytes_ = PackedPageBytes(geometry_.dtype, geometry_.kv_heads, geometry_.page_tokens, geometry_.head_size);
    HostTiersOptions tiers;
    for (int role = 0; role < kNumRoles; ++role) {
      tiers.page_bytes[role] = kLayers * layer_bytes_;
      tiers.dram_pages[role] = tiers.cxl_pages[role] = kPages;
    }
    host_ = HostTiers::Create(tiers).value();
    std::vector<LayerPages> layers(kLayers);
    for (int l = 0; l < kLayers; ++l) {
      layers[l].host = geometry_;
      layers[l].host_k = layers[l].host_v = l * layer_bytes_;
    }
    kernels_ = SelectKernels(CpuFeatures());
    kernels_.convert_page = GatedConvert;
    copier_ = std::make_shared<const PageCopier>(kernels_, host_.get(), layers);
    for (int page = 0; page < kPages; ++page) {
      std::vector<float> content(kLayers * layer_bytes_ / sizeof(float));
      std::iota(content.begin(), content.end(), static_cast<float>(1000 * page));
      std::memcpy(Data({Tier::kCxl, page}), content.data(), kLayers * layer_bytes_);
      std::memset(Data({Tier::kDram, page}), 0xff, kLayers * layer_bytes_);
    }
  }

  std::unique_ptr<Mover> Make(MoverOptions options = {}) {
    if (options.bytes_per_second == 0) options.bytes_per_second = kFast;
    return std::make_unique<Mover>(copier_, options);
  }

  void* Data(const HostPage& page) const { return reinterpret_cast<void*>(host_->Address(PageRole::kKey, page)); }

  // The K of `block` from CXL page `block` to DRAM page kPages - 1 - block.
  static CopyTask Task(int block) {
    CopyTask task;
    task.id = block + 100;
    task.kind = CopyTask::Kind::kMigrate;
    task.block = block;
    task.num_tokens = 16;
    task.from_k = {Tier::kCxl, block};
    task.k = {Tier::kDram, kPages - 1 - block};
    return task;
  }

  static std::vector<CopyTask> Tasks(int count) {
    std::vector<CopyTask> tasks;
    for (int block = 0; block < count; ++block) tasks.push_back(Task(block));
    return tasks;
  }

  bool Moved(int block) const {
    const CopyTask task = Task(block);
    return std::memcmp(Data(task.from_k), Data(task.k), kLayers * layer_bytes_) == 0;
  }

  PageGeometry geometry_;
  int64_t layer_bytes_ = 0;
  std::unique_ptr<HostTiers> host_;
  KernelSet kernels_ = {};
  std::shared_ptr<const PageCopier> copier_;
};

int Threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<int>(std::distance(begin(tasks), end(tasks)));
}

TEST_F(MoverTest, MovesEveryLayerAndReportsEachCopyOnce) {
  const int threads = Threads();
  std::unique_ptr<Mover> mover = Make();
  EXPECT_EQ(Threads(), threads) << "the thread starts with the first copy";
  ASSERT_TRUE(mover->Drain().ok());
  ASSERT_TRUE(mover->Start(Tasks(kPages)).ok());
  EXPECT_EQ(mover->in_flight(), kPages);
  ASSERT_TRUE(mover->Drain().ok());
  const std::vector<CopyTask> finished = mover->TakeFinished();
  ASSERT_EQ(finished.size(), static_cast<size_t>(kPages));
  for (int block = 0; block < kPages; ++block) {
    EXPECT_EQ(finished[block].block, block);
    EXPECT_EQ(finished[block].outcome, CopyOutcome::kComplete);
    EXPECT_TRUE(Moved(block)) << block;
  }
  EXPECT_TRUE(mover->TakeFinished().empty());
  EXPECT_EQ(mover->in_flight(), 0);
  const MoverStatistics statistics = mover->statistics();
  EXPECT_EQ(statistics.chunks, kPages * kLayers);
  EXPECT_EQ(statistics.bytes, kPages * kLayers * layer_bytes_);
}

TEST_F(MoverTest, StaysWithinTheBudget) {
  std::atomic<int64_t> nanoseconds{0};
  MoverOptions options;
  options.bytes_per_second = 1e6;
  options.now = [&] { return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(nanoseconds)); };
  std::unique_ptr<Mover> mover = Make(options);
  ASSERT_TRUE(mover->Start(Tasks(kPages)).ok());
  const int64_t chunk_nanoseconds = layer_bytes_ * 1000;  // at 1e6 bytes per second
  for (int64_t chunks = 0; chunks <= kPages * kLayers; ++chunks) {
    nanoseconds = chunks * chunk_nanoseconds;
    while (mover->statistics().chunks < chunks) std::this_thread::yield();
    EXPECT_EQ(mover->statistics().bytes, chunks * layer_bytes_) << "ahead of the budget";
  }
  ASSERT_TRUE(mover->Drain().ok());
  EXPECT_GT(mover->statistics().budget_waits, 0);
}

TEST_F(MoverTest, BeginsNoChunkWhileALayerRuns) {
  std::unique_ptr<Mover> mover = Make();
  {
    const Mover::Yield layer(mover.get());
    const Mover::Yield nested(mover.get());
    ASSERT_TRUE(mover->Start(Tasks(2)).ok());
    while (mover->statistics().layer_waits == 0 && mover->statistics().chunks == 0) std::this_thread::yield();
    EXPECT_EQ(mover->statistics().chunks, 0);
  }
  ASSERT_TRUE(mover->Drain().ok());
  EXPECT_TRUE(Moved(0) && Moved(1));
  const Mover::Yield none(nullptr);
}

TEST_F(MoverTest, CancelGivesUpWhatWaits) {
  std::unique_ptr<Mover> mover = Make();
  {
    const Mover::Yield layer(mover.get());
    ASSERT_TRUE(mover->Start(Tasks(3)).ok());
    ASSERT_TRUE(mover->Cancel(1).ok());
    ASSERT_TRUE(mover->Cancel(7).ok()) << "a block without a copy";
    const std::vector<CopyTask> given_up = mover->TakeFinished();
    ASSERT_EQ(given_up.size(), 1u);
    EXPECT_EQ(given_up[0].block, 1);
    EXPECT_EQ(given_up[0].outcome, CopyOutcome::kAbandoned);
  }
  ASSERT_TRUE(mover->Drain().ok());
  EXPECT_EQ(mover->TakeFinished().size(), 2u);
  EXPECT_TRUE(Moved(0) && !Moved(1) && Moved(2));
}

TEST_F(MoverTest, CancelWaitsForTheChunkUnderWayAndForNoMore) {
  TheGate().Set(false);
  std::unique_ptr<Mover> mover = Make();
  ASSERT_TRUE(mover->Start(Tasks(2)).ok());
  TheGate().AwaitSomebodyInside();
  ASSERT_TRUE(mover->Cancel(1).ok()) << "another block's chunk is not waited for";
  std::thread opener([&] {
    while (mover->statistics().abandoned < 2) std::this_thread::yield();  // the second Cancel waits
    TheGate().Set(true);
  });
  ASSERT_TRUE(mover->Cancel(0).ok());
  EXPECT_EQ(TheGate().inside(), 0);
  opener.join();
  EXPECT_EQ(mover->statistics().chunks, 1) << "the other layers are not copied";
  const std::vector<CopyTask> given_up = mover->TakeFinished();
  ASSERT_EQ(given_up.size(), 2u);
  EXPECT_EQ(given_up[0].outcome, CopyOutcome::kAbandoned);
  EXPECT_EQ(given_up[1].outcome, CopyOutcome::kAbandoned);
  EXPECT_EQ(mover->in_flight(), 0);
  // It goes on with others.
  ASSERT_TRUE(mover->Start({Task(5)}).ok());
  ASSERT_TRUE(mover->Drain().ok());
  EXPECT_TRUE(Moved(5));
}

TEST_F(MoverTest, CancelAllLeavesNothing) {
  std::unique_ptr<Mover> mover = Make();
  for (int round = 0; round < 50; ++round) {  // wherever the thread happens to be
    ASSERT_TRUE(mover->Start(Tasks(kPages)).ok());
    for (int i = 0; i < round; ++i) std::this_thread::yield();
    ASSERT_TRUE(mover->CancelAll().ok());
    const int64_t chunks = mover->statistics().chunks;
    EXPECT_EQ(mover->TakeFinished().size(), static_cast<size_t>(kPages));
    EXPECT_EQ(mover->in_flight(), 0);
    EXPECT_EQ(mover->statistics().chunks, chunks);
  }
}

TEST_F(MoverTest, AStuckThreadIsFoundAndTheMoverIsDead) {
  TheGate().Set(false);
  MoverOptions options;
  options.timeout = absl::Milliseconds(20);
  std::unique_ptr<Mover> mover = Make(options);
  ASSERT_TRUE(mover->Start(Tasks(1)).ok());
  TheGate().AwaitSomebodyInside();
  const absl::Status status = mover->Cancel(0);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_NE(status.message().find("20ms"), std::string::npos) << status;
  EXPECT_FALSE(mover->Start(Tasks(1)).ok());
  EXPECT_FALSE(mover->CancelAll().ok());
  EXPECT_FALSE(mover->Drain().ok());
  mover.reset();  // returns although the thread is stuck
  const int stuck = Threads();
  TheGate().Set(true);
  while (Threads() == stuck) std::this_thread::yield();  // it ends; what it uses is still there
}

TEST_F(MoverTest, DrainTellsAStuckThreadFromASlowBudget) {
  MoverOptions slow;
  slow.bytes_per_second = static_cast<double>(layer_bytes_) * 200;  // a chunk each 5 ms
  slow.timeout = absl::Seconds(5);
  std::unique_ptr<Mover> mover = Make(slow);
  ASSERT_TRUE(mover->Start(Tasks(3)).ok());
  EXPECT_TRUE(mover->Drain().ok());
  TheGate().Set(false);
  MoverOptions impatient;
  impatient.timeout = absl::Milliseconds(20);
  std::unique_ptr<Mover> stuck = Make(impatient);
  ASSERT_TRUE(stuck->Start(Tasks(1)).ok());
  EXPECT_EQ(stuck->Drain().code(), absl::StatusCode::kDeadlineExceeded);
  TheGate().Set(true);
  const int threads = Threads();
  stuck.reset();
  while (Threads() == threads) std::this_thread::yield();
}

TEST_F(MoverTest, EndsWithWorkQueued) {
  for (int round = 0; round < 20; ++round) {
    std::unique_ptr<Mover> mover = Make();
    ASSERT_TRUE(mover->Start(Tasks(kPages)).ok());
    for (int i = 0; i < round; ++i) std::this_thread::yield();
  }
  std::unique_ptr<Mover> yielding = Make();
  const Mover::Yield layer(yielding.get());
  ASSERT_TRUE(yielding->Start(Tasks(kPages)).ok());
  MoverOptions options;
  options.bytes_per_second = 1;  // hours of waiting
  std::unique_ptr<Mover> waiting = Make(options);
  ASSERT_TRUE(waiting->Start(Tasks(kPages)).ok());
  waiting.reset();
}

}  // namespace
}  // namespace hybridgen
