// A small block manager and a driver of it, for its tests.
#ifndef MEMORY_BLOCK_MANAGER_DRIVER_H_
#define MEMORY_BLOCK_MANAGER_DRIVER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "memory/block_manager.h"

namespace hybridgen {

constexpr int kBlockSize = 4;
constexpr int kLong = 1000;  // a sequence length that leaves every block of these tests far behind the head

inline BlockManagerOptions SmallOptions() {
  BlockManagerOptions options;
  options.num_blocks = 24;
  options.block_size = kBlockSize;
  options.device_pages = 3;
  options.dram_pages[0] = 8;
  options.dram_pages[1] = 4;
  options.cxl_pages[0] = 12;
  options.cxl_pages[1] = 16;
  options.device_low_watermark = 2;
  return options;
}

// A manager driven as a synchronous backend drives it.
class Driver {
 public:
  explicit Driver(const BlockManagerOptions& options = SmallOptions())
      : options_(options), manager_(BlockManager::Create(options).value()) {}

  BlockManager* operator->() { return manager_.get(); }

  // Retires everything and opens the next step.
  void NextStep() {
    manager_->RetireThrough(step_);
    step_ = manager_->BeginStep();
  }
  void RetireAll() { manager_->RetireThrough(step_); }
  int64_t step() const { return step_; }

  // Writes a full block of a long sequence, so that the block is final once the step retired.
  Residency WriteFull(int32_t block, int sequence_block = 5) {
    return manager_->PrepareWrite(block, 0, kBlockSize, sequence_block, kLong).value();
  }
  // One token at the head of its sequence: never final while it lives.
  Residency WriteTail(int32_t block) { return manager_->PrepareWrite(block, 0, 1, 0, 1).value(); }

  // Publishes `block`, which must be the only candidate.
  void Publish(int32_t block) {
    RetireAll();
    const std::vector<CopyTask> tasks = manager_->PlanPublish(1);
    ASSERT_EQ(tasks.size(), 1u);
    ASSERT_EQ(tasks[0].block, block);
    ASSERT_TRUE(manager_->FinishCopy(tasks[0]).ok());
  }

  // Pages of all kinds that nobody holds any more, once everything is freed.
  void ExpectNothingLeaks() {
    for (int32_t block = 0; block < options_.num_blocks; ++block) manager_->Free(block);
    RetireAll();
    const BlockManagerStats stats = manager_->Stats();
    for (int tier = 0; tier < kNumTiers; ++tier) {
      for (int role = 0; role < kNumRoles; ++role) {
        EXPECT_EQ(stats.free_pages[tier][role], stats.capacity_pages[tier][role]) << tier << role;
        EXPECT_EQ(stats.resident_pages[tier][role], 0) << tier << role;
      }
    }
    EXPECT_EQ(stats.blocks_in_state[Index(BlockState::kFree)], options_.num_blocks);
  }

 private:
  BlockManagerOptions options_;
  std::unique_ptr<BlockManager> manager_;
  int64_t step_ = 0;
};

}  // namespace hybridgen

#endif  // MEMORY_BLOCK_MANAGER_DRIVER_H_
