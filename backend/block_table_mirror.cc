#include "backend/block_table_mirror.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace hybridgen {

absl::Status BlockTableMirror::CheckBlocks(uint64_t request, absl::Span<const int32_t> blocks) const {
  for (int32_t block : blocks) {
    if (block < 0 || block >= static_cast<int64_t>(references_.size())) {
      return absl::InvalidArgumentError(absl::StrCat("update requests: request ", request, " names block id ", block,
                                                     "; accepted: 0 to ", references_.size() - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status BlockTableMirror::Set(uint64_t request, absl::Span<const int32_t> blocks) {
  if (absl::Status status = CheckBlocks(request, blocks); !status.ok()) return status;
  for (int32_t block : blocks) ++references_[block];
  Remove(request);  // after the increments, so that blocks in both tables do not pass through zero
  tables_[request].assign(blocks.begin(), blocks.end());
  return absl::OkStatus();
}

absl::Status BlockTableMirror::Append(uint64_t request, absl::Span<const int32_t> blocks) {
  const auto it = tables_.find(request);
  if (it == tables_.end()) {
    return absl::NotFoundError(absl::StrCat("update requests: append to request ", request, ", which has no table"));
  }
  if (absl::Status status = CheckBlocks(request, blocks); !status.ok()) return status;
  for (int32_t block : blocks) ++references_[block];
  it->second.insert(it->second.end(), blocks.begin(), blocks.end());
  return absl::OkStatus();
}

void BlockTableMirror::Remove(uint64_t request) {
  const auto it = tables_.find(request);
  if (it == tables_.end()) return;
  for (int32_t block : it->second) {
    if (--references_[block] == 0) unreferenced_.push_back(block);
  }
  tables_.erase(it);
}

absl::StatusOr<absl::Span<const int32_t>> BlockTableMirror::Table(uint64_t request) const {
  const auto it = tables_.find(request);
  if (it == tables_.end()) {
    return absl::NotFoundError(absl::StrCat("plan step: request ", request, " has no block table; feed it first"));
  }
  return absl::MakeConstSpan(it->second);
}

std::vector<int32_t> BlockTableMirror::TakeUnreferenced() { return std::exchange(unreferenced_, {}); }

}  // namespace hybridgen
