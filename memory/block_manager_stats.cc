// What the block manager tells of itself: names, statistics, errors, invariants.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "memory/block_manager.h"

namespace hybridgen {

const char* BlockStateName(BlockState state) {
  switch (state) {
    case BlockState::kFree:
      return "free";
    case BlockState::kDeviceDirty:
      return "device-dirty";
    case BlockState::kPublishing:
      return "publishing";
    case BlockState::kPublished:
      return "published";
    case BlockState::kHostOnly:
      return "host-only";
    case BlockState::kRecalling:
      return "recalling";
    case BlockState::kMigrating:
      return "migrating";
  }
  return "unknown";
}

BlockManagerStats BlockManager::Stats() const {
  BlockManagerStats stats = counters_;
  for (const Tier tier : {Tier::kDevice, Tier::kDram, Tier::kCxl}) {
    for (const PageRole role : kPageRoles) {
      const PagePool& pool = tier == Tier::kDevice ? device_pool_ : HostPool(tier, role);
      const int t = Index(tier), r = Index(role);
      stats.capacity_pages[t][r] = pool.num_pages();
      stats.free_pages[t][r] = pool.num_free();
      stats.quarantined_pages[t][r] = pool.num_quarantined();
      stats.resident_pages[t][r] = pool.num_allocated();  // less the destinations of copies, below
    }
  }
  const auto count_destination = [&stats](Tier tier, PageRole role) {
    ++stats.copying_pages[Index(tier)][Index(role)];
    --stats.resident_pages[Index(tier)][Index(role)];
  };
  for (const auto& [id, copy] : copies_) {
    if (copy.kind == CopyTask::Kind::kRecall) {
      for (const PageRole role : kPageRoles) count_destination(Tier::kDevice, role);
    } else {
      if (copy.k.index >= 0) count_destination(copy.k.tier, PageRole::kKey);
      if (copy.v.index >= 0) count_destination(copy.v.tier, PageRole::kValue);
    }
  }
  return stats;
}

absl::Status BlockManager::NoPage(int32_t block) const {
  const BlockManagerStats stats = Stats();
  std::string pages;
  const auto append = [&](const char* name, int tier, int role) {
    absl::StrAppend(&pages, pages.empty() ? "" : ", ", name, " ", stats.capacity_pages[tier][role], " (",
                    stats.free_pages[tier][role], " free, ",
                    stats.quarantined_pages[tier][role] + stats.copying_pages[tier][role],
                    " held by steps and copies)");
  };
  append("device", Index(Tier::kDevice), Index(PageRole::kKey));
  for (const Tier tier : {Tier::kDram, Tier::kCxl}) {
    for (const PageRole role : kPageRoles) {
      append(absl::StrCat(TierName(tier), " ", PageRoleName(role)).c_str(), Index(tier), Index(role));
    }
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("PrepareWrite: no page for block ", block, " of ", options_.num_blocks, "; pages: ", pages,
                   ". Retire earlier steps and finish copies, enlarge a tier, or use fewer blocks"));
}

absl::Status BlockManager::CheckInvariants() const {
  // Every allocated page has exactly one owner: a block, or a copy whose destination it is.
  struct Ledger {
    const PagePool* pool;
    std::string name;
    std::vector<int> owners;
    std::vector<int> readers;  // copies in flight
  };
  std::vector<Ledger> ledgers;  // device, then DRAM K, DRAM V, CXL K, CXL V
  const auto add_ledger = [&ledgers](const PagePool& pool, std::string name) {
    ledgers.push_back({&pool, std::move(name), std::vector<int>(pool.num_pages()), std::vector<int>(pool.num_pages())});
  };
  add_ledger(device_pool_, "device");
  for (const Tier tier : {Tier::kDram, Tier::kCxl}) {
    for (const PageRole role : kPageRoles) {
      add_ledger(HostPool(tier, role), absl::StrCat(TierName(tier), " ", PageRoleName(role)));
    }
  }
  Ledger& device = ledgers[0];
  const auto host = [&ledgers](Tier tier, PageRole role) -> Ledger& {
    return ledgers[1 + (tier == Tier::kCxl ? kNumRoles : 0) + Index(role)];
  };

  std::vector<int32_t> device_owner(options_.device_pages, -1);
  int64_t in_state[kNumBlockStates] = {};
  for (int32_t block = 0; block < options_.num_blocks; ++block) {
    if (absl::Status status = CheckBlock(block); !status.ok()) return status;
    const Block& b = blocks_[block];
    ++in_state[Index(b.state)];
    if (b.device_page >= 0) {
      ++device.owners[b.device_page];
      device_owner[b.device_page] = block;
    }
    for (const PageRole role : kPageRoles) {
      const HostPage& page = b.host[Index(role)];
      if (page.index >= 0) ++host(page.tier, role).owners[page.index];
    }
  }
  std::vector<int> current_copies(options_.num_blocks, 0);  // copies in flight of the present content
  for (const auto& [id, copy] : copies_) {
    const Block& b = blocks_[copy.block];
    const bool current = copy.generation == b.generation;
    if (current) ++current_copies[copy.block];
    BlockState expected = BlockState::kPublishing;
    for (const PageRole role : kPageRoles) {
      const HostPage& page = role == PageRole::kKey ? copy.k : copy.v;
      const HostPage& from = role == PageRole::kKey ? copy.from_k : copy.from_v;
      if (from.index >= 0) ++host(from.tier, role).readers[from.index];
      if (page.index < 0) continue;
      Ledger& ledger = host(page.tier, role);
      ++(copy.kind == CopyTask::Kind::kRecall ? ledger.readers : ledger.owners)[page.index];
    }
    if (copy.kind == CopyTask::Kind::kPublish) ++device.readers[copy.device_page];
    if (copy.kind == CopyTask::Kind::kRecall) {
      ++device.owners[copy.device_page];
      expected = BlockState::kRecalling;
    }
    if (copy.kind == CopyTask::Kind::kMigrate) expected = BlockState::kMigrating;
    if (current && b.state != expected) {
      return absl::InternalError(absl::StrCat("block ", copy.block, " is ", BlockStateName(b.state),
                                              " while a copy of its present content is in flight"));
    }
  }

  for (int32_t block = 0; block < options_.num_blocks; ++block) {
    const BlockState state = blocks_[block].state;
    const bool in_flight =
        state == BlockState::kPublishing || state == BlockState::kRecalling || state == BlockState::kMigrating;
    if (current_copies[block] != (in_flight ? 1 : 0)) {
      return absl::InternalError(absl::StrCat("block ", block, " is ", BlockStateName(state), " with ",
                                              current_copies[block], " current copies in flight"));
    }
  }
  if (device_owner != device_owner_) return absl::InternalError("device pages and their blocks disagree");
  for (int state = 0; state < kNumBlockStates; ++state) {
    if (in_state[state] != counters_.blocks_in_state[state]) {
      return absl::InternalError(absl::StrCat("blocks ", BlockStateName(static_cast<BlockState>(state)), ": counted ",
                                              counters_.blocks_in_state[state], ", found ", in_state[state]));
    }
  }
  for (const Ledger& ledger : ledgers) {
    if (absl::Status status = ledger.pool->CheckInvariants(); !status.ok()) {
      return absl::InternalError(absl::StrCat(ledger.name, ": ", status.message()));
    }
    for (int page = 0; page < ledger.pool->num_pages(); ++page) {
      if (ledger.owners[page] != (ledger.pool->allocated(page) ? 1 : 0) ||
          ledger.readers[page] != ledger.pool->pins(page)) {
        return absl::InternalError(absl::StrCat(
            ledger.name, " page ", page, ": ", ledger.owners[page], " owners, allocated ", ledger.pool->allocated(page),
            ", ", ledger.readers[page], " copies read it, pins ", ledger.pool->pins(page)));
      }
    }
  }
  return absl::OkStatus();
}

// The block alone: its state says which pages it has.
absl::Status BlockManager::CheckBlock(int32_t block) const {
  const Block& b = blocks_[block];
  bool device = false, host = false;
  switch (b.state) {
    case BlockState::kFree:
      break;
    case BlockState::kDeviceDirty:
    case BlockState::kPublishing:
      device = true;
      break;
    case BlockState::kPublished:
      device = host = true;
      break;
    case BlockState::kHostOnly:
    case BlockState::kRecalling:
    case BlockState::kMigrating:
      host = true;
      break;
  }
  const bool has_content = b.valid_tokens > 0 && b.valid_tokens <= options_.block_size;
  const bool should_have_content = b.state != BlockState::kFree;
  if ((b.device_page >= 0) != device || (b.host[0].index >= 0) != host || (b.host[1].index >= 0) != host ||
      has_content != should_have_content || (!should_have_content && b.valid_tokens != 0)) {
    return absl::InternalError(absl::StrCat("block ", block, " is ", BlockStateName(b.state), " with device page ",
                                            b.device_page, ", host pages ", b.host[0].index, " and ", b.host[1].index,
                                            ", ", b.valid_tokens, " valid tokens"));
  }
  if (block == 0 && b.state != BlockState::kFree) return absl::InternalError("the null block holds content");
  return absl::OkStatus();
}

}  // namespace hybridgen
