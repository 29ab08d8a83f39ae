// Eviction policy, apart from the mechanism in block_manager.cc.
#include "memory/eviction_order.h"

namespace hybridgen {

bool IsProtected(const BlockUse& use, const ProtectionPolicy& policy) {
  if (use.sequence_block < policy.sink_blocks) return true;
  const int64_t blocks = (int64_t{use.sequence_tokens} + policy.block_size - 1) / policy.block_size;
  return use.sequence_block >= blocks - policy.recent_blocks;
}

EvictionKey EvictionKeyOf(const BlockUse& use, int64_t step, const ProtectionPolicy& policy) {
  if (use.liveness == Liveness::kDead) return {EvictionClass::kDead, use.last_used};
  if (use.last_used < step - kRecentPlans) return {EvictionClass::kUnused, use.last_used};
  return {IsProtected(use, policy) ? EvictionClass::kProtected : EvictionClass::kUsed, use.generated};
}

}  // namespace hybridgen
