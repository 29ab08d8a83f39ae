// In a guest: pages migrate between DRAM and the far memory while threads read them as a step's workers do; no read
// ever sees anything but the block's content.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backend/host_tiers.h"
#include "backend/mover.h"
#include "backend/page_copier.h"
#include "gtest/gtest.h"
#include "kernels/cpu_features.h"
#include "kernels/kernel_table.h"
#include "memory/block_manager.h"
#include "tests/numa_vm/guest.h"

namespace hybridgen {
namespace {

constexpr int kBlocks = 12;  // ids 1 to 12
constexpr int kPages = 16;   // of each tier and role: four are free for copies
constexpr int kTokens = 16;
constexpr int kReaders = 2;
constexpr int64_t kMigrations = 300;
constexpr char kDaxDevice[] = "/dev/dax0.0";

// Where each block's K and V can be read in a step.
struct Snapshot {
  int64_t step = 0;
  std::vector<const uint32_t*> pages[kNumRoles];  // [block]
};

class MigrationGuestTest : public testing::Test {
 protected:
  void SetUp() override {
    PageGeometry geometry;
    geometry.format = PageFormat::kPackedV1;
    geometry.page_tokens = kTokens;
    geometry.kv_heads = 2;
    geometry.head_size = 32;
    page_words_ = PackedPageBytes(geometry.dtype, geometry.kv_heads, kTokens, geometry.head_size) / sizeof(uint32_t);

    HostTiersOptions tiers;
    BlockManagerOptions manager;
    manager.num_blocks = kBlocks + 1;
    manager.block_size = kTokens;
    for (int role = 0; role < kNumRoles; ++role) {
      tiers.page_bytes[role] = page_words_ * sizeof(uint32_t);
      tiers.dram_pages[role] = tiers.cxl_pages[role] = kPages;
      manager.dram_pages[role] = manager.cxl_pages[role] = kPages;
    }
    tiers.dram_nodes = {HomeNode()};
    tiers.cxl_node = FarNode();
    if (FarNode() == kNoNode && std::filesystem::exists(kDaxDevice)) tiers.cxl_device = kDaxDevice;
    absl::StatusOr<std::unique_ptr<HostTiers>> host = HostTiers::Create(tiers);
    ASSERT_TRUE(host.ok()) << host.status();
    host_ = *std::move(host);
    blocks_ = BlockManager::Create(manager).value();
    LayerPages layer;
    layer.host = geometry;
    copier_ = std::make_shared<const PageCopier>(SelectKernels(CpuFeatures()), host_.get(),
                                                 std::vector<LayerPages>{layer});
  }

  uint32_t* Page(PageRole role, const HostPage& page) const {
    return reinterpret_cast<uint32_t*>(host_->Address(role, page));
  }
  // Content of a block: every word tells the block, the role and its place.
  uint32_t Word(int block, PageRole role, int64_t i) const {
    return static_cast<uint32_t>(block << 20 | static_cast<int>(role) << 18 | i);
  }

  void WriteAll() {
    step_ = blocks_->BeginStep();
    for (int block = 1; block <= kBlocks; ++block) {
      const Residency to = blocks_->PrepareWrite(block, 0, kTokens, block - 1, kBlocks * kTokens + 1000).value();
      for (const PageRole role : kPageRoles) {
        uint32_t* const page = Page(role, role == PageRole::kKey ? to.k : to.v);
        for (int64_t i = 0; i < page_words_; ++i) page[i] = Word(block, role, i);
      }
    }
    blocks_->RetireThrough(step_);
  }

  Snapshot Resolve() {
    Snapshot snapshot;
    snapshot.step = step_ = blocks_->BeginStep();
    for (int block = 1; block <= kBlocks; ++block) {
      const Residency at = blocks_->Resolve(block, block - 1, kBlocks * kTokens + 1000).value();
      snapshot.pages[Index(PageRole::kKey)].push_back(Page(PageRole::kKey, at.k));
      snapshot.pages[Index(PageRole::kValue)].push_back(Page(PageRole::kValue, at.v));
    }
    return snapshot;
  }

  // Reads what the newest snapshot names, again and again; `reading` is the step whose pages may be touched.
  void Read(std::atomic<int64_t>& reading) {
    while (!stop_.load()) {
      Snapshot snapshot;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        snapshot = newest_;
        reading.store(snapshot.step);
      }
      for (int block = 1; block <= kBlocks; ++block) {
        for (const PageRole role : kPageRoles) {
          const uint32_t* const page = snapshot.pages[Index(role)][block - 1];
          for (int64_t i = 0; i < page_words_; ++i) wrong_words_ += page[i] != Word(block, role, i);
        }
      }
      ++rounds_read_;
    }
  }

  int64_t page_words_ = 0;
  std::unique_ptr<HostTiers> host_;
  std::unique_ptr<BlockManager> blocks_;
  std::shared_ptr<const PageCopier> copier_;
  int64_t step_ = 0;
  std::mutex mutex_;
  Snapshot newest_;
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> wrong_words_{0};
  std::atomic<int64_t> rounds_read_{0};
};

TEST_F(MigrationGuestTest, ContentsAreIntactUnderConcurrentReads) {
  WriteAll();
  newest_ = Resolve();
  Mover mover(copier_, {/*bytes_per_second=*/1e12, /*timeout=*/absl::Minutes(5)});
  std::atomic<int64_t> reading[kReaders] = {};
  for (std::atomic<int64_t>& step : reading) step.store(newest_.step);
  std::vector<std::thread> readers;
  for (int i = 0; i < kReaders; ++i) readers.emplace_back([this, &reading, i] { Read(reading[i]); });

  std::mt19937 rng(20261124);
  int64_t planned = 0;
  // An emulated machine may be slow, but each turn plans or finishes something once the readers move on.
  for (int turn = 0; blocks_->Stats().migrations < kMigrations && turn < 1000000; ++turn) {
    for (const CopyTask& task : mover.TakeFinished()) ASSERT_TRUE(blocks_->FinishCopy(task).ok());
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      newest_ = Resolve();
      blocks_->RetireThrough(std::min(reading[0].load(), reading[1].load()) - 1);
    }
    std::vector<CopyTask> tasks;
    for (int i = 0; i < 3 && mover.in_flight() + static_cast<int64_t>(tasks.size()) < 4; ++i) {
      const int block = 1 + static_cast<int>(rng() % kBlocks);
      const PageRole role = kPageRoles[rng() % kNumRoles];
      const Residency at = blocks_->Where(block);
      const Tier from = (role == PageRole::kKey ? at.k : at.v).tier;
      absl::StatusOr<CopyTask> task = blocks_->PlanMigrate(block, role, from == Tier::kDram ? Tier::kCxl : Tier::kDram);
      if (task.ok()) tasks.push_back(*std::move(task));  // else it migrates already, or no page is free yet
    }
    planned += static_cast<int64_t>(tasks.size());
    ASSERT_TRUE(mover.Start(std::move(tasks)).ok());
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  ASSERT_TRUE(mover.Drain().ok());
  for (const CopyTask& task : mover.TakeFinished()) ASSERT_TRUE(blocks_->FinishCopy(task).ok());
  stop_.store(true);
  for (std::thread& reader : readers) reader.join();

  EXPECT_EQ(wrong_words_.load(), 0);
  EXPECT_GT(rounds_read_.load(), kReaders);
  EXPECT_GE(blocks_->Stats().migrations, kMigrations);
  EXPECT_EQ(blocks_->Stats().migrations, planned) << "no block was written, so no copy is dropped";
  std::cout << planned << " migrations under " << rounds_read_.load() << " readings of " << kBlocks << " blocks\n";

  // The block manager's tiers are the kernel's nodes (it knows none of a mapped device).
  if (FarNode() == kNoNode) return;
  for (int block = 1; block <= kBlocks; ++block) {
    const Residency at = blocks_->Where(block);
    for (const PageRole role : kPageRoles) {
      const HostPage& page = role == PageRole::kKey ? at.k : at.v;
      const std::map<int, int64_t> nodes = PagesByNode(Page(role, page), page_words_ * sizeof(uint32_t));
      ASSERT_EQ(nodes.size(), 1u);
      EXPECT_EQ(nodes.begin()->first, page.tier == Tier::kDram ? HomeNode() : FarNode());
    }
  }
}

}  // namespace
}  // namespace hybridgen
