// move_pages as a question, and as what its name says.
#include "memory/page_nodes.h"

#include <unistd.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "memory/address_range.h"

namespace hybridgen {
namespace {

absl::Status NotTold(int error) {
  return absl::FailedPreconditionError(
      absl::StrCat("the kernel does not tell where pages lie: move_pages: ", ErrorText(error)));
}

// Keeps of `pages` those that are known to lie on another node than `node`.
absl::Status KeepMisplaced(int node, const MemoryPolicyCalls& calls, std::vector<void*>& pages) {
  std::vector<int> nodes;
  if (const int error = calls.QueryPages(pages, &nodes); error != 0) return NotTold(error);
  size_t kept = 0;
  for (size_t i = 0; i < pages.size(); ++i) {
    if (nodes[i] >= 0 && nodes[i] != node) pages[kept++] = pages[i];
  }
  pages.resize(kept);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PlacementReport> QueryPlacement(absl::Span<std::byte> range, int node, int64_t sample,
                                               const MemoryPolicyCalls& calls) {
  constexpr int64_t kBatch = 4096;
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  const int64_t pages = static_cast<int64_t>(range.size()) / page_bytes;
  const int64_t asked = sample > 0 ? std::min(sample, pages) : pages;
  PlacementReport report;
  std::vector<void*> addresses;
  std::vector<int> nodes;
  for (int64_t begin = 0; begin < asked; begin += kBatch) {
    addresses.clear();
    for (int64_t i = begin; i < std::min(begin + kBatch, asked); ++i) {
      addresses.push_back(range.data() + i * pages / asked * page_bytes);
    }
    if (const int error = calls.QueryPages(addresses, &nodes); error != 0) return NotTold(error);
    for (const int there : nodes) {
      ++(there >= 0 ? report.pages_on_node[there] : report.pages_unknown);
      if (node >= 0 && there >= 0 && there != node) ++report.pages_elsewhere;
    }
  }
  return report;
}

absl::StatusOr<RepairReport> MoveToNode(absl::Span<std::byte> range, int node,
                                        const std::function<MemoryBudget(int node)>& budget,
                                        const MemoryPolicyCalls& calls) {
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  RepairReport report;
  std::vector<void*> pages;
  // The kernel gives up a whole call at a page that it cannot move. One call per huge page confines the harm, and a
  // huge page moves whole.
  for (size_t begin = 0; begin < range.size(); begin += kHugePageBytes) {
    pages.clear();
    const size_t end = std::min(begin + kHugePageBytes, range.size());
    for (size_t at = begin; at < end; at += page_bytes) pages.push_back(range.data() + at);
    if (absl::Status status = KeepMisplaced(node, calls, pages); !status.ok()) return status;
    if (pages.empty()) continue;
    const int64_t misplaced = static_cast<int64_t>(pages.size());
    report.misplaced += misplaced;
    const MemoryBudget room = budget(node);
    if (room.node_bytes && *room.node_bytes < kHugePageBytes) {
      report.no_room += misplaced;
      continue;
    }
    if (const int error = calls.MovePages(pages, node); NotPermitted(error)) {
      return absl::FailedPreconditionError(
          absl::StrCat("the kernel does not permit moving pages: move_pages: ", ErrorText(error)));
    }
    if (absl::Status status = KeepMisplaced(node, calls, pages); !status.ok()) return status;
    const int64_t left = static_cast<int64_t>(pages.size());
    report.unmovable += left;
    report.repaired += misplaced - left;
  }
  return report;
}

}  // namespace hybridgen
