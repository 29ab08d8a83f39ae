// In a guest with two sockets: each part of the KV heads lies in one socket's DRAM and is attended by its CPUs.
#include <map>
#include <memory>
#include <vector>

#include "backend/host_tiers.h"
#include "backend/random_engine.h"
#include "gtest/gtest.h"
#include "kernels/page_format.h"
#include "memory/topology.h"
#include "nlohmann/json.hpp"
#include "tests/numa_vm/guest.h"

namespace hybridgen {
namespace {

using OnNode = std::map<int, int64_t>;

std::vector<int> Sockets() {
  std::vector<int> sockets;
  for (const MemoryNode& node : ReadTopology().nodes) {
    if (node.has_cpus == NodeCpus::kSome) sockets.push_back(node.id);
  }
  return sockets;
}

TEST(HeadGroupsGuestTest, EachPartOfEveryPageLiesOnItsSocket) {
  HostTiersOptions options;
  options.page_bytes[Index(PageRole::kKey)] = options.page_bytes[Index(PageRole::kValue)] = 256 << 10;
  options.dram_pages[Index(PageRole::kKey)] = options.dram_pages[Index(PageRole::kValue)] = 20;
  options.dram_nodes = Sockets();
  ASSERT_EQ(options.dram_nodes.size(), 2u);
  const auto tiers = HostTiers::Create(options);
  ASSERT_TRUE(tiers.ok()) << tiers.status();
  for (const PageRole role : {PageRole::kKey, PageRole::kValue}) {
    for (int index = 0; index < 20; ++index) {
      for (int group = 0; group < 2; ++group) {
        const uint64_t part = (*tiers)->Address(role, {Tier::kDram, index}) + group * (*tiers)->head_group_stride();
        EXPECT_EQ(PagesByNode(reinterpret_cast<const void*>(part), 128 << 10),
                  (OnNode{{options.dram_nodes[group], CountPages(128 << 10)}}));
      }
    }
  }
}

TEST(HeadGroupsGuestTest, RandomStepsEqualTheOracleAndReadTheirOwnSocket) {
  Shape shape;
  BackendOptions options;
  options.binding = Binding::kTiered;
  const int64_t block =
      2 * shape.layers * PackedPageBytes(shape.dtype, shape.kv_heads, shape.block_size, shape.head_size);
  options.dram_bytes = 20 * block;
  options.cxl_bytes = 40 * block;
  options.cxl_node = FarNode();
  options.mover_gigabytes_per_second = 1;
  options.timeout = absl::Minutes(5);
  const uint32_t seed = TestSeed(GuestTarget().c_str(), 20261125);
  Engine engine(shape, options, /*device_pages=*/6, /*num_blocks=*/49, /*drafts=*/3, seed);
  ASSERT_TRUE(engine.ok());
  for (int step = 0; step < 60 && !HasFailure(); ++step) engine.Step(step % 7 == 0 ? 150 : 40);

  const std::vector<int> sockets = Sockets();
  const std::map<int, OnNode> bound = PagesOfBoundMappings();
  for (const int node : {sockets[0], sockets[1], FarNode()}) {
    ASSERT_EQ(bound.count(node), 1u) << node;
    EXPECT_EQ(bound.at(node).size(), 1u);
    EXPECT_GT(bound.at(node).count(node), 0u);
  }
  const nlohmann::json statistics = engine.Statistics();
  const nlohmann::json& groups = statistics["head_groups"]["groups"];
  ASSERT_EQ(groups.size(), 2u) << statistics["head_groups"];
  int64_t items = 0, remote_items = 0;
  for (int group = 0; group < 2; ++group) {
    EXPECT_EQ(groups[group]["node"], sockets[group]);
    EXPECT_FALSE(groups[group]["emulated"]);
    EXPECT_GT(groups[group]["items"], 0);
    items += groups[group]["items"].get<int64_t>();
    remote_items += groups[group]["remote_items"].get<int64_t>();
  }
  // Threads are not pinned, and a socket that is done helps the other: most of the work is local, not all.
  EXPECT_LT(remote_items, items) << groups;
  for (const nlohmann::json& arena : statistics["placement"]["arenas"]) EXPECT_EQ(arena["misplaced_pages"], 0) << arena;
}

}  // namespace
}  // namespace hybridgen
