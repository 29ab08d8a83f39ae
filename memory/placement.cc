// Page counts per tier and role.
#include "memory/placement.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

// The placement of exactly `blocks` blocks; false if CXL is too small for what DRAM leaves.
bool Place(const PlacementRequest& request, int64_t blocks, Placement& placement) {
  int64_t dram_left = request.dram_bytes;
  int64_t cxl_left = request.cxl_bytes;
  for (const PageRole role : kPageRoles) {  // K first
    const int64_t bytes = request.page_bytes[Index(role)];
    const int64_t in_dram = std::min(blocks, dram_left / bytes);
    const int64_t in_cxl = blocks - in_dram;
    if (in_cxl > cxl_left / bytes) return false;
    dram_left -= in_dram * bytes;
    cxl_left -= in_cxl * bytes;
    placement.dram_pages[Index(role)] = static_cast<int>(in_dram);
    placement.cxl_pages[Index(role)] = static_cast<int>(in_cxl);
  }
  placement.host_blocks = blocks;
  return true;
}

}  // namespace

absl::StatusOr<Placement> PlaceHostPages(const PlacementRequest& request) {
  const int64_t k_bytes = request.page_bytes[Index(PageRole::kKey)];
  const int64_t v_bytes = request.page_bytes[Index(PageRole::kValue)];
  if (request.dram_bytes < 0 || request.cxl_bytes < 0 || k_bytes < 1 || v_bytes < 1 || request.blocks < 1) {
    return absl::InvalidArgumentError(absl::StrCat("PlaceHostPages: dram ", request.dram_bytes, " bytes, cxl ",
                                                   request.cxl_bytes, " bytes, pages of ", k_bytes, " (K) and ",
                                                   v_bytes, " (V) bytes, ", request.blocks,
                                                   " blocks: tier sizes must be at least 0, the others at least 1"));
  }
  // More blocks never need less of CXL, so the largest number that fits is found by bisection.
  Placement best;
  int64_t low = 0, high = std::min<int64_t>(request.blocks, std::numeric_limits<int32_t>::max());
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    Placement tried;
    if (Place(request, middle, tried)) {
      best = tried;
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  if (best.host_blocks == 0) {
    return absl::ResourceExhaustedError(absl::StrCat("PlaceHostPages: no block of ", k_bytes, " (K) and ", v_bytes,
                                                     " (V) bytes fits into ", request.dram_bytes, " bytes of dram and ",
                                                     request.cxl_bytes, " bytes of cxl: enlarge a tier"));
  }
  return best;
}

}  // namespace hybridgen
