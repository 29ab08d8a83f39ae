// Copies between the tiers: publish, recall, migrate, and what becomes of them when they are done.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "memory/block_manager.h"

namespace hybridgen {
namespace {

// A copy's host pages of one role: destination of a publish or migration, source of a recall.
const HostPage& PageOf(const CopyTask& copy, PageRole role) { return role == PageRole::kKey ? copy.k : copy.v; }
HostPage& PageOf(CopyTask& copy, PageRole role) { return role == PageRole::kKey ? copy.k : copy.v; }
const HostPage& FromPageOf(const CopyTask& copy, PageRole role) {
  return role == PageRole::kKey ? copy.from_k : copy.from_v;
}

}  // namespace

bool BlockManager::IsFinal(const Block& block) const {
  if (block.use.liveness == Liveness::kDead) return true;  // nobody is left to rewrite it
  const int64_t end = (int64_t{block.use.sequence_block} + 1) * options_.block_size;
  return block.valid_tokens == options_.block_size && end + options_.publish_lag_tokens <= block.use.sequence_tokens;
}

const CopyTask& BlockManager::StartCopy(CopyTask task, BlockState state) {
  Block& block = blocks_[task.block];
  task.id = next_copy_++;
  task.generation = block.generation;
  task.num_tokens = block.valid_tokens;
  SetState(block, state);
  ForEachSource(task, &PagePool::Pin);
  return copies_.emplace(task.id, task).first->second;
}

std::vector<CopyTask> BlockManager::PlanPublish(int max_blocks) {
  std::vector<CopyTask> tasks;
  const auto& in_state = counters_.blocks_in_state;
  int64_t wanted = in_state[Index(BlockState::kDeviceDirty)];
  if (options_.publish_mode == PublishMode::kCopy) {
    const int64_t clean_or_soon = in_state[Index(BlockState::kPublished)] + in_state[Index(BlockState::kPublishing)];
    wanted = std::min(wanted, options_.device_low_watermark - device_pool_.num_free() - clean_or_soon);
  }
  wanted = std::min<int64_t>(wanted, max_blocks);
  if (wanted <= 0) return tasks;

  std::vector<std::pair<EvictionKey, int32_t>> dirty;
  for (const int32_t block : device_owner_) {
    if (block < 0) continue;
    const Block& b = blocks_[block];
    if (b.state == BlockState::kDeviceDirty && IsFinal(b) && Settled(b)) dirty.emplace_back(KeyOf(b), block);
  }
  wanted = std::min<int64_t>(wanted, dirty.size());
  std::partial_sort(dirty.begin(), dirty.begin() + wanted, dirty.end());
  for (int64_t i = 0; i < wanted && HostBlockFree(); ++i) {
    CopyTask task;
    task.kind = CopyTask::Kind::kPublish;
    task.block = dirty[i].second;
    task.device_page = blocks_[task.block].device_page;
    for (const PageRole role : kPageRoles) PageOf(task, role) = AllocateHost(blocks_[task.block], role);
    tasks.push_back(StartCopy(task, BlockState::kPublishing));
  }
  return tasks;
}

std::vector<CopyTask> BlockManager::PlanRecall(absl::Span<const int32_t> candidates, int max_blocks) {
  // Chosen before any eviction, so that a block which makes room is not recalled by the same call.
  std::vector<int32_t> wanted;
  for (const int32_t block : candidates) {
    if (static_cast<int64_t>(wanted.size()) >= max_blocks) break;
    if (InRange(block) && blocks_[block].state == BlockState::kHostOnly && Settled(blocks_[block])) {
      wanted.push_back(block);
    }
  }
  std::vector<CopyTask> tasks;
  for (const int32_t block : wanted) {
    if (blocks_[block].state != BlockState::kHostOnly) continue;  // named twice
    // An eviction adds the free page that the recall takes, so the watermark holds either way.
    if (device_pool_.num_free() <= options_.device_low_watermark && !EvictOne(EvictionClass::kUnused)) break;
    CopyTask task;
    task.kind = CopyTask::Kind::kRecall;
    task.block = block;
    task.device_page = device_pool_.Allocate();
    for (const PageRole role : kPageRoles) PageOf(task, role) = blocks_[block].host[Index(role)];
    tasks.push_back(StartCopy(task, BlockState::kRecalling));
  }
  return tasks;
}

absl::StatusOr<CopyTask> BlockManager::PlanMigrate(int32_t block, PageRole role, Tier to) {
  if (!InRange(block) || to == Tier::kDevice) {
    return absl::InvalidArgumentError(absl::StrCat("PlanMigrate: block ", block, " to ", TierName(to),
                                                   ": blocks are in [1, ", options_.num_blocks,
                                                   "), tiers are dram and cxl"));
  }
  const Block& b = blocks_[block];
  const HostPage from = b.host[Index(role)];
  if (b.state != BlockState::kHostOnly || !Settled(b) || from.tier == to) {
    return absl::FailedPreconditionError(absl::StrCat(
        "PlanMigrate: block ", block, " is ", BlockStateName(b.state), ", last written in step ", b.last_written,
        ": it must be host-only, outside ", TierName(to), ", and written by step ", retired_, " or earlier"));
  }
  const HostPage page{to, HostPool(to, role).Allocate()};
  if (page.index < 0) {
    return absl::ResourceExhaustedError(absl::StrCat("PlanMigrate: none of the ", HostPool(to, role).num_pages(),
                                                     " pages of ", TierName(to), " is free for block ", block));
  }
  CopyTask task;
  task.kind = CopyTask::Kind::kMigrate;
  task.block = block;
  PageOf(task, role) = page;
  (role == PageRole::kKey ? task.from_k : task.from_v) = from;
  return StartCopy(task, BlockState::kMigrating);
}

std::vector<CopyTask> BlockManager::PlanHeal(int max_blocks) {
  constexpr int kMostLookedAt = 1024;
  struct Page {
    int32_t block;
    PageRole role;
    Tier wanted;  // where it is to go
  };
  std::vector<Page> displaced[kNumRoles], idle[kNumTiers][kNumRoles];
  const int looked_at = max_blocks > 0 ? std::min(options_.num_blocks, kMostLookedAt) : 0;
  // Calls fn(page, tier, used) for the pages that may be moved.
  const auto for_each = [&](const auto& fn) {
    for (int i = 0; i < looked_at; ++i) {
      const int32_t block = (heal_next_ + i) % options_.num_blocks;
      const Block& b = blocks_[block];
      if (b.state != BlockState::kHostOnly || !Settled(b)) continue;
      const bool used = KeyOf(b).first >= EvictionClass::kUsed;
      if (used && !IsFinal(b)) continue;
      for (const PageRole role : kPageRoles) fn(Page{block, role, WantedTier(b, role)}, b.host[Index(role)].tier, used);
    }
  };
  for_each([&](const Page& page, Tier tier, bool used) {
    if (used && tier != page.wanted) displaced[Index(page.role)].push_back(page);
  });
  if (!displaced[0].empty() || !displaced[1].empty()) {
    for_each([&](const Page& page, Tier tier, bool used) {
      if (!used) idle[Index(tier)][Index(page.role)].push_back({page.block, page.role, OtherTier(tier)});
    });
  }
  heal_next_ = (heal_next_ + looked_at) % options_.num_blocks;

  std::vector<CopyTask> tasks;
  const auto migrate = [&](const Page& page) {
    absl::StatusOr<CopyTask> task = PlanMigrate(page.block, page.role, page.wanted);
    if (task.ok()) tasks.push_back(*std::move(task));  // else a copy of the block's other role was planned just now
  };
  for (const PageRole role : kPageRoles) {
    const int r = Index(role);
    int room = (HostPool(Tier::kDram, role).num_free() + HostPool(Tier::kCxl, role).num_free()) / 2;
    for (const Page& page : displaced[r]) {
      if (room == 0 || static_cast<int>(tasks.size()) >= max_blocks) break;
      std::vector<Page>& leave = idle[Index(page.wanted)][r];
      if (HostPool(page.wanted, role).num_free() > 0) {
        migrate(page);
      } else if (!leave.empty() && HostPool(OtherTier(page.wanted), role).num_free() > 0) {
        migrate(leave.back());
        leave.pop_back();
      } else {
        continue;
      }
      --room;
    }
  }
  return tasks;
}

absl::Status BlockManager::FinishCopy(const CopyTask& task) {
  const auto found = copies_.find(task.id);
  if (found == copies_.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("FinishCopy: no copy with id ", task.id, " is in flight: finish each planned copy once"));
  }
  const CopyTask copy = found->second;
  copies_.erase(found);
  ForEachSource(copy, &PagePool::Unpin);
  Block& b = blocks_[copy.block];
  // An unchanged generation means that the block is still in the state that StartCopy gave it: every other way out of
  // that state is a write or a drop.
  const bool current = b.generation == copy.generation;
  const bool apply = current && task.outcome == CopyOutcome::kComplete;
  if (!apply) ReleaseDestination(copy);
  if (current && !apply) SetState(b, b.device_page >= 0 ? BlockState::kDeviceDirty : BlockState::kHostOnly);
  switch (copy.kind) {
    case CopyTask::Kind::kPublish:
      ++(apply ? counters_.publishes : counters_.publishes_dropped);
      if (!apply) break;
      for (const PageRole role : kPageRoles) b.host[Index(role)] = PageOf(copy, role);
      SetState(b, BlockState::kPublished);
      candidates_stale_ = true;
      if (options_.publish_mode == PublishMode::kMove) {
        ReleaseDevice(b);
        SetState(b, BlockState::kHostOnly);
      }
      break;
    case CopyTask::Kind::kRecall:
      ++(apply ? counters_.recalls : counters_.recalls_dropped);
      if (!apply) break;
      b.device_page = copy.device_page;
      device_owner_[b.device_page] = copy.block;
      SetState(b, BlockState::kPublished);
      candidates_stale_ = true;
      if (options_.publish_mode == PublishMode::kMove) {
        ReleaseHost(b);
        SetState(b, BlockState::kDeviceDirty);
      }
      break;
    case CopyTask::Kind::kMigrate:
      ++(apply ? counters_.migrations : counters_.migrations_dropped);
      if (!apply) break;
      for (const PageRole role : kPageRoles) {
        if (PageOf(copy, role).index < 0) continue;
        HostPool(FromPageOf(copy, role).tier, role).Release(FromPageOf(copy, role).index);
        b.host[Index(role)] = PageOf(copy, role);
      }
      SetState(b, BlockState::kHostOnly);
      break;
  }
  return absl::OkStatus();
}

void BlockManager::ReleaseDestination(const CopyTask& copy) {
  if (copy.kind == CopyTask::Kind::kRecall) {
    device_pool_.Release(copy.device_page);
    return;
  }
  for (const PageRole role : kPageRoles) {
    const HostPage& page = PageOf(copy, role);
    if (page.index >= 0) HostPool(page.tier, role).Release(page.index);
  }
}

void BlockManager::ForEachSource(const CopyTask& copy, void (PagePool::*apply)(int32_t)) {
  if (copy.kind == CopyTask::Kind::kPublish) return (device_pool_.*apply)(copy.device_page);
  for (const PageRole role : kPageRoles) {
    const HostPage& page = copy.kind == CopyTask::Kind::kRecall ? PageOf(copy, role) : FromPageOf(copy, role);
    if (page.index >= 0) (HostPool(page.tier, role).*apply)(page.index);
  }
}

}  // namespace hybridgen
