// Splits the bytes of the host tiers into K and V pages.
#ifndef MEMORY_PLACEMENT_H_
#define MEMORY_PLACEMENT_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "memory/tier.h"

namespace hybridgen {

struct PlacementRequest {
  int64_t dram_bytes = 0;
  int64_t cxl_bytes = 0;
  int64_t page_bytes[kNumRoles] = {0, 0};  // of one block, all layers
  int64_t blocks = 0;                      // wanted on the host
};

struct Placement {
  int dram_pages[kNumRoles] = {0, 0};
  int cxl_pages[kNumRoles] = {0, 0};
  int64_t host_blocks = 0;  // pages of each role over both tiers: the wanted number, or fewer if that is all that fits
};

// As many of the wanted blocks as fit. K goes to DRAM first, because the CPU reads all of it; V takes what DRAM has
// left and then CXL; K goes to CXL only if DRAM cannot hold all of it. Both roles get `host_blocks` pages.
// Errors: InvalidArgument (a negative size, no bytes per page, no blocks wanted), ResourceExhausted (not one fits).
absl::StatusOr<Placement> PlaceHostPages(const PlacementRequest& request);

}  // namespace hybridgen

#endif  // MEMORY_PLACEMENT_H_
