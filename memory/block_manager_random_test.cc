// Randomized state test of the block manager against a naive model (block_manager_model.h).
//
// The simulated backend executes steps in order but late, several may be in flight, and copies stop half-way while
// anything else happens. After every operation each block's content in the pages that the manager names, what unretired
// steps read, the state of every block and every statistic are compared with the model's.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/block_manager.h"
#include "memory/block_manager_model.h"

namespace hybridgen {
namespace {

constexpr int kBlockSize = kModelBlockSize;
constexpr int kMaxCopies = 4;  // in flight

// How far planning may run ahead of retirement.
enum class Overlap { kSynchronous, kThreeSteps };
// Whether the tiers hold all blocks: always (a synchronous write must not fail), but for what steps in flight hold, or
// never.
enum class Room { kAlwaysEnough, kMayRunOut, kTooLittle };

struct Config {
  const char* name;
  int num_blocks;
  int device_pages;
  int dram_pages[kNumRoles];
  int cxl_pages[kNumRoles];
  PublishMode mode;
  int watermark;
  Overlap overlap;
  Room room;
  double cxl_share[kNumRoles] = {0, 0};  // multiples of 1/8, so that the model's sums are exact
};

const Config kConfigs[] = {
    // The tight ones: device + host = num_blocks - 1 + 2 * kMaxCopies exactly.
    {"CopyTight", 33, 10, {20, 9}, {10, 21}, PublishMode::kCopy, 5, Overlap::kSynchronous, Room::kAlwaysEnough},
    {"MoveTight", 33, 6, {15, 40}, {19, 0}, PublishMode::kMove, 0, Overlap::kSynchronous, Room::kAlwaysEnough},
    {"CopyInFlight", 33, 12, {22, 16}, {14, 20}, PublishMode::kCopy, 8, Overlap::kThreeSteps, Room::kMayRunOut},
    {"MoveInFlight", 33, 8, {40, 12}, {0, 28}, PublishMode::kMove, 0, Overlap::kThreeSteps, Room::kMayRunOut},
    {"Starved", 33, 7, {7, 6}, {6, 6}, PublishMode::kCopy, 7, Overlap::kThreeSteps, Room::kTooLittle},
    {"HostOnly", 33, 0, {30, 10}, {10, 30}, PublishMode::kCopy, 0, Overlap::kThreeSteps, Room::kMayRunOut},
    {"DeviceOnly", 33, 32, {0, 0}, {0, 0}, PublishMode::kCopy, 16, Overlap::kSynchronous, Room::kAlwaysEnough},
    {"SpreadTight",
     33,
     10,
     {20, 9},
     {10, 21},
     PublishMode::kCopy,
     5,
     Overlap::kSynchronous,
     Room::kAlwaysEnough,
     {0, 0.375}},
    {"Interleaved",
     33,
     8,
     {13, 16},
     {27, 24},
     PublishMode::kMove,
     0,
     Overlap::kThreeSteps,
     Room::kMayRunOut,
     {0.5, 0.5}},
};

int64_t EnvironmentNumber(const char* name, int64_t fallback) {
  const char* text = std::getenv(name);
  int64_t value = fallback;
  if (text != nullptr && !absl::SimpleAtoi(text, &value)) ADD_FAILURE() << name << "=" << text << " is not a number";
  return value;
}

BlockManagerOptions OptionsOf(const Config& config) {
  BlockManagerOptions options;
  options.num_blocks = config.num_blocks;
  options.device_pages = config.device_pages;
  for (int r = 0; r < kNumRoles; ++r) {
    options.dram_pages[r] = config.dram_pages[r];
    options.cxl_pages[r] = config.cxl_pages[r];
    options.cxl_share[r] = config.cxl_share[r];
  }
  options.publish_mode = config.mode;
  options.publish_lag_tokens = 3;
  options.device_low_watermark = config.watermark;
  return options;
}

// Draws operations.
class Simulation : public BlockManagerModel {
 public:
  Simulation(const Config& config, uint64_t seed) : BlockManagerModel(OptionsOf(config)), config_(config), rng_(seed) {}

  // One engine step with everything that may happen around it.
  void RunStep() {
    const size_t allowed = config_.overlap == Overlap::kSynchronous ? 0 : Random(0, 2);
    while (steps_.size() > allowed) AdvanceSteps();
    step_ = manager_->BeginStep();
    open_ = {step_, {}, {}};
    for (ModelBlock& block : blocks_) block.written_page = -1;
    written_.assign(config_.num_blocks, false);
    Log(absl::StrCat("BeginStep ", step_));

    const int sequence_shift = Random(0, 3) * kBlockSize;  // some steps see longer sequences: more blocks are final
    const int writes = Random(0, 5);
    for (int i = 0; i < writes && !Failed(); ++i) {
      Write(sequence_shift);
      Background();
    }
    const int reads = Random(0, 8);
    for (int i = 0; i < reads && !Failed(); ++i) {
      Read(sequence_shift);
      Background();
    }
    steps_.push_back(open_);
    if (!Failed()) PlanCopies();
    for (int i = 0; i < 4 && !Failed(); ++i) Background();
    if (!Failed() && Random(0, 3) == 0) Forget();
  }

  int64_t refused_writes() const { return refused_writes_; }
  int64_t healed() const { return healed_; }
  int64_t made_room() const { return made_room_; }

 private:
  int Random(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng_); }
  int32_t RandomBlock() { return Random(1, config_.num_blocks - 1); }

  void SetUsed(ModelBlock& block, int shift) {
    block.last_used = step_;
    block.sequence_tokens = (block.sequence_block + 1) * kBlockSize + shift;
    block.dead = false;
  }

  void Write(int sequence_shift) {
    if (Random(0, 39) == 0) {  // the null block and padding
      ASSERT_EQ(manager_->PrepareWrite(-Random(0, 1), 0, 1, 0, 1).value().device_page, -1);
      ++expected_.null_block_writes;
      return;
    }
    const int32_t id = RandomBlock();
    ModelBlock& block = blocks_[id];
    const int valid = static_cast<int>(block.tokens.size());
    int offset = 0;
    const int choice = Random(0, 9);
    if (choice < 5 && valid < kBlockSize) offset = valid;  // append
    if (choice >= 5 && choice < 8)
      offset = Random(0, std::min(valid, kBlockSize - 1));  // rewrite, e.g. rejected drafts
    // Reuse after a write of the same step leaves a page in quarantine; the tight configurations have no room for it.
    if (offset == 0 && written_[id]) return;
    const int count = Random(0, 1) == 0 ? kBlockSize - offset : Random(1, kBlockSize - offset);
    written_[id] = true;
    if (offset == 0) {
      block.sequence_block = Random(0, 6);
      block.sequence = static_cast<uint32_t>(rng_());
    }
    const std::vector<BlockState> before = States();
    SetUsed(block, sequence_shift);
    Log(absl::StrCat("PrepareWrite block ", id, " [", offset, ", ", offset + count, ") of ", valid));
    const absl::StatusOr<Residency> where =
        manager_->PrepareWrite(id, offset, count, block.sequence_block, block.sequence_tokens, block.sequence);
    ++block.generation;
    if (!where.ok()) {
      ASSERT_EQ(where.status().code(), absl::StatusCode::kResourceExhausted) << where.status();
      ASSERT_TRUE(config_.room != Room::kAlwaysEnough) << where.status();
      ASSERT_EQ(offset, 0) << "a write in place needs no page";
      ++refused_writes_;
      block.tokens.clear();
      block.written_page = -1;
      CountVictims(before, id);
      Check();
      const BlockManagerStats stats = manager_->Stats();
      ASSERT_EQ(stats.free_pages[0][0], 0) << where.status();
      int64_t free_host[kNumRoles];
      for (int r = 0; r < kNumRoles; ++r) free_host[r] = stats.free_pages[1][r] + stats.free_pages[2][r];
      ASSERT_EQ(std::min(free_host[0], free_host[1]), 0) << where.status();
      for (int32_t other = 1; other < config_.num_blocks; ++other) {
        if (manager_->state(other) != BlockState::kPublished) continue;
        const Residency pages = manager_->Where(other);
        ASSERT_FALSE(Idle(Page(pages.k.tier, PageRole::kKey, pages.k.index)) &&
                     Idle(Page(pages.v.tier, PageRole::kValue, pages.v.index)))
            << "the host copy of clean block " << other << " could have made room";
      }
      return;
    }
    PlannedWrite write{id, offset, *where, {}};
    block.tokens.resize(offset);
    for (int i = 0; i < count; ++i) {
      write.values.push_back(++last_value_);
      block.tokens.push_back({last_value_, step_});
    }
    ASSERT_EQ(where->valid_tokens, offset + count);
    ASSERT_TRUE(where->device_page >= 0 || (where->k.index >= 0 && where->v.index >= 0));
    block.written_page = where->device_page;
    if (offset == 0 && where->device_page < 0) {
      ++expected_.host_direct_writes;
      CheckPlacement(id, where->k, where->v);
    }
    for (const PageRole role : kPageRoles) Page(*where, role).last_use = step_;
    open_.writes.push_back(std::move(write));
    CountVictims(before, id);
    Check();
    if (offset > 0 || where->device_page >= 0) return;
    ASSERT_EQ(manager_->Stats().free_pages[0][0], 0) << "a host page, though the device had room";
    for (int32_t other = 1; other < config_.num_blocks; ++other) {
      ASSERT_FALSE(manager_->state(other) == BlockState::kPublished &&
                   Idle(Page(Tier::kDevice, PageRole::kKey, manager_->Where(other).device_page)))
          << "a host page, though clean block " << other << " could have been evicted";
    }
  }

  void Read(int sequence_shift) {
    const int32_t id = RandomBlock();
    ModelBlock& block = blocks_[id];
    Log(absl::StrCat("Resolve block ", id));
    const int tokens = (block.sequence_block + 1) * kBlockSize + sequence_shift;
    const absl::StatusOr<Residency> where = manager_->Resolve(id, block.sequence_block, tokens);
    ASSERT_TRUE(where.ok()) << where.status();
    ASSERT_EQ(where->valid_tokens, static_cast<int>(block.tokens.size()));
    if (block.tokens.empty()) {
      ASSERT_EQ(where->device_page, -1);
      ASSERT_EQ(where->k.index, -1);
      ASSERT_EQ(where->v.index, -1);
      ++expected_.unwritten_reads;
      return;
    }
    SetUsed(block, sequence_shift);
    for (const PageRole role : kPageRoles) Page(*where, role).last_use = step_;
    open_.reads.push_back({id, *where, {block.tokens, block.tokens}});
    Check();
  }

  void Forget() {
    const int32_t id = RandomBlock();
    if (Random(0, 1) == 0) {
      Log(absl::StrCat("MarkDead ", id));
      manager_->MarkDead(id);
      blocks_[id].dead = true;
    } else {
      Log(absl::StrCat("Free ", id));
      manager_->Free(id);
      ++blocks_[id].generation;
      blocks_[id].tokens.clear();
      blocks_[id].written_page = -1;
    }
    Check();
  }

  void PlanCopies() {
    const int room = kMaxCopies - static_cast<int>(copies_.size());
    if (room <= 0) return;
    const int choice = Random(0, 5);
    if (choice <= 2) {
      for (const CopyTask& task : manager_->PlanPublish(Random(0, room))) {
        const ModelBlock& block = blocks_[task.block];
        const bool behind =
            (block.sequence_block + 1) * kBlockSize + options_.publish_lag_tokens <= block.sequence_tokens;
        ASSERT_TRUE(block.dead || (behind && task.num_tokens == kBlockSize)) << "block " << task.block;
        CheckPlacement(task.block, task.k, task.v);
        Started(task, CopyTask::Kind::kPublish);
      }
    } else if (choice <= 4) {
      std::vector<int32_t> candidates;
      for (int i = 0; i < 8; ++i) candidates.push_back(RandomBlock());
      const std::vector<BlockState> before = States();
      const int64_t free_before = manager_->Stats().free_pages[0][0];
      for (const CopyTask& task : manager_->PlanRecall(candidates, Random(0, room))) {
        ASSERT_NE(std::find(candidates.begin(), candidates.end(), task.block), candidates.end());
        Started(task, CopyTask::Kind::kRecall);
      }
      const int64_t free_after = manager_->Stats().free_pages[0][0];
      ASSERT_GE(free_after, std::min<int64_t>(free_before, options_.device_low_watermark));
      for (int32_t id = 0; id < config_.num_blocks; ++id) {
        if (before[id] != BlockState::kPublished || manager_->state(id) == BlockState::kPublished) continue;
        ASSERT_TRUE(blocks_[id].dead || blocks_[id].last_used < step_ - kRecentPlans) << "a used block made room";
      }
      CountVictims(before, 0);
    } else if (Random(0, 1) == 0) {
      PlanHeal(room);
    } else {
      const absl::StatusOr<CopyTask> task =
          manager_->PlanMigrate(RandomBlock(), kPageRoles[Random(0, 1)], kModelTiers[Random(1, 2)]);
      if (task.ok()) Started(*task, CopyTask::Kind::kMigrate);
    }
    Check();
  }

  void PlanHeal(int room) {
    const BlockManagerStats before = manager_->Stats();
    const int most = Random(0, room);
    const std::vector<CopyTask> tasks = manager_->PlanHeal(most);
    ASSERT_LE(static_cast<int>(tasks.size()), most);
    int64_t moved[kNumRoles] = {};
    for (const CopyTask& task : tasks) {
      const ModelBlock& block = blocks_[task.block];
      ASSERT_NE(task.k.index < 0, task.v.index < 0) << "one role moves";
      const PageRole role = task.k.index >= 0 ? PageRole::kKey : PageRole::kValue;
      const Tier to = role == PageRole::kKey ? task.k.tier : task.v.tier;
      ASSERT_NE(to, (role == PageRole::kKey ? task.from_k : task.from_v).tier);
      ++moved[Index(role)];
      if (!block.dead && block.last_used >= step_ - kRecentPlans) {
        ASSERT_EQ(to, WantedTier(block, role)) << PageRoleName(role) << " in use: block " << task.block;
        ++healed_;
      } else {
        ASSERT_EQ(manager_->Stats().free_pages[Index(OtherTier(to))][Index(role)], 0)
            << "idle " << PageRoleName(role) << " made room where there was some: block " << task.block;
        ++made_room_;
      }
      Started(task, CopyTask::Kind::kMigrate);
    }
    for (int r = 0; r < kNumRoles; ++r) {
      ASSERT_LE(moved[r], (before.free_pages[Index(Tier::kDram)][r] + before.free_pages[Index(Tier::kCxl)][r]) / 2);
    }
  }

  void Started(const CopyTask& task, CopyTask::Kind kind) {
    Log(absl::StrCat("copy ", task.id, " kind ", static_cast<int>(kind), " of block ", task.block, " starts"));
    const ModelBlock& block = blocks_[task.block];
    ASSERT_EQ(task.kind, kind);
    ASSERT_EQ(task.generation, block.generation);
    ASSERT_EQ(task.num_tokens, static_cast<int>(block.tokens.size()));
    for (const Token& token : block.tokens) ASSERT_LE(token.step, retired_) << "the source may not be complete";
    copies_.push_back({task, 0});
  }

  void Background() {
    const int choice = Random(0, 5);
    if (choice <= 2 && !copies_.empty()) {
      AdvanceCopy();
    } else if (choice == 3 && !steps_.empty()) {
      AdvanceSteps();
    }
  }

  // Executes the next planned step, or retires the oldest executed one.
  void AdvanceSteps() {
    const bool can_execute = executed_ < steps_.back().number;
    const bool can_retire = steps_.front().number <= executed_;
    if (can_execute && (!can_retire || Random(0, 1) == 0)) {
      ++executed_;
      Log(absl::StrCat("execute step ", executed_));
      for (const Step& step : steps_) {
        if (step.number == executed_) Execute(step);
      }
    } else {
      retired_ = steps_.front().number;
      Log(absl::StrCat("retire step ", retired_));
      steps_.pop_front();
      manager_->RetireThrough(retired_);
    }
    Check();
  }

  void AdvanceCopy() {
    const size_t chosen = Random(0, static_cast<int>(copies_.size()) - 1);
    RunningCopy& copy = copies_[chosen];
    CopyTask& task = copy.task;
    if (Random(0, 15) == 0) task.outcome = CopyOutcome::kAbandoned;  // wherever it stands
    if (copy.halves_done < 2 && task.outcome == CopyOutcome::kComplete) {
      CopyHalf(copy);
    } else {
      Log(absl::StrCat("copy ", task.id, " finishes"));
      CountCopy(task);
      const CopyTask finished = task;
      copies_.erase(copies_.begin() + chosen);
      ASSERT_TRUE(manager_->FinishCopy(finished).ok());
      ASSERT_EQ(manager_->FinishCopy(finished).code(), absl::StatusCode::kInvalidArgument);
    }
    Check();
  }

  const Config config_;
  std::mt19937_64 rng_;
  std::vector<bool> written_;  // in the open step
  Step open_{};
  uint64_t last_value_ = 0;
  int64_t refused_writes_ = 0, healed_ = 0, made_room_ = 0;
};

class BlockManagerRandomTest : public ::testing::TestWithParam<Config> {};

TEST_P(BlockManagerRandomTest, AgreesWithTheNaiveModel) {
  const uint64_t seed = EnvironmentNumber("HYBRIDGEN_TEST_SEED", 1);
  const int64_t steps = EnvironmentNumber("HYBRIDGEN_TEST_STEPS", 10000);
  const std::string replay =
      absl::StrCat("bazel test //memory:block_manager_random_test --test_env=HYBRIDGEN_TEST_SEED=", seed,
                   " --test_env=HYBRIDGEN_TEST_STEPS=", steps, " --test_filter='*/", GetParam().name, "'");
  std::cout << "replay: " << replay << "\n";
  Simulation simulation(GetParam(), seed);
  for (int64_t step = 1; step <= steps; ++step) {
    simulation.RunStep();
    if (simulation.Failed()) {
      FAIL() << "step " << step << ", replay: " << replay << "\nlast operations:\n" << simulation.History();
    }
  }
  // The run went where the defects are. (Short replays need not.)
  if (steps < 10000) return;
  const BlockManagerStats stats = simulation.Stats();
  const Config& config = GetParam();
  const bool device = config.device_pages > 0, host = config.dram_pages[0] + config.cxl_pages[0] > 0;
  EXPECT_GT(simulation.reads_checked(), steps);
  if (device && host) {
    EXPECT_GT(stats.publishes, 0);
    EXPECT_GT(stats.recalls, 0);
  }
  if (device && host && config.room != Room::kTooLittle) {
    EXPECT_GT(stats.publishes_dropped, 0);
    EXPECT_GT(stats.recalls_dropped, 0);
  }
  if (config.room == Room::kTooLittle) {
    EXPECT_GT(simulation.refused_writes(), 0);
    EXPECT_GT(stats.host_copies_dropped, 0);
  }
  if (device && host && config.mode == PublishMode::kCopy) {
    EXPECT_GT(stats.evictions, 0);
  }
  if (host && config.dram_pages[0] > 0 && config.cxl_pages[0] > 0) {
    EXPECT_GT(stats.migrations, 0);
    EXPECT_GT(simulation.healed(), 0);
    EXPECT_GT(stats.migrations_dropped, 0);
    EXPECT_GT(stats.placement_misses, 0);
  }
  if (host) {
    EXPECT_GT(stats.host_direct_writes, 0);
  }
  std::cout << config.name << ": publishes " << stats.publishes << " (dropped " << stats.publishes_dropped
            << "), evictions " << stats.evictions << ", recalls " << stats.recalls << " (dropped "
            << stats.recalls_dropped << "), migrations " << stats.migrations << " (dropped " << stats.migrations_dropped
            << "), host copies dropped " << stats.host_copies_dropped << ", host-direct writes "
            << stats.host_direct_writes << ", refused writes " << simulation.refused_writes() << ", reads checked "
            << simulation.reads_checked() << ", healed " << simulation.healed() << ", idle pages that made room "
            << simulation.made_room() << "\n";
}

INSTANTIATE_TEST_SUITE_P(Tiers, BlockManagerRandomTest, ::testing::ValuesIn(kConfigs),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace hybridgen