// A naive model of the block manager that keeps real page contents, for tests: what was written, where, and when it
// may be seen. From these records alone it recomputes every state and every statistic that the manager reports.
#ifndef MEMORY_BLOCK_MANAGER_MODEL_H_
#define MEMORY_BLOCK_MANAGER_MODEL_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "memory/block_manager.h"

namespace hybridgen {

// Tokens of a block, of every model.
constexpr int kModelBlockSize = 6;
constexpr Tier kModelTiers[] = {Tier::kDevice, Tier::kDram, Tier::kCxl};

// Drives nothing itself: a test draws operations, applies them to `manager_` and to the records below, and calls Check
// after each. Steps are executed in order but late; copies stop half-way. Checks fail as gtest's do.
class BlockManagerModel {
 public:
  bool Failed() const { return ::testing::Test::HasFatalFailure() || ::testing::Test::HasNonfatalFailure(); }
  std::string History() const;  // the last operations, a line each
  BlockManagerStats Stats() const { return manager_->Stats(); }
  int64_t reads_checked() const { return reads_checked_; }

 protected:
  struct Token {
    uint64_t value;
    int64_t step;  // that writes it
  };

  // A page of one role; a device page is two of them with the same index.
  struct FakePage {
    uint64_t slots[kModelBlockSize] = {};
    int64_t last_use = 0;         // step
    int owners = 0, readers = 0;  // recomputed by the checks
  };

  struct ModelBlock {
    std::vector<Token> tokens;
    uint32_t generation = 0;
    bool dead = false;
    int sequence_block = 0, sequence_tokens = 0;
    uint32_t sequence = 0;
    int64_t last_used = 0;
    int32_t written_page = -1;  // device page that the open step writes
  };

  struct PlannedWrite {
    int32_t block;
    int offset;
    Residency where;
    std::vector<uint64_t> values;
  };

  struct PlannedRead {
    int32_t block;
    Residency where;
    std::vector<Token> expected[kNumRoles];
  };

  struct Step {
    int64_t number;
    std::vector<PlannedWrite> writes;
    std::vector<PlannedRead> reads;
  };

  struct RunningCopy {
    CopyTask task;
    int halves_done = 0;
  };

  // Options with num_blocks, pages, shares and modes; the block size is the model's.
  explicit BlockManagerModel(BlockManagerOptions options);

  void Log(std::string line);

  FakePage& Page(Tier tier, PageRole role, int32_t index) { return pages_[Index(tier)][Index(role)].at(index); }
  // The page of one role that a residency says to use.
  FakePage& Page(const Residency& where, PageRole role);
  // After Check: released, the page would be free at once.
  bool Idle(const FakePage& page) const { return page.readers == 0 && page.last_use <= retired_; }
  std::vector<BlockState> States() const;
  // The tier that a share asks for.
  Tier WantedTier(const ModelBlock& block, PageRole role) const;

  // The writes of a step reach their pages.
  void Execute(const Step& step);
  // The next half of a copy's bytes.
  void CopyHalf(RunningCopy& copy);
  // Counts a copy that ends, as published, recalled, migrated or dropped.
  void CountCopy(const CopyTask& task);

  // New host pages of a block lie in the tiers that the shares ask for, unless those are full.
  void CheckPlacement(int32_t id, const HostPage& k, const HostPage& v);
  // Counts clean blocks that lost a page to make room for the write of block `written`.
  void CountVictims(const std::vector<BlockState>& before, int32_t written);
  // Compares contents, what unretired steps read, states and statistics with the manager's.
  void Check();

  BlockManagerOptions options_;
  std::unique_ptr<BlockManager> manager_;
  std::vector<ModelBlock> blocks_;
  std::deque<Step> steps_;  // planned and not retired, oldest first
  std::vector<RunningCopy> copies_;
  BlockManagerStats expected_;  // the cumulative counters
  int64_t step_ = 0, executed_ = 0, retired_ = 0;

 private:
  void CheckTokens(const std::vector<Token>& tokens, const FakePage& page, PageRole role, int32_t id, const char* what);
  void CheckContents(BlockManagerStats* expected);
  void CheckReaders();
  void CheckStats(BlockManagerStats* expected);

  std::vector<FakePage> pages_[kNumTiers][kNumRoles];
  int64_t reads_checked_ = 0;
  std::deque<std::string> history_;
};

}  // namespace hybridgen

#endif  // MEMORY_BLOCK_MANAGER_MODEL_H_
