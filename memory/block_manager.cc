// Mechanism of the block manager: steps, writes, reads, room. docs/block_manager.md holds the state table that it
// follows.
#include "memory/block_manager.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

constexpr int32_t kNullBlock = 0;

absl::Status CheckAtLeast(const char* field, int value, int least) {
  if (value >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("BlockManager: ", field, " = ", value, " must be at least ", least));
}

}  // namespace

int64_t BlockCapacity(const BlockManagerOptions& options) {
  int64_t host = std::numeric_limits<int64_t>::max();
  for (const PageRole role : kPageRoles) {
    host = std::min(host, int64_t{options.dram_pages[Index(role)]} + options.cxl_pages[Index(role)]);
  }
  return options.device_pages + host;
}

absl::StatusOr<std::unique_ptr<BlockManager>> BlockManager::Create(const BlockManagerOptions& options) {
  const struct {
    const char* name;
    int value;
    int least;
  } fields[] = {{"num_blocks", options.num_blocks, 1},
                {"block_size", options.block_size, 1},
                {"device_pages", options.device_pages, 0},
                {"dram_pages[key]", options.dram_pages[0], 0},
                {"dram_pages[value]", options.dram_pages[1], 0},
                {"cxl_pages[key]", options.cxl_pages[0], 0},
                {"cxl_pages[value]", options.cxl_pages[1], 0},
                {"sink_blocks", options.sink_blocks, 0},
                {"recent_blocks", options.recent_blocks, 0},
                {"publish_lag_tokens", options.publish_lag_tokens, 0},
                {"device_low_watermark", options.device_low_watermark, 0}};
  for (const auto& field : fields) {
    if (absl::Status status = CheckAtLeast(field.name, field.value, field.least); !status.ok()) return status;
  }
  if (options.device_low_watermark > options.device_pages) {
    return absl::InvalidArgumentError(
        absl::StrCat("BlockManager: device_low_watermark = ", options.device_low_watermark,
                     " must be at most device_pages = ", options.device_pages));
  }
  for (const PageRole role : kPageRoles) {
    const double share = options.cxl_share[Index(role)];
    if (!(share >= 0 && share <= 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("BlockManager: cxl_share[", PageRoleName(role), "] = ", share, " must be in [0, 1]"));
    }
  }
  if (BlockCapacity(options) < 1) {
    return absl::InvalidArgumentError(
        "BlockManager: no tier holds a block: give device_pages, or host pages of both roles");
  }
  return std::unique_ptr<BlockManager>(new BlockManager(options));
}

BlockManager::BlockManager(const BlockManagerOptions& options)
    : options_(options),
      protection_{options.block_size, options.sink_blocks, options.recent_blocks},
      spread_{Spread(options.cxl_share[0]), Spread(options.cxl_share[1])},
      blocks_(options.num_blocks),
      device_pool_(options.device_pages),
      host_pools_{{PagePool(options.dram_pages[0]), PagePool(options.dram_pages[1])},
                  {PagePool(options.cxl_pages[0]), PagePool(options.cxl_pages[1])}},
      device_owner_(options.device_pages, -1) {
  counters_.blocks_in_state[Index(BlockState::kFree)] = options.num_blocks;
}

int64_t BlockManager::BeginStep() {
  candidates_stale_ = true;
  return ++step_;
}

void BlockManager::RetireThrough(int64_t step) {
  retired_ = std::max(retired_, std::min(step, step_));
  device_pool_.RetireThrough(retired_);
  for (auto& tier : host_pools_) {
    for (PagePool& pool : tier) pool.RetireThrough(retired_);
  }
  candidates_stale_ = true;
}

// ---------------------------------------------------------------------------------------------------------------------
// Writes and reads.

absl::Status BlockManager::CheckUse(const char* operation, int32_t block, int sequence_block,
                                    int sequence_tokens) const {
  if (step_ == 0) {
    return absl::FailedPreconditionError(absl::StrCat(operation, ": no step is open: call BeginStep first"));
  }
  if (block >= options_.num_blocks) {
    return absl::InvalidArgumentError(
        absl::StrCat(operation, ": block ", block, " is not in [0, ", options_.num_blocks, ")"));
  }
  if (sequence_block < 0 || int64_t{sequence_block} * options_.block_size >= sequence_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(operation, ": sequence_block ", sequence_block, " of block ", block,
                                                   " lies outside a sequence of ", sequence_tokens,
                                                   " tokens in blocks of ", options_.block_size));
  }
  return absl::OkStatus();
}

absl::StatusOr<Residency> BlockManager::PrepareWrite(int32_t block, int offset, int num_tokens, int sequence_block,
                                                     int sequence_tokens, uint32_t sequence) {
  if (block <= kNullBlock) {
    ++counters_.null_block_writes;
    return Residency();
  }
  if (absl::Status status = CheckUse("PrepareWrite", block, sequence_block, sequence_tokens); !status.ok()) {
    return status;
  }
  if (offset < 0 || num_tokens < 1 || num_tokens > options_.block_size - offset) {
    return absl::InvalidArgumentError(absl::StrCat("PrepareWrite: ", num_tokens, " tokens at offset ", offset,
                                                   " of block ", block, " do not lie in [0, ", options_.block_size,
                                                   ")"));
  }
  Block& b = blocks_[block];
  if (offset > b.valid_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("PrepareWrite: offset ", offset, " of block ", block,
                                                   " leaves a hole: only tokens [0, ", b.valid_tokens,
                                                   ") hold content; write from there or from 0"));
  }
  MarkUsed(b, sequence_block, sequence_tokens);
  if (offset == 0) {
    Drop(b);
    b.sequence = sequence;
    if (!AllocateDestination(block)) return NoPage(block);
    b.use.generated = ++generated_;
  } else {
    // In place: the device page if there is one, else the host pages. Whatever else holds or copies the old content is
    // given up; the generation makes copies in flight drop their result.
    ++b.generation;
    if (b.state == BlockState::kPublished) ReleaseHost(b);
    SetState(b, b.device_page >= 0 ? BlockState::kDeviceDirty : BlockState::kHostOnly);
  }
  b.valid_tokens = offset + num_tokens;
  b.last_written = step_;
  return UsePages(b);
}

absl::StatusOr<Residency> BlockManager::Resolve(int32_t block, int sequence_block, int sequence_tokens) {
  if (absl::Status status = CheckUse("Resolve", block, sequence_block, sequence_tokens); !status.ok()) return status;
  if (block <= kNullBlock || blocks_[block].state == BlockState::kFree) {
    ++counters_.unwritten_reads;
    return Residency();
  }
  MarkUsed(blocks_[block], sequence_block, sequence_tokens);
  return UsePages(blocks_[block]);
}

void BlockManager::MarkDead(int32_t block) {
  if (!InRange(block)) return;
  blocks_[block].use.liveness = Liveness::kDead;
  candidates_stale_ = true;
}

void BlockManager::Free(int32_t block) {
  if (InRange(block)) Drop(blocks_[block]);
}

Residency BlockManager::Where(int32_t block) const {
  const Block& b = blocks_[block];
  return {b.device_page, b.host[0], b.host[1], b.valid_tokens};
}

Residency BlockManager::UsePages(const Block& block) {
  Residency residency;
  residency.valid_tokens = block.valid_tokens;
  if (block.device_page >= 0) {
    residency.device_page = block.device_page;
    device_pool_.Use(block.device_page, step_);
    return residency;
  }
  residency.k = block.host[0];
  residency.v = block.host[1];
  for (const PageRole role : kPageRoles) {
    const HostPage& page = block.host[Index(role)];
    HostPool(page.tier, role).Use(page.index, step_);
  }
  return residency;
}

void BlockManager::MarkUsed(Block& block, int sequence_block, int sequence_tokens) {
  block.use.liveness = Liveness::kLive;
  block.use.last_used = step_;
  block.use.sequence_block = sequence_block;
  block.use.sequence_tokens = sequence_tokens;
}

void BlockManager::SetState(Block& block, BlockState state) {
  --counters_.blocks_in_state[Index(block.state)];
  ++counters_.blocks_in_state[Index(state)];
  block.state = state;
}

void BlockManager::Drop(Block& block) {
  ++block.generation;
  block.valid_tokens = 0;
  if (block.device_page >= 0) ReleaseDevice(block);
  if (block.host[0].index >= 0) ReleaseHost(block);
  SetState(block, BlockState::kFree);
}

void BlockManager::ReleaseDevice(Block& block) {
  device_owner_[block.device_page] = -1;
  device_pool_.Release(block.device_page);
  block.device_page = -1;
}

void BlockManager::ReleaseHost(Block& block) {
  for (const PageRole role : kPageRoles) {
    HostPage& page = block.host[Index(role)];
    HostPool(page.tier, role).Release(page.index);
    page = HostPage();
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Room: free pages, eviction, host pages.

bool BlockManager::AllocateDestination(int32_t block) {
  Block& b = blocks_[block];
  b.device_page = device_pool_.Allocate();
  if (b.device_page < 0 && EvictOne(EvictionClass::kProtected)) b.device_page = device_pool_.Allocate();
  if (b.device_page >= 0) {
    device_owner_[b.device_page] = block;
    SetState(b, BlockState::kDeviceDirty);
    return true;
  }
  while (!HostBlockFree()) {
    if (!DropOneHostCopy()) return false;
  }
  for (const PageRole role : kPageRoles) b.host[Index(role)] = AllocateHost(b, role);
  SetState(b, BlockState::kHostOnly);
  ++counters_.host_direct_writes;
  return true;
}

// Frees one device page by leaving a clean block to its host copy. Pages that an unretired step or a copy uses would
// only go to quarantine, so their blocks are no candidates; that covers all blocks used in this step.
bool BlockManager::EvictOne(EvictionClass last) {
  if (candidates_stale_) {
    candidates_.clear();
    for (const int32_t block : device_owner_) {
      if (block < 0) continue;
      const Block& b = blocks_[block];
      if (b.state == BlockState::kPublished && device_pool_.Idle(b.device_page)) {
        candidates_.emplace_back(KeyOf(b), block);
      }
    }
    std::make_heap(candidates_.begin(), candidates_.end(), std::greater<>());
    candidates_stale_ = false;
  }
  while (!candidates_.empty() && candidates_.front().first.first <= last) {
    std::pop_heap(candidates_.begin(), candidates_.end(), std::greater<>());
    Block& b = blocks_[candidates_.back().second];
    candidates_.pop_back();
    if (b.state != BlockState::kPublished || !device_pool_.Idle(b.device_page)) continue;
    ReleaseDevice(b);
    SetState(b, BlockState::kHostOnly);
    ++counters_.evictions;
    return true;
  }
  return false;
}

// Frees host pages by making a clean block dirty again: its device page is the content. Reached only when no clean
// block can be evicted (steps or copies use their device pages), so a scan per call is good enough. The block that
// would be evicted last gives up its copy first.
bool BlockManager::DropOneHostCopy() {
  int32_t victim = -1;
  for (const int32_t block : device_owner_) {
    if (block < 0 || blocks_[block].state != BlockState::kPublished) continue;
    bool helps = true;  // a page comes free in every role that lacks one
    for (const PageRole role : kPageRoles) {
      const HostPage& page = blocks_[block].host[Index(role)];
      const bool role_is_short = HostPool(Tier::kDram, role).num_free() + HostPool(Tier::kCxl, role).num_free() == 0;
      if (role_is_short && !HostPool(page.tier, role).Idle(page.index)) helps = false;
    }
    if (helps && (victim < 0 || KeyOf(blocks_[victim]) < KeyOf(blocks_[block]))) victim = block;
  }
  if (victim < 0) return false;
  ReleaseHost(blocks_[victim]);
  SetState(blocks_[victim], BlockState::kDeviceDirty);
  ++counters_.host_copies_dropped;
  return true;
}

bool BlockManager::HostBlockFree() const {
  for (const PageRole role : kPageRoles) {
    if (HostPool(Tier::kDram, role).num_free() + HostPool(Tier::kCxl, role).num_free() == 0) return false;
  }
  return true;
}

Tier BlockManager::WantedTier(const Block& block, PageRole role) const {
  return spread_[Index(role)].OnCxl(block.use.sequence_block, block.sequence) ? Tier::kCxl : Tier::kDram;
}

// The wanted tier, else the other one: where a page lies is a matter of speed, that there is one is not.
HostPage BlockManager::AllocateHost(const Block& block, PageRole role) {
  const Tier wanted = WantedTier(block, role);
  const HostPage page{wanted, HostPool(wanted, role).Allocate()};
  if (page.index >= 0) return page;
  if (role == PageRole::kKey && wanted == Tier::kDram) ++counters_.placement_misses;
  return {OtherTier(wanted), HostPool(OtherTier(wanted), role).Allocate()};
}

}  // namespace hybridgen
