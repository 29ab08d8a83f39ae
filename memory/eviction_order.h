// The order in which blocks give up their device pages. Publishing follows the same order, so that what is evicted
// next is clean first.
#ifndef MEMORY_EVICTION_ORDER_H_
#define MEMORY_EVICTION_ORDER_H_

#include <cstdint>
#include <utility>

namespace hybridgen {

// A plan is recent if it is the present one or one of the two before it: a running sequence is used by every plan, or
// by every second one where prefill and decode steps alternate.
constexpr int64_t kRecentPlans = 2;

// Which blocks of a sequence are preferred on the device.
struct ProtectionPolicy {
  int block_size = 0;     // tokens
  int sink_blocks = 0;    // first blocks of a sequence
  int recent_blocks = 0;  // newest blocks of a sequence
};

enum class Liveness : uint8_t { kLive, kDead };

// What the manager knows of a block's use.
struct BlockUse {
  Liveness liveness = Liveness::kLive;
  int64_t last_used = 0;        // step of the last plan that wrote or resolved it
  int64_t generated = 0;        // order of the writes at offset 0 over all blocks
  int32_t sequence_block = 0;   // index in the sequence that used it last
  int32_t sequence_tokens = 0;  // length of that sequence then
};

// True if the block is a sink or a recent block of the sequence that used it last.
bool IsProtected(const BlockUse& use, const ProtectionPolicy& policy);

// What goes first. kDead and kUnused blocks go longest unused first, the others oldest generated first.
enum class EvictionClass : uint8_t {
  kDead,       // nothing live refers to it
  kUnused,     // not used by a recent plan
  kUsed,       // used and not protected
  kProtected,  // used, and a sink or a recent block of its sequence
};

// Blocks with smaller keys go first.
using EvictionKey = std::pair<EvictionClass, int64_t>;
EvictionKey EvictionKeyOf(const BlockUse& use, int64_t step, const ProtectionPolicy& policy);

}  // namespace hybridgen

#endif  // MEMORY_EVICTION_ORDER_H_
