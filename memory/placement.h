// Placement policy: how many K and V pages each host tier gets, and which tier the next page of a sequence comes from.
#ifndef MEMORY_PLACEMENT_H_
#define MEMORY_PLACEMENT_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "memory/tier.h"

namespace hybridgen {

// What a policy wants is one number per role: the share of the role's pages on CXL. It holds while both tiers have
// room; a page whose tier is full goes to the other one.
enum class PlacementPolicy : uint8_t {
  kRolePriority,  // none of K, none of V: K takes DRAM first, V what is left; then V spills to CXL, K last
  kProportional,  // none of K, `value_share_on_cxl` of V: DRAM, K's bytes included, and CXL finish together
  kInterleave,  // the same share of both roles, by weights: what the kernel's weighted interleave does, to compare with
};

constexpr const char* PlacementPolicyName(PlacementPolicy policy) {
  switch (policy) {
    case PlacementPolicy::kRolePriority:
      return "role";
    case PlacementPolicy::kProportional:
      return "proportional";
    case PlacementPolicy::kInterleave:
      return "interleave";
  }
  return "unknown";
}

struct PlacementRequest {
  int64_t dram_bytes = 0;
  int64_t cxl_bytes = 0;
  int64_t page_bytes[kNumRoles] = {0, 0};  // of one block, all layers
  int64_t blocks = 0;                      // wanted on the host
  PlacementPolicy policy = PlacementPolicy::kRolePriority;
  double value_share_on_cxl = 0;  // kProportional: in [0, 1]
  int dram_weight = 1;            // kInterleave: pages to DRAM for every `cxl_weight` pages to CXL
  int cxl_weight = 1;
};

struct Placement {
  int dram_pages[kNumRoles] = {0, 0};
  int cxl_pages[kNumRoles] = {0, 0};
  int64_t host_blocks = 0;  // pages of each role over both tiers: the wanted number, or fewer if that is all that fits
  // Share of each role's pages that the block manager hands out from CXL, evenly along every sequence (spread.h). It is
  // what the policy wants, also where the page counts had to differ for lack of room: as long as a tier is not full,
  // the pages in use have the wanted shares.
  double cxl_share[kNumRoles] = {0, 0};
};

// As many of the wanted blocks as fit; their number does not depend on the policy. The counts are the nearest to the
// wanted shares that the tiers' sizes allow, K's chosen before V's.
// Errors: InvalidArgument (a negative size, no bytes per page, no blocks wanted, a share outside [0, 1], weights
// outside [1, 255], the kernel's range), ResourceExhausted (not one block fits).
absl::StatusOr<Placement> PlaceHostPages(const PlacementRequest& request);

}  // namespace hybridgen

#endif  // MEMORY_PLACEMENT_H_
