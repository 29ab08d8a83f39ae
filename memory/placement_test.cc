// Tests of the split of host bytes into pages.
#include "memory/placement.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>
#include <string>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

void ExpectPages(const PlacementRequest& request, int dram_k, int dram_v, int cxl_k, int cxl_v) {
  const absl::StatusOr<Placement> placement = PlaceHostPages(request);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_EQ(placement->dram_pages[0], dram_k);
  EXPECT_EQ(placement->dram_pages[1], dram_v);
  EXPECT_EQ(placement->cxl_pages[0], cxl_k);
  EXPECT_EQ(placement->cxl_pages[1], cxl_v);
  EXPECT_EQ(placement->host_blocks, dram_k + cxl_k);
  EXPECT_EQ(placement->host_blocks, dram_v + cxl_v);
}

TEST(PlacementTest, DramAloneHoldsBothRoles) {
  ExpectPages({2000, 0, {100, 100}, 10}, 10, 10, 0, 0);
  ExpectPages({2099, 0, {100, 100}, 99}, 10, 10, 0, 0);     // all that fits
  ExpectPages({5000, 5000, {100, 100}, 10}, 10, 10, 0, 0);  // CXL is not needed
}

TEST(PlacementTest, CxlAloneHoldsBothRoles) { ExpectPages({0, 1000, {100, 100}, 99}, 0, 0, 5, 5); }

TEST(PlacementTest, ValuesSpillFirst) {
  ExpectPages({1500, 1000, {100, 100}, 10}, 10, 5, 0, 5);
  ExpectPages({1000, 1000, {100, 100}, 10}, 10, 0, 0, 10);
}

TEST(PlacementTest, KeysSpillOnlyWhenDramCannotHoldThem) { ExpectPages({800, 2000, {100, 100}, 10}, 8, 0, 2, 10); }

TEST(PlacementTest, UnequalPagesAndOddSizes) {
  ExpectPages({1000, 333, {300, 70}, 99}, 3, 1, 0, 2);   // DRAM: 3 * 300 + 1 * 70, 30 over
  ExpectPages({1000, 1000, {300, 70}, 99}, 3, 1, 2, 4);  // CXL: 2 * 300 + 4 * 70, 120 over
  ExpectPages({170, 0, {100, 70}, 99}, 1, 1, 0, 0);      // to the byte
  ExpectPages({99, 170, {100, 70}, 99}, 0, 1, 1, 0);     // DRAM takes a V page where no K page fits
}

TEST(PlacementTest, NothingFits) {
  for (const PlacementRequest& request :
       {PlacementRequest{0, 0, {100, 100}, 1}, PlacementRequest{199, 0, {100, 100}, 1},
        PlacementRequest{99, 99, {100, 100}, 1}, PlacementRequest{0, 199, {100, 100}, 5}}) {
    const absl::Status status = PlaceHostPages(request).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_NE(std::string(status.message()).find(std::to_string(request.dram_bytes) + " bytes of dram"),
              std::string::npos);
  }
}

TEST(PlacementTest, BadRequestsAreRefused) {
  for (const PlacementRequest& request :
       {PlacementRequest{-1, 0, {1, 1}, 1}, PlacementRequest{0, -1, {1, 1}, 1}, PlacementRequest{9, 9, {0, 1}, 1},
        PlacementRequest{9, 9, {1, -5}, 1}, PlacementRequest{9, 9, {1, 1}, 0}}) {
    EXPECT_EQ(PlaceHostPages(request).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(PlacementTest, HugeTiersDoNotOverflow) {
  constexpr int64_t kHuge = int64_t{1} << 60;
  const Placement placement = PlaceHostPages({kHuge, kHuge, {1, 1}, kHuge}).value();
  EXPECT_EQ(placement.host_blocks, 2147483647);
  EXPECT_EQ(placement.dram_pages[0], 2147483647);
}

// The bytes that a placement puts on each tier.
struct Bytes {
  int64_t dram = 0;
  int64_t cxl = 0;
};

Bytes BytesOf(const PlacementRequest& request, const Placement& placement) {
  Bytes bytes;
  for (const PageRole role : kPageRoles) {
    bytes.dram += placement.dram_pages[Index(role)] * request.page_bytes[Index(role)];
    bytes.cxl += placement.cxl_pages[Index(role)] * request.page_bytes[Index(role)];
  }
  return bytes;
}

// Every placement of `blocks` blocks that the tiers hold, K by K and V by V.
template <typename Visit>
void ForEachPlacement(const PlacementRequest& request, int blocks, const Visit& visit) {
  for (int k_cxl = 0; k_cxl <= blocks; ++k_cxl) {
    for (int v_cxl = 0; v_cxl <= blocks; ++v_cxl) {
      Placement placement;
      placement.dram_pages[0] = blocks - k_cxl;
      placement.cxl_pages[0] = k_cxl;
      placement.dram_pages[1] = blocks - v_cxl;
      placement.cxl_pages[1] = v_cxl;
      const Bytes bytes = BytesOf(request, placement);
      if (bytes.dram <= request.dram_bytes && bytes.cxl <= request.cxl_bytes) visit(placement);
    }
  }
}

constexpr PlacementPolicy kPolicies[] = {PlacementPolicy::kRolePriority, PlacementPolicy::kProportional,
                                         PlacementPolicy::kInterleave};

class Random {
 public:
  explicit Random(uint32_t seed) : rng_(seed) {}
  int Integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng_); }
  double Real(double low, double high) { return std::uniform_real_distribution<double>(low, high)(rng_); }

  PlacementRequest Request(PlacementPolicy policy) {
    PlacementRequest request;
    request.dram_bytes = Integer(0, 400);
    request.cxl_bytes = Integer(0, 400);
    const bool equal = Integer(0, 1) == 0;
    request.page_bytes[0] = Integer(1, 40);
    request.page_bytes[1] = equal ? request.page_bytes[0] : Integer(1, 40);
    request.blocks = Integer(1, 30);
    request.policy = policy;
    request.value_share_on_cxl = Real(0, 1);
    request.dram_weight = Integer(1, 5);
    request.cxl_weight = Integer(1, 5);
    return request;
  }

 private:
  std::mt19937 rng_;
};

// What every policy promises: sizes are kept, both roles have a page for every block, and no larger number fits with K
// in DRAM first.
TEST(PlacementTest, EveryPolicyFillsTheTiersAlike) {
  constexpr uint32_t kSeed = 7;
  Random random(kSeed);
  for (int round = 0; round < 6000; ++round) {
    const PlacementRequest request = random.Request(kPolicies[round % 3]);
    int64_t most = 0;
    for (int64_t blocks = 1; blocks <= request.blocks; ++blocks) {
      const int64_t dram_k = std::min(blocks, request.dram_bytes / request.page_bytes[0]);
      const int64_t dram_v =
          std::min(blocks, (request.dram_bytes - dram_k * request.page_bytes[0]) / request.page_bytes[1]);
      const int64_t cxl = (blocks - dram_k) * request.page_bytes[0] + (blocks - dram_v) * request.page_bytes[1];
      if (cxl <= request.cxl_bytes) most = blocks;
    }
    const absl::StatusOr<Placement> placement = PlaceHostPages(request);
    ASSERT_EQ(placement.ok() ? placement->host_blocks : 0, most) << "seed " << kSeed << " round " << round;
    if (!placement.ok()) continue;
    const Bytes bytes = BytesOf(request, *placement);
    ASSERT_LE(bytes.dram, request.dram_bytes) << "seed " << kSeed << " round " << round;
    ASSERT_LE(bytes.cxl, request.cxl_bytes) << "seed " << kSeed << " round " << round;
    for (const PageRole role : kPageRoles) {
      ASSERT_GE(placement->dram_pages[Index(role)], 0) << "seed " << kSeed << " round " << round;
      ASSERT_GE(placement->cxl_pages[Index(role)], 0) << "seed " << kSeed << " round " << round;
      ASSERT_EQ(placement->dram_pages[Index(role)] + placement->cxl_pages[Index(role)], most)
          << "seed " << kSeed << " round " << round;
    }
  }
}

// K is on CXL only if DRAM has no room for one more K page, V's left out of account; and under role priority V only if
// DRAM has no room for one more V page.
TEST(PlacementTest, KeysLeaveDramLast) {
  constexpr uint32_t kSeed = 8;
  Random random(kSeed);
  for (int round = 0; round < 4000; ++round) {
    const PlacementRequest request = random.Request(kPolicies[round % 2]);
    const absl::StatusOr<Placement> placement = PlaceHostPages(request);
    if (!placement.ok()) continue;
    ASSERT_EQ(placement->cxl_share[0], 0);
    const int64_t keys = placement->dram_pages[0] * request.page_bytes[0];
    if (placement->cxl_pages[0] > 0) {
      ASSERT_GT(keys + request.page_bytes[0], request.dram_bytes) << "seed " << kSeed << " round " << round;
    }
    if (request.policy == PlacementPolicy::kRolePriority && placement->cxl_pages[1] > 0) {
      ASSERT_GT(BytesOf(request, *placement).dram + request.page_bytes[1], request.dram_bytes)
          << "seed " << kSeed << " round " << round;
    }
  }
}

// The counts are the nearest to the wanted shares: no other placement that fits, with the same K, has V nearer.
TEST(PlacementTest, CountsAreNearestToTheShares) {
  constexpr uint32_t kSeed = 9;
  Random random(kSeed);
  for (int round = 0; round < 2000; ++round) {
    const PlacementRequest request = random.Request(kPolicies[round % 3]);
    const absl::StatusOr<Placement> placement = PlaceHostPages(request);
    if (!placement.ok()) continue;
    const int blocks = static_cast<int>(placement->host_blocks);
    const auto off = [&](const Placement& p, int role) {
      return std::abs(p.cxl_pages[role] - placement->cxl_share[role] * blocks);
    };
    ForEachPlacement(request, blocks, [&](const Placement& other) {
      if (request.page_bytes[0] == request.page_bytes[1]) {
        ASSERT_LE(off(*placement, 0), off(other, 0) + 1e-9) << "seed " << kSeed << " round " << round;
      }
      if (other.cxl_pages[0] == placement->cxl_pages[0]) {
        ASSERT_LE(off(*placement, 1), off(other, 1) + 1e-9) << "seed " << kSeed << " round " << round;
      }
    });
  }
}

// With the share at which both media finish together, x V / c = (K + (1 - x) V) / d, and all of K in DRAM, no placement
// of V is faster by more than the half page that rounding costs.
TEST(PlacementTest, ProportionalIsTheFastestPlacement) {
  constexpr uint32_t kSeed = 10;
  Random random(kSeed);
  for (int round = 0; round < 2000; ++round) {
    PlacementRequest request = random.Request(PlacementPolicy::kProportional);
    const double dram_rate = random.Real(1, 10), cxl_rate = random.Real(0.1, 1) * dram_rate;
    const double k = request.page_bytes[0], v = request.page_bytes[1];
    request.value_share_on_cxl = std::min(1.0, cxl_rate * (k + v) / (v * (cxl_rate + dram_rate)));
    const absl::StatusOr<Placement> placement = PlaceHostPages(request);
    if (!placement.ok() || placement->cxl_pages[0] > 0) continue;
    const auto seconds = [&](const Placement& p) {
      const Bytes bytes = BytesOf(request, p);
      return std::max(bytes.dram / dram_rate, bytes.cxl / cxl_rate);
    };
    double best = seconds(*placement);
    ForEachPlacement(request, static_cast<int>(placement->host_blocks), [&](const Placement& other) {
      if (other.cxl_pages[0] == placement->cxl_pages[0]) best = std::min(best, seconds(other));
    });
    ASSERT_LE(seconds(*placement), best + 0.5 * v / cxl_rate + 1e-9) << "seed " << kSeed << " round " << round;
  }
}

// 30 GB/s beside 300 GB/s: 18% of V, not the 9% that dividing V alone by the bandwidths would give.
TEST(PlacementTest, ProportionalCountsTheKeysInDram) {
  PlacementRequest request{100'000, 100'000, {10, 10}, 1000};
  request.policy = PlacementPolicy::kProportional;
  request.value_share_on_cxl = 2.0 * 30 / 330;
  const Placement placement = PlaceHostPages(request).value();
  EXPECT_EQ(placement.cxl_pages[0], 0);
  EXPECT_EQ(placement.cxl_pages[1], 182);
  EXPECT_DOUBLE_EQ(placement.cxl_share[1], request.value_share_on_cxl);
}

TEST(PlacementTest, InterleaveTakesBothRolesByWeight) {
  PlacementRequest request{100'000, 100'000, {10, 10}, 1000};
  request.policy = PlacementPolicy::kInterleave;
  ExpectPages(request, 500, 500, 500, 500);
  request.dram_weight = 3;
  ExpectPages(request, 750, 750, 250, 250);
  request.dram_bytes = 12'000;  // 1,200 pages: K has its share, V what is left
  ExpectPages(request, 750, 450, 250, 550);
  EXPECT_DOUBLE_EQ(PlaceHostPages(request)->cxl_share[1], 0.25) << "what is wanted while there is room";
}

TEST(PlacementTest, BadSharesAndWeightsAreRefused) {
  for (const double share : {-0.1, 1.1, std::nan("")}) {
    PlacementRequest request{100, 100, {1, 1}, 9};
    request.value_share_on_cxl = share;
    EXPECT_EQ(PlaceHostPages(request).status().code(), absl::StatusCode::kInvalidArgument) << share;
  }
  for (const int weight : {0, -1, 256}) {
    PlacementRequest request{100, 100, {1, 1}, 9};
    request.cxl_weight = weight;
    EXPECT_EQ(PlaceHostPages(request).status().code(), absl::StatusCode::kInvalidArgument) << weight;
  }
}

}  // namespace
}  // namespace hybridgen
