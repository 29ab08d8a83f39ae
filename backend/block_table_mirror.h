// Host mirror of the engine's block tables, fed by deltas per request: planning needs nothing from the device.
#ifndef BACKEND_BLOCK_TABLE_MIRROR_H_
#define BACKEND_BLOCK_TABLE_MIRROR_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace hybridgen {

class BlockTableMirror {
 public:
  // Block ids are [0, num_blocks).
  explicit BlockTableMirror(int64_t num_blocks) : references_(num_blocks, 0) {}

  // A new or resumed request: `blocks` is its whole table. A known request's old table is replaced.
  absl::Status Set(uint64_t request, absl::Span<const int32_t> blocks);
  // Errors: NotFound for an unknown request; InvalidArgument for a block id out of range.
  absl::Status Append(uint64_t request, absl::Span<const int32_t> blocks);
  // Finished or preempted; unknown requests are fine (the engine may end a request that never ran).
  void Remove(uint64_t request);

  // The request's table; valid until the next change. Errors: NotFound.
  absl::StatusOr<absl::Span<const int32_t>> Table(uint64_t request) const;

  // Blocks that the changes since the last call left without any live request, in order; may hold a block that
  // became live again. Empties the list.
  std::vector<int32_t> TakeUnreferenced();
  bool IsReferenced(int32_t block) const { return references_[block] > 0; }

  size_t num_requests() const { return tables_.size(); }

 private:
  absl::Status CheckBlocks(uint64_t request, absl::Span<const int32_t> blocks) const;

  absl::flat_hash_map<uint64_t, std::vector<int32_t>> tables_;
  std::vector<int32_t> references_;  // live tables that hold the block; prefix-shared blocks have several
  std::vector<int32_t> unreferenced_;
};

}  // namespace hybridgen

#endif  // BACKEND_BLOCK_TABLE_MIRROR_H_
