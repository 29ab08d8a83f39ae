// Tests of the split of host bytes into pages.
#include "memory/placement.h"

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

// Against a search over all block counts, with the rule written out for one count.
TEST(PlacementTest, NoLargerNumberFits) {
  constexpr uint32_t kSeed = 7;
  std::mt19937 rng(kSeed);
  const auto random = [&rng](int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); };
  for (int round = 0; round < 2000; ++round) {
    const PlacementRequest request = {random(0, 400), random(0, 400), {random(1, 40), random(1, 40)}, random(1, 60)};
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
  }
}

}  // namespace
}  // namespace hybridgen
