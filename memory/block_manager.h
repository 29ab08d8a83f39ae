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
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "memory/tier.h"

namespace hybridgen {

// kCopy: a published block is in both places and eviction is a table change (accelerators).
// kMove: the device page is released when the copy is done (the `cpu` kind, where both are the same DRAM).
enum class PublishMode : uint8_t { kCopy, kMove };

struct BlockManagerOptions {
  int num_blocks = 0;    // engine block ids are [0, num_blocks); id 0 is the engine's null block, never stored
  int block_size = 0;    // tokens
  int device_pages = 0;  // may be 0
  // Host pages by [Tier::kDram / kCxl][role].
  int dram_pages[kNumRoles] = {0, 0};
  int cxl_pages[kNumRoles] = {0, 0};
  PublishMode publish_mode = PublishMode::kCopy;
  int sink_blocks = 1;       // first blocks of a sequence, preferred on the device
  int recent_blocks = 2;     // newest blocks of a sequence, preferred on the device
  int publish_lag_tokens = 1;  // a block is final once this many tokens behind the head (draft tokens + 1)
  int device_low_watermark = 0;  // publish ahead until free + clean device pages reach this many
};

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
const char* BlockStateName(BlockState state);

// A copy for the backend to execute, then to report with FinishCopy. Source and destination stay allocated until
// then, whatever happens to the block meanwhile.
struct CopyTask {
  enum class Kind : uint8_t { kPublish, kRecall, kMigrate } kind = Kind::kPublish;
  int32_t block = 0;
  uint32_t generation = 0;  // of the content copied; FinishCopy drops the result if it has changed
  int32_t num_tokens = 0;
  int32_t device_page = -1;  // source of a publish, destination of a recall
  HostPage k, v;             // destination of a publish or migration, source of a recall
  HostPage from_k, from_v;   // source of a migration (a role with index < 0 stays where it is)
};

struct BlockManagerStats {
  int64_t resident_pages[kNumTiers][kNumRoles] = {};  // pages holding live or cached content (device pages count in both roles)
  int64_t capacity_pages[kNumTiers][kNumRoles] = {};
  int64_t blocks_in_state[kNumBlockStates] = {};
  int64_t quarantined_pages = 0;       // released, waiting for readers to retire
  int64_t publishes = 0, publishes_dropped = 0, evictions = 0, recalls = 0, recalls_dropped = 0, migrations = 0,
          migrations_dropped = 0;
  int64_t host_direct_writes = 0;      // blocks begun in a host tier because the device had no room
  int64_t placement_misses = 0;        // K pages outside DRAM, or V pages outside the tier that the policy preferred
  int64_t unwritten_reads = 0;         // reads of a block never written (they yield zeros)
  int64_t null_block_writes = 0;       // writes to block 0 or a negative id, dropped
};

class BlockManager {
 public:
  static absl::StatusOr<std::unique_ptr<BlockManager>> Create(const BlockManagerOptions& options);

  // Opens the next step and returns its number (1, 2, ...). Steps retire in order.
  int64_t BeginStep();
  // Steps <= step are complete on every processor: pages they read may be recycled.
  void RetireThrough(int64_t step);

  // Destination of tokens [offset, offset + num_tokens) of `block`, the block's content becoming exactly
  // [0, offset) plus these tokens (truncate on write). All PrepareWrite calls of a step precede its Resolve calls.
  // offset 0 is reuse: old content is dropped. A hole (offset > valid tokens) is InvalidArgument. Block 0 and
  // negative ids give a Residency with no page: the write is dropped and counted.
  // `sequence_block` is the block's index in its sequence, `sequence_tokens` the sequence's length after this step:
  // they decide sink and recent protection and when a block is final (full, and publish_lag_tokens behind the head).
  // Errors: InvalidArgument (out of range), ResourceExhausted (every tier is full: names the sizes).
  absl::StatusOr<Residency> PrepareWrite(int32_t block, int offset, int num_tokens, int sequence_block,
                                         int sequence_tokens);

  // Where `block` is read in the present step; marks it used. Never-written blocks give a Residency with no page.
  absl::StatusOr<Residency> Resolve(int32_t block, int sequence_block, int sequence_tokens);

  // Engine says that nothing live refers to the block any more; its content is kept (prefix cache) but it is the
  // first to be evicted. A later Resolve or PrepareWrite makes it live again.
  void MarkDead(int32_t block);
  // Drops the content.
  void Free(int32_t block);

  // Copies worth starting now, at most `max_blocks`: publishes of final blocks, oldest first, while free + clean
  // device pages are below the low watermark (kCopy) or for every final block (kMove).
  std::vector<CopyTask> PlanPublish(int max_blocks);
  // Host-only blocks among `candidates` (most wanted first) that fit into free device pages above the watermark.
  std::vector<CopyTask> PlanRecall(absl::Span<const int32_t> candidates, int max_blocks);
  // Moves a host-only block's V (or K) to `to`, if a page is free there.
  absl::StatusOr<CopyTask> PlanMigrate(int32_t block, PageRole role, Tier to);
  // The copy's bytes are in place. Applies it, or drops it if the block's generation changed.
  void FinishCopy(const CopyTask& task);

  BlockState state(int32_t block) const;
  uint32_t generation(int32_t block) const;
  BlockManagerStats Stats() const;

  // Recomputes every invariant (each page has exactly one owner or is free, counters agree); for tests.
  absl::Status CheckInvariants() const;

  ~BlockManager();

 private:
  class Impl;
  explicit BlockManager(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace hybridgen

#endif  // MEMORY_BLOCK_MANAGER_H_
