// Digests of the pages of published blocks: their memory, and which content each of them is of.
#ifndef BACKEND_BLOCK_DIGESTS_H_
#define BACKEND_BLOCK_DIGESTS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "backend/executor.h"
#include "backend/host_tiers.h"
#include "backend/layer_call.h"
#include "kernels/kernel_table.h"
#include "kernels/page_digest.h"
#include "memory/arena.h"
#include "memory/block_manager.h"

namespace hybridgen {

struct DigestStatistics {
  int64_t reserved_bytes = 0;
  // Totals since creation.
  int64_t blocks = 0;  // whose digests, of all layers and KV head groups, were built
  double seconds = 0;  // that the planning thread spent on it
};

// One digest per (stored layer, KV head group, block), in a place of its own that depends on the block id alone: what
// the block manager does with pages moves no digest. Each is of one content of its block, named by the generation, so
// none has to be invalidated when the block is written, reused or freed.
//
// The planning thread drives it. A digest that Find gave to a step stays as it is until that step has retired: it is
// replaced when a later content of the block is published, and the step that wrote that content retires before.
class BlockDigests {
 public:
  // Reserves all digests, a head group's on the node of its DRAM pages. One entry of `layers` per stored layer, with
  // host pages of kPackedV1. `host` outlives the object.
  // Errors: those of Arena::Create, ResourceExhausted with the sizes above all.
  static absl::StatusOr<std::unique_ptr<BlockDigests>> Create(const KernelSet& kernels, const HostTiers* host,
                                                              std::vector<LayerPages> layers, int64_t num_blocks);

  // Builds the digests of these publishes' blocks from their host pages; each block once. The copies are applied: the
  // block's generation is the task's, and nobody writes the pages. What has been built of a generation stays.
  // `executor`: null: the calling thread alone. Errors: the executor's, after which the blocks have no digests.
  absl::Status Build(absl::Span<const CopyTask> published, Executor* executor);

  // Digest of `block`'s content of this generation in a stored layer and head group, laid out by layout(), aligned to
  // 64; null if none was built.
  const void* Find(int layer, int head_group, int32_t block, uint32_t generation) const {
    return built_[block] == generation ? Address(layer, head_group, block) : nullptr;
  }
  const DigestLayout& layout() const { return layout_; }
  const DigestStatistics& statistics() const { return statistics_; }

 private:
  static constexpr int64_t kNotBuilt = -1;

  BlockDigests(const KernelSet& kernels, const HostTiers* host, std::vector<LayerPages> layers, int64_t num_blocks);

  // Digests of neighbouring blocks are neighbours: a layer of a step reads those of one layer.
  std::byte* Address(int layer, int head_group, int32_t block) const {
    return arenas_[head_group]->data() +
           (layer * static_cast<int64_t>(built_.size()) + block) * static_cast<int64_t>(layout_.bytes);
  }
  void BuildOne(const CopyTask& task, int layer, int head_group) const;

  const BuildDigestFn build_digest_;
  const HostTiers* const host_;
  const std::vector<LayerPages> layers_;
  const DigestLayout layout_;
  std::vector<std::unique_ptr<Arena>> arenas_;  // [head group]
  std::vector<int64_t> built_;                  // [block] generation, or kNotBuilt
  DigestStatistics statistics_;
};

}  // namespace hybridgen

#endif  // BACKEND_BLOCK_DIGESTS_H_
