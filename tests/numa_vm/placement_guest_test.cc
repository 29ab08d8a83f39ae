// In a guest: where DRAM is short, K's pages lie on DRAM and V's on the far node, every one by the kernel's word.
#include <map>
#include <memory>

#include "backend/host_tiers.h"
#include "gtest/gtest.h"
#include "memory/placement.h"
#include "tests/numa_vm/guest.h"

namespace hybridgen {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int kKey = static_cast<int>(PageRole::kKey);
constexpr int kValue = static_cast<int>(PageRole::kValue);

TEST(PlacementGuestTest, KeysOnDramAndValuesOnTheFarNodeWhereDramIsShort) {
  if (FarNode() == kNoNode) GTEST_SKIP() << "one memory node";
  PlacementRequest request;
  request.page_bytes[kKey] = kMiB / 4;
  request.page_bytes[kValue] = kMiB / 4;
  request.blocks = 40;
  request.dram_bytes = 12 * kMiB;  // K of 40 blocks, and V of 8
  request.cxl_bytes = 64 * kMiB;
  const Placement placement = PlaceHostPages(request).value();
  ASSERT_EQ(placement.host_blocks, request.blocks);

  HostTiersOptions options;
  for (const int role : {kKey, kValue}) {
    options.page_bytes[role] = request.page_bytes[role];
    options.dram_pages[role] = placement.dram_pages[role];
    options.cxl_pages[role] = placement.cxl_pages[role];
  }
  options.dram_nodes = {HomeNode()};
  options.cxl_node = FarNode();
  const auto tiers = HostTiers::Create(options);
  ASSERT_TRUE(tiers.ok()) << tiers.status();

  std::map<int, int> blocks_on_node[kNumRoles];
  for (const PageRole role : {PageRole::kKey, PageRole::kValue}) {
    const int r = static_cast<int>(role);
    for (const Tier tier : {Tier::kDram, Tier::kCxl}) {
      const int pages = tier == Tier::kDram ? options.dram_pages[r] : options.cxl_pages[r];
      const int node = tier == Tier::kDram ? HomeNode() : FarNode();
      for (int index = 0; index < pages; ++index) {
        const void* const page = reinterpret_cast<const void*>((*tiers)->Address(role, {tier, index}));
        EXPECT_EQ(PagesByNode(page, options.page_bytes[r]),
                  (std::map<int, int64_t>{{node, CountPages(options.page_bytes[r])}}));
        ++blocks_on_node[r][node];
      }
    }
  }
  EXPECT_EQ(blocks_on_node[kKey], (std::map<int, int>{{HomeNode(), 40}}));
  EXPECT_EQ(blocks_on_node[kValue], (std::map<int, int>{{HomeNode(), 8}, {FarNode(), 32}}));
}

}  // namespace
}  // namespace hybridgen
