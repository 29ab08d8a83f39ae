// The block manager: where the K and V of every engine block lie, over the device, DRAM and CXL tiers.
//
// It is pure bookkeeping over page indices (no memory, no threads): the backend executes the copies it asks for.
// It is driven by one planning thread. docs/block_manager.md holds the state table that this code follows.
//
// Vocabulary: a *block* is the engine's unit (block id, block_size tokens, all layers). Its content lies in one
// *device page* (K and V) or in one K page and one V page of host tiers, or in both after a publish.
// A *step* is one engine step; a page that a step may read or write is recycled only after that step retired.
#ifndef MEMORY_BLOCK_MANAGER_H_
#define MEMORY_BLOCK_MANAGER_H_

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "memory/eviction_order.h"
#include "memory/page_pool.h"
#include "memory/spread.h"
#include "memory/tier.h"

namespace hybridgen {

// kCopy: a published block is in both places and eviction is a table change (accelerators).
// kMove: the device page is released when the copy is done (the `cpu` kind, where both are the same DRAM).
enum class PublishMode : uint8_t { kCopy, kMove };

struct BlockManagerOptions {
  int num_blocks = 0;    // engine block ids are [0, num_blocks); id 0 is the engine's null block, never stored
  int block_size = 0;    // tokens
  int device_pages = 0;  // may be 0
  // Host pages by role; the two tiers need not hold equally many of each.
  int dram_pages[kNumRoles] = {0, 0};
  int cxl_pages[kNumRoles] = {0, 0};
  // Share of each role's host pages that comes from CXL, evenly along every sequence (spread.h), while both tiers have
  // free pages; a page whose tier has none comes from the other. 0: DRAM first.
  double cxl_share[kNumRoles] = {0, 0};
  PublishMode publish_mode = PublishMode::kCopy;
  int sink_blocks = 1;           // first blocks of a sequence, preferred on the device
  int recent_blocks = 2;         // newest blocks of a sequence, preferred on the device
  int publish_lag_tokens = 1;    // a block is final once this many tokens behind the head (draft tokens + 1)
  int device_low_watermark = 0;  // publish ahead until free + clean device pages reach this many; recalls leave as many
};

// Blocks that all tiers hold together: device pages plus host blocks (the scarcer role decides).
// With num_blocks - 1 <= BlockCapacity - 2 * (copies in flight), no write fails in synchronous use, i.e. when all
// earlier steps have retired before BeginStep and no block that a step has written is reused by that step. Proof: if a
// new block found no page, every device page would belong to another block that is dirty or publishing, and every host
// page of the scarcer role to another block without a device page (clean blocks would have been evicted, or their host
// copy dropped), except for those that copies in flight hold: at most one destination and one released source each. A
// block counts once, so num_blocks - 2 >= BlockCapacity - 2 * copies: a contradiction. With steps in flight, pages in
// quarantine come on top: a refused write succeeds when it is repeated after they retired.
int64_t BlockCapacity(const BlockManagerOptions& options);

// One page of one role in a host tier; index < 0: none.
struct HostPage {
  Tier tier = Tier::kDram;
  int32_t index = -1;
};

// Where a block's content can be read (or written) in the present step.
struct Residency {
  int32_t device_page = -1;  // >= 0: read here
  HostPage k;                // else here
  HostPage v;
  int32_t valid_tokens = 0;  // tokens [0, valid) hold content; 0 with no page: never written
};

// State of a block's content; docs/block_manager.md has the full table.
enum class BlockState : uint8_t {
  kFree,         // no content
  kDeviceDirty,  // device page only
  kPublishing,   // device page; a copy to host pages is in flight
  kPublished,    // device page and identical host pages
  kHostOnly,     // host pages only
  kRecalling,    // host pages; a copy to a device page is in flight
  kMigrating,    // host pages; a copy to other host pages is in flight
};
constexpr int kNumBlockStates = 7;
constexpr int Index(BlockState state) { return static_cast<int>(state); }
const char* BlockStateName(BlockState state);

// kAbandoned: given up before all bytes were in place; the block stays as if the copy had never begun.
enum class CopyOutcome : uint8_t { kComplete, kAbandoned };

// A copy for the backend to execute, then to report with FinishCopy. Source and destination stay allocated until
// then, whatever happens to the block meanwhile. The source's bytes are complete when the copy is planned.
struct CopyTask {
  enum class Kind : uint8_t { kPublish, kRecall, kMigrate };
  int64_t id = 0;  // names the copy to FinishCopy; unique
  Kind kind = Kind::kPublish;
  int32_t block = 0;
  uint32_t generation = 0;  // of the content copied; FinishCopy drops the result if it has changed
  int32_t num_tokens = 0;
  int32_t device_page = -1;                      // source of a publish, destination of a recall
  HostPage k, v;                                 // destination of a publish or migration, source of a recall
  HostPage from_k, from_v;                       // source of a migration (a role with index < 0 stays where it is)
  CopyOutcome outcome = CopyOutcome::kComplete;  // set by whoever executes the copy, for FinishCopy
};

struct BlockManagerStats {
  // By [Tier][role]; a device page counts in both roles. capacity = resident + free + copying + quarantined.
  int64_t capacity_pages[kNumTiers][kNumRoles] = {};
  int64_t resident_pages[kNumTiers][kNumRoles] = {};  // holding live or cached content
  int64_t free_pages[kNumTiers][kNumRoles] = {};
  int64_t copying_pages[kNumTiers][kNumRoles] = {};      // destinations of copies in flight
  int64_t quarantined_pages[kNumTiers][kNumRoles] = {};  // released, but a step or a copy may still use them
  int64_t blocks_in_state[kNumBlockStates] = {};
  int64_t publishes = 0, publishes_dropped = 0, evictions = 0, recalls = 0, recalls_dropped = 0, migrations = 0,
          migrations_dropped = 0;
  int64_t host_copies_dropped = 0;  // copies of clean blocks given up because host pages were short
  int64_t host_direct_writes = 0;   // blocks begun in a host tier because the device had no room
  int64_t placement_misses = 0;   // K pages meant for DRAM that went to CXL because DRAM had none (V there is no miss)
  int64_t unwritten_reads = 0;    // reads of a block never written (they yield zeros)
  int64_t null_block_writes = 0;  // writes to block 0 or a negative id, dropped
};

class BlockManager {
 public:
  // InvalidArgument: a negative count, no tier at all, a watermark above device_pages, a share outside [0, 1].
  static absl::StatusOr<std::unique_ptr<BlockManager>> Create(const BlockManagerOptions& options);

  // Opens the next step and returns its number (1, 2, ...). Steps retire in order.
  int64_t BeginStep();
  // Steps <= step are complete on every processor: pages they read may be recycled.
  void RetireThrough(int64_t step);

  // Destination of tokens [offset, offset + num_tokens) of `block`, the block's content becoming exactly
  // [0, offset) plus these tokens (truncate on write). All PrepareWrite calls of a step precede its Resolve calls; the
  // first calls get the device pages that are left. offset 0 is reuse: old content is dropped, even if the call then
  // fails. A hole (offset > valid tokens) is InvalidArgument. Block 0 and negative ids give a Residency with no page:
  // the write is dropped and counted.
  // `sequence_block` is the block's index in its sequence, `sequence_tokens` the sequence's length after this step:
  // they decide sink and recent protection and when a block is final (full, and publish_lag_tokens behind the head).
  // `sequence` names the sequence, by any number that stays (its first block's id, say): with the index it decides the
  // tier of the block's host pages. It is taken at offset 0; blocks of one sequence that name it differently are spread
  // evenly, but not together.
  // Errors: InvalidArgument (out of range), FailedPrecondition (no step is open), ResourceExhausted (every tier is full
  // or in quarantine: names the sizes).
  absl::StatusOr<Residency> PrepareWrite(int32_t block, int offset, int num_tokens, int sequence_block,
                                         int sequence_tokens, uint32_t sequence = 0);

  // Where `block` is read in the present step; marks it used. Never-written blocks give a Residency with no page.
  absl::StatusOr<Residency> Resolve(int32_t block, int sequence_block, int sequence_tokens);

  // Engine says that nothing live refers to the block any more; its content is kept (prefix cache) but it is the
  // first to be evicted. A later Resolve or PrepareWrite makes it live again. Ids out of range are ignored.
  void MarkDead(int32_t block);
  // Drops the content. Ids out of range are ignored.
  void Free(int32_t block);

  // Copies worth starting now, at most `max_blocks`, in eviction order: publishes of final blocks while free + clean
  // device pages are below the low watermark (kCopy) or of every final block (kMove). A dead block is final too. Only
  // content whose last write has retired is copied, here and in the other Plan functions: call RetireThrough first.
  std::vector<CopyTask> PlanPublish(int max_blocks);
  // Host-only blocks among `candidates` (most wanted first). They take the free device pages above the low watermark,
  // then those of clean blocks that are dead or that no recent plan has used.
  std::vector<CopyTask> PlanRecall(absl::Span<const int32_t> candidates, int max_blocks);
  // Moves a host-only block's V (or K) to `to`, if a page is free there. Errors: InvalidArgument (block, tier),
  // FailedPrecondition (block not host-only, its last write not retired, already there), ResourceExhausted.
  absl::StatusOr<CopyTask> PlanMigrate(int32_t block, PageRole role, Tier to);
  // Migrations that bring pages of final blocks which a recent plan used to the tiers that placement wants them in, at
  // most `max_blocks`, K before V. Where the wanted tier is full, a page that no recent plan used leaves it, to make
  // room for a later call. Of the free pages of each role at most half are taken. Looks at a bounded number of blocks,
  // each call where the last one ended.
  std::vector<CopyTask> PlanHeal(int max_blocks);
  // The copy is over. Applies it, or drops it if it was abandoned or the block's generation changed. Each copy is
  // finished once; InvalidArgument if none with this id is in flight.
  absl::Status FinishCopy(const CopyTask& task);

  // For reports and tests; `block` in [0, num_blocks).
  BlockState state(int32_t block) const { return blocks_[block].state; }
  uint32_t generation(int32_t block) const { return blocks_[block].generation; }
  // All pages of a block, a published block's host copy included; marks nothing used.
  Residency Where(int32_t block) const;
  BlockManagerStats Stats() const;

  // Recomputes every invariant (each page has exactly one owner or is free, counters agree); for tests.
  absl::Status CheckInvariants() const;

 private:
  struct Block {
    BlockState state = BlockState::kFree;
    uint32_t generation = 0;
    int32_t valid_tokens = 0;
    int32_t device_page = -1;
    HostPage host[kNumRoles];
    int64_t last_written = 0;  // step
    uint32_t sequence = 0;     // that wrote it at offset 0
    BlockUse use;
  };

  explicit BlockManager(const BlockManagerOptions& options);

  absl::Status CheckUse(const char* operation, int32_t block, int sequence_block, int sequence_tokens) const;
  absl::Status NoPage(int32_t block) const;
  bool InRange(int32_t block) const { return block > 0 && block < options_.num_blocks; }
  void SetState(Block& block, BlockState state);
  void MarkUsed(Block& block, int sequence_block, int sequence_tokens);
  void Drop(Block& block);
  void ReleaseDevice(Block& block);
  void ReleaseHost(Block& block);
  // The pages to use in this step, marked used by it.
  Residency UsePages(const Block& block);

  bool AllocateDestination(int32_t block);
  // Evicts the first clean block in eviction order, of class `last` or before; false if there is none.
  bool EvictOne(EvictionClass last);
  bool DropOneHostCopy();
  // The tier that placement wants for the block's host page.
  Tier WantedTier(const Block& block, PageRole role) const;
  HostPage AllocateHost(const Block& block, PageRole role);
  bool HostBlockFree() const;

  bool IsFinal(const Block& block) const;
  // Content complete: the step that wrote it last has retired.
  bool Settled(const Block& block) const { return block.last_written <= retired_; }
  EvictionKey KeyOf(const Block& block) const { return EvictionKeyOf(block.use, step_, protection_); }
  const CopyTask& StartCopy(CopyTask task, BlockState state);
  void ReleaseDestination(const CopyTask& copy);
  // Calls `apply` (PagePool::Pin or Unpin) for every page that the copy reads.
  void ForEachSource(const CopyTask& copy, void (PagePool::*apply)(int32_t));

  PagePool& HostPool(Tier tier, PageRole role) { return host_pools_[tier == Tier::kCxl ? 1 : 0][Index(role)]; }
  const PagePool& HostPool(Tier tier, PageRole role) const {
    return host_pools_[tier == Tier::kCxl ? 1 : 0][Index(role)];
  }
  absl::Status CheckBlock(int32_t block) const;

  const BlockManagerOptions options_;
  const ProtectionPolicy protection_;
  const Spread spread_[kNumRoles];
  std::vector<Block> blocks_;
  PagePool device_pool_;
  PagePool host_pools_[2][kNumRoles];             // [DRAM, CXL][role]
  std::vector<int32_t> device_owner_;             // block of each device page, -1: none
  std::unordered_map<int64_t, CopyTask> copies_;  // in flight, by id
  int64_t next_copy_ = 1;
  int64_t step_ = 0;
  int64_t retired_ = 0;
  int64_t generated_ = 0;  // writes at offset 0 so far
  int32_t heal_next_ = 0;  // block at which PlanHeal goes on

  // Clean blocks that may be evicted, as a heap with the first to go on top. Built when a page is wanted and none is
  // free, and consumed by the evictions that follow; entries are checked again when taken.
  std::vector<std::pair<EvictionKey, int32_t>> candidates_;
  bool candidates_stale_ = true;  // steps, retirements, copies or deaths came since it was built

  BlockManagerStats counters_;  // the cumulative fields and blocks_in_state; Stats() fills in the rest
};

}  // namespace hybridgen

#endif  // MEMORY_BLOCK_MANAGER_H_
