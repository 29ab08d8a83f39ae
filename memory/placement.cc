// Page counts per tier and role, and the shares in which pages are handed out.
#include "memory/placement.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

// Pages of one role over the two tiers.
struct Split {
  int64_t dram = 0;
  int64_t cxl = 0;
};

// What `keys` leaves for V, in pages.
Split RoomForValues(const PlacementRequest& request, const Split& keys) {
  const int64_t k_bytes = request.page_bytes[Index(PageRole::kKey)];
  const int64_t v_bytes = request.page_bytes[Index(PageRole::kValue)];
  return {(request.dram_bytes - keys.dram * k_bytes) / v_bytes, (request.cxl_bytes - keys.cxl * k_bytes) / v_bytes};
}

// The split of `blocks` pages with the share on CXL nearest to `share` that `room` allows; it must hold them all.
Split NearestSplit(int64_t blocks, double share, const Split& room) {
  const int64_t wanted = std::llround(share * static_cast<double>(blocks));
  const int64_t cxl = std::clamp(wanted, std::max<int64_t>(0, blocks - room.dram), std::min(blocks, room.cxl));
  return {blocks - cxl, cxl};
}

// Room for K before anything else is placed.
Split RoomForKeys(const PlacementRequest& request) {
  const int64_t bytes = request.page_bytes[Index(PageRole::kKey)];
  return {request.dram_bytes / bytes, request.cxl_bytes / bytes};
}

bool Holds(const Split& room, int64_t blocks) { return room.dram + room.cxl >= blocks; }

// Whether `blocks` blocks fit with as much of K in DRAM as possible: no other split leaves V more room than that but
// by the rounding to pages.
bool Fits(const PlacementRequest& request, int64_t blocks) {
  const Split room = RoomForKeys(request);
  return Holds(room, blocks) && Holds(RoomForValues(request, NearestSplit(blocks, 0, room)), blocks);
}

absl::Status CheckRequest(const PlacementRequest& request) {
  const int64_t k_bytes = request.page_bytes[Index(PageRole::kKey)];
  const int64_t v_bytes = request.page_bytes[Index(PageRole::kValue)];
  if (request.dram_bytes < 0 || request.cxl_bytes < 0 || k_bytes < 1 || v_bytes < 1 || request.blocks < 1) {
    return absl::InvalidArgumentError(absl::StrCat("PlaceHostPages: dram ", request.dram_bytes, " bytes, cxl ",
                                                   request.cxl_bytes, " bytes, pages of ", k_bytes, " (K) and ",
                                                   v_bytes, " (V) bytes, ", request.blocks,
                                                   " blocks: tier sizes must be at least 0, the others at least 1"));
  }
  if (!(request.value_share_on_cxl >= 0 && request.value_share_on_cxl <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("PlaceHostPages: value_share_on_cxl is ", request.value_share_on_cxl, "; accepted: 0 to 1"));
  }
  constexpr int kMostWeight = 255;
  if (std::min(request.dram_weight, request.cxl_weight) < 1 ||
      std::max(request.dram_weight, request.cxl_weight) > kMostWeight) {
    return absl::InvalidArgumentError(absl::StrCat("PlaceHostPages: weights are ", request.dram_weight, " (DRAM) and ",
                                                   request.cxl_weight, " (CXL); accepted: 1 to ", kMostWeight));
  }
  return absl::OkStatus();
}

// The shares that the policy wants.
void SetShares(const PlacementRequest& request, Placement& placement) {
  double& k_share = placement.cxl_share[Index(PageRole::kKey)];
  double& v_share = placement.cxl_share[Index(PageRole::kValue)];
  switch (request.policy) {
    case PlacementPolicy::kRolePriority:
      break;
    case PlacementPolicy::kProportional:
      v_share = request.value_share_on_cxl;
      break;
    case PlacementPolicy::kInterleave:
      k_share = v_share = static_cast<double>(request.cxl_weight) / (request.dram_weight + request.cxl_weight);
      break;
  }
}

}  // namespace

absl::StatusOr<Placement> PlaceHostPages(const PlacementRequest& request) {
  if (absl::Status status = CheckRequest(request); !status.ok()) return status;
  // If a number of blocks fits, every smaller one does: the largest is found by bisection.
  int64_t blocks = 0, high = std::min<int64_t>(request.blocks, std::numeric_limits<int32_t>::max());
  while (blocks < high) {
    const int64_t middle = blocks + (high - blocks + 1) / 2;
    if (Fits(request, middle)) {
      blocks = middle;
    } else {
      high = middle - 1;
    }
  }
  if (blocks == 0) {
    return absl::ResourceExhaustedError(absl::StrCat("PlaceHostPages: no block of ", request.page_bytes[0], " (K) and ",
                                                     request.page_bytes[1], " (V) bytes fits into ", request.dram_bytes,
                                                     " bytes of dram and ", request.cxl_bytes,
                                                     " bytes of cxl: enlarge a tier"));
  }
  Placement placement;
  placement.host_blocks = blocks;
  SetShares(request, placement);
  Split keys = NearestSplit(blocks, placement.cxl_share[Index(PageRole::kKey)], RoomForKeys(request));
  // Pages of unequal sizes: the wanted K may cut V's room short by a page; K then moves towards DRAM, where it fits.
  while (!Holds(RoomForValues(request, keys), blocks)) keys = {keys.dram + 1, keys.cxl - 1};
  const Split values = NearestSplit(blocks, placement.cxl_share[Index(PageRole::kValue)], RoomForValues(request, keys));
  placement.dram_pages[Index(PageRole::kKey)] = static_cast<int>(keys.dram);
  placement.cxl_pages[Index(PageRole::kKey)] = static_cast<int>(keys.cxl);
  placement.dram_pages[Index(PageRole::kValue)] = static_cast<int>(values.dram);
  placement.cxl_pages[Index(PageRole::kValue)] = static_cast<int>(values.cxl);
  return placement;
}

}  // namespace hybridgen
