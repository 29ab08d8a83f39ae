#include "memory/block_manager_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hybridgen {
namespace {

// K and V of one token are told apart by the top bit, so that swapped roles show.
uint64_t Stored(uint64_t token, PageRole role) { return role == PageRole::kKey ? token : token | (uint64_t{1} << 63); }

}  // namespace

BlockManagerModel::BlockManagerModel(BlockManagerOptions options)
    : options_(std::move(options)), blocks_(options_.num_blocks) {
  options_.block_size = kModelBlockSize;
  for (const PageRole role : kPageRoles) {
    pages_[Index(Tier::kDevice)][Index(role)].resize(options_.device_pages);
    pages_[Index(Tier::kDram)][Index(role)].resize(options_.dram_pages[Index(role)]);
    pages_[Index(Tier::kCxl)][Index(role)].resize(options_.cxl_pages[Index(role)]);
  }
  manager_ = BlockManager::Create(options_).value();
}

std::string BlockManagerModel::History() const { return absl::StrJoin(history_, "\n"); }

void BlockManagerModel::Log(std::string line) {
  history_.push_back(std::move(line));
  if (history_.size() > 40) history_.pop_front();
}

BlockManagerModel::FakePage& BlockManagerModel::Page(const Residency& where, PageRole role) {
  if (where.device_page >= 0) return Page(Tier::kDevice, role, where.device_page);
  const HostPage& host = role == PageRole::kKey ? where.k : where.v;
  return Page(host.tier, role, host.index);
}

std::vector<BlockState> BlockManagerModel::States() const {
  std::vector<BlockState> states;
  for (int32_t id = 0; id < options_.num_blocks; ++id) states.push_back(manager_->state(id));
  return states;
}

// The rule is written out: a phase per sequence, and the whole numbers that the share passes along it.
Tier BlockManagerModel::WantedTier(const ModelBlock& block, PageRole role) const {
  const double phase = std::ldexp(static_cast<uint32_t>(block.sequence * 0x9e3779b9u), -32);
  const double share = options_.cxl_share[Index(role)];
  const double before = phase + block.sequence_block * share;
  return std::floor(before + share) > std::floor(before) ? Tier::kCxl : Tier::kDram;
}

void BlockManagerModel::Execute(const Step& step) {
  for (const PlannedWrite& write : step.writes) {
    for (const PageRole role : kPageRoles) {
      FakePage& page = Page(write.where, role);
      for (size_t i = 0; i < write.values.size(); ++i) page.slots[write.offset + i] = Stored(write.values[i], role);
    }
    // Earlier steps that read this very page have run before: what they saw beyond the offset may go. This holds
    // only for a block's own writes in place; anything else that touches a page under a reader is a defect.
    if (write.offset == 0) continue;
    for (Step& earlier : steps_) {
      if (earlier.number >= step.number) continue;
      for (PlannedRead& read : earlier.reads) {
        if (read.block != write.block) continue;
        for (const PageRole role : kPageRoles) {
          std::vector<Token>& expected = read.expected[Index(role)];
          const bool same_page = &Page(read.where, role) == &Page(write.where, role);
          if (same_page && static_cast<int>(expected.size()) > write.offset) expected.resize(write.offset);
        }
      }
    }
  }
}

void BlockManagerModel::CopyHalf(RunningCopy& copy) {
  const CopyTask& task = copy.task;
  const int middle = task.num_tokens / 2;
  const int begin = copy.halves_done == 0 ? 0 : middle, end = copy.halves_done == 0 ? middle : task.num_tokens;
  for (const PageRole role : kPageRoles) {
    const HostPage& host = role == PageRole::kKey ? task.k : task.v;
    const HostPage& from = role == PageRole::kKey ? task.from_k : task.from_v;
    if (host.index < 0) continue;
    FakePage& host_page = Page(host.tier, role, host.index);
    const FakePage* source = nullptr;
    FakePage* destination = &host_page;
    switch (task.kind) {
      case CopyTask::Kind::kPublish:
        source = &Page(Tier::kDevice, role, task.device_page);
        break;
      case CopyTask::Kind::kRecall:
        source = &host_page;
        destination = &Page(Tier::kDevice, role, task.device_page);
        break;
      case CopyTask::Kind::kMigrate:
        source = &Page(from.tier, role, from.index);
        break;
    }
    std::copy(source->slots + begin, source->slots + end, destination->slots + begin);
  }
  Log(absl::StrCat("copy ", task.id, " does half ", copy.halves_done));
  ++copy.halves_done;
}

void BlockManagerModel::CountCopy(const CopyTask& task) {
  const bool applied = task.generation == blocks_[task.block].generation && task.outcome == CopyOutcome::kComplete;
  switch (task.kind) {
    case CopyTask::Kind::kPublish:
      ++(applied ? expected_.publishes : expected_.publishes_dropped);
      break;
    case CopyTask::Kind::kRecall:
      ++(applied ? expected_.recalls : expected_.recalls_dropped);
      break;
    case CopyTask::Kind::kMigrate:
      ++(applied ? expected_.migrations : expected_.migrations_dropped);
      break;
  }
}

void BlockManagerModel::CheckPlacement(int32_t id, const HostPage& k, const HostPage& v) {
  for (const PageRole role : kPageRoles) {
    const Tier wanted = WantedTier(blocks_[id], role);
    const Tier tier = (role == PageRole::kKey ? k : v).tier;
    if (tier == wanted) continue;
    if (role == PageRole::kKey && wanted == Tier::kDram) ++expected_.placement_misses;
    ASSERT_EQ(manager_->Stats().free_pages[Index(wanted)][Index(role)], 0)
        << PageRoleName(role) << " of block " << id << " is not in " << TierName(wanted) << ", which has room";
  }
}

void BlockManagerModel::CountVictims(const std::vector<BlockState>& before, int32_t written) {
  for (int32_t id = 0; id < options_.num_blocks; ++id) {
    if (id == written || before[id] != BlockState::kPublished) continue;
    if (manager_->state(id) == BlockState::kHostOnly) ++expected_.evictions;
    if (manager_->state(id) == BlockState::kDeviceDirty) ++expected_.host_copies_dropped;
  }
}

// Tokens written by executed steps must lie in `page`; later ones are still to be written.
void BlockManagerModel::CheckTokens(const std::vector<Token>& tokens, const FakePage& page, PageRole role, int32_t id,
                                    const char* what) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].step > executed_ || page.slots[i] == Stored(tokens[i].value, role)) continue;
    FAIL() << what << " " << PageRoleName(role) << " of block " << id << " token " << i << " holds " << page.slots[i]
           << ", not " << Stored(tokens[i].value, role);
  }
}

void BlockManagerModel::Check() {
  if (Failed()) return;
  const absl::Status invariants = manager_->CheckInvariants();
  ASSERT_TRUE(invariants.ok()) << invariants;
  for (auto& tier : pages_) {
    for (auto& role : tier) {
      for (FakePage& page : role) page.owners = page.readers = 0;
    }
  }
  BlockManagerStats expected = expected_;
  CheckContents(&expected);
  if (Failed()) return;
  CheckReaders();
  if (Failed()) return;
  CheckStats(&expected);
}

void BlockManagerModel::CheckContents(BlockManagerStats* expected) {
  ASSERT_EQ(manager_->state(0), BlockState::kFree);
  ++expected->blocks_in_state[Index(BlockState::kFree)];
  for (int32_t id = 1; id < options_.num_blocks; ++id) {
    const ModelBlock& block = blocks_[id];
    const Residency where = manager_->Where(id);
    ASSERT_EQ(where.valid_tokens, static_cast<int>(block.tokens.size())) << "block " << id;
    ASSERT_EQ(manager_->generation(id), block.generation) << "block " << id;
    if (block.written_page >= 0) {
      ASSERT_EQ(where.device_page, block.written_page) << "a block of the open step moved";
    }
    const bool device = where.device_page >= 0, host = where.k.index >= 0;
    ASSERT_EQ(host, where.v.index >= 0) << "block " << id << " has one role on the host";
    ASSERT_EQ(device || host, !block.tokens.empty()) << "block " << id;
    BlockState state = device ? (host ? BlockState::kPublished : BlockState::kDeviceDirty)
                              : (host ? BlockState::kHostOnly : BlockState::kFree);
    for (const RunningCopy& copy : copies_) {
      if (copy.task.block != id || copy.task.generation != block.generation) continue;
      state = copy.task.kind == CopyTask::Kind::kPublish  ? BlockState::kPublishing
              : copy.task.kind == CopyTask::Kind::kRecall ? BlockState::kRecalling
                                                          : BlockState::kMigrating;
    }
    ASSERT_EQ(BlockStateName(manager_->state(id)), BlockStateName(state)) << "block " << id;
    ++expected->blocks_in_state[Index(state)];
    for (const PageRole role : kPageRoles) {
      const int r = Index(role);
      if (device) {
        FakePage& page = Page(Tier::kDevice, role, where.device_page);
        ++page.owners;
        ++expected->resident_pages[0][r];
        CheckTokens(block.tokens, page, role, id, "device page:");
      }
      if (host) {
        const HostPage& at = role == PageRole::kKey ? where.k : where.v;
        FakePage& page = Page(at.tier, role, at.index);
        ++page.owners;
        ++expected->resident_pages[Index(at.tier)][r];
        CheckTokens(block.tokens, page, role, id, "host page:");
      }
    }
  }
}

void BlockManagerModel::CheckReaders() {
  for (const Step& step : steps_) {
    for (const PlannedRead& read : step.reads) {
      for (const PageRole role : kPageRoles) {
        CheckTokens(read.expected[Index(role)], Page(read.where, role), role, read.block, "an unretired step's view:");
      }
      ++reads_checked_;
    }
  }
}

void BlockManagerModel::CheckStats(BlockManagerStats* expected) {
  for (const RunningCopy& copy : copies_) {
    const CopyTask& task = copy.task;
    for (const PageRole role : kPageRoles) {
      const HostPage& host = role == PageRole::kKey ? task.k : task.v;
      const HostPage& from = role == PageRole::kKey ? task.from_k : task.from_v;
      if (task.device_page >= 0) {
        FakePage& page = Page(Tier::kDevice, role, task.device_page);
        ++(task.kind == CopyTask::Kind::kRecall ? page.owners : page.readers);
        if (task.kind == CopyTask::Kind::kRecall) ++expected->copying_pages[0][Index(role)];
      }
      if (host.index >= 0) {
        FakePage& page = Page(host.tier, role, host.index);
        ++(task.kind == CopyTask::Kind::kRecall ? page.readers : page.owners);
        if (task.kind != CopyTask::Kind::kRecall) ++expected->copying_pages[Index(host.tier)][Index(role)];
      }
      if (from.index >= 0) ++Page(from.tier, role, from.index).readers;
    }
  }
  const BlockManagerStats stats = manager_->Stats();
  for (const Tier tier : kModelTiers) {
    for (const PageRole role : kPageRoles) {
      const int t = Index(tier), r = Index(role);
      for (const FakePage& page : pages_[t][r]) {
        ASSERT_LE(page.owners, 1) << TierName(tier) << " " << PageRoleName(role);
        if (page.owners > 0) continue;
        ++(Idle(page) ? expected->free_pages : expected->quarantined_pages)[t][r];
      }
      ASSERT_EQ(stats.capacity_pages[t][r], static_cast<int64_t>(pages_[t][r].size()));
      ASSERT_EQ(stats.resident_pages[t][r], expected->resident_pages[t][r]) << t << r;
      ASSERT_EQ(stats.copying_pages[t][r], expected->copying_pages[t][r]) << t << r;
      ASSERT_EQ(stats.quarantined_pages[t][r], expected->quarantined_pages[t][r]) << t << r;
      ASSERT_EQ(stats.free_pages[t][r], expected->free_pages[t][r]) << t << r;
    }
  }
  for (int state = 0; state < kNumBlockStates; ++state) {
    ASSERT_EQ(stats.blocks_in_state[state], expected->blocks_in_state[state]) << state;
  }
  ASSERT_EQ(stats.publishes, expected->publishes);
  ASSERT_EQ(stats.publishes_dropped, expected->publishes_dropped);
  ASSERT_EQ(stats.evictions, expected->evictions);
  ASSERT_EQ(stats.recalls, expected->recalls);
  ASSERT_EQ(stats.recalls_dropped, expected->recalls_dropped);
  ASSERT_EQ(stats.migrations, expected->migrations);
  ASSERT_EQ(stats.migrations_dropped, expected->migrations_dropped);
  ASSERT_EQ(stats.host_copies_dropped, expected->host_copies_dropped);
  ASSERT_EQ(stats.host_direct_writes, expected->host_direct_writes);
  ASSERT_EQ(stats.placement_misses, expected->placement_misses);
  ASSERT_EQ(stats.unwritten_reads, expected->unwritten_reads);
  ASSERT_EQ(stats.null_block_writes, expected->null_block_writes);
}

}  // namespace hybridgen
