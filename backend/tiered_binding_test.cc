// Tests of the tiered bind on pretended machines: where each role goes, and what the statistics say of it.
#include "backend/tiered_binding.h"

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "memory/fake_memory_policy.h"
#include "memory/fake_tree.h"
#include "nlohmann/json.hpp"

namespace hybridgen {
namespace {

constexpr int kBlocks = 101;
constexpr int64_t kPageBytes = 2 * 2 * 16 * 32 * 4;  // one role of a block: layers, KV heads, tokens, dims, float32

// DRAM node 0 and CXL node 1, ten times as slow.
class TieredBindingTest : public ::testing::Test {
 protected:
  TieredBindingTest() {
    tree_.Write("sys/devices/system/node/has_memory", "0-1\n");
    options_.binding = Binding::kTiered;
    options_.num_kv_heads = 2;
    options_.head_size = 32;
    options_.block_size = 16;
    options_.dram_bytes = options_.cxl_bytes = 200 * kPageBytes;
    options_.dram_node = 0;
    options_.cxl_node = 1;
    groups_.nodes = {0};
    system_.arena.calls = &policy_;
    system_.arena.roots = tree_.roots();
    system_.arena.budget = [](int) { return MemoryBudget(); };
    system_.measure = [](Tier tier) -> absl::StatusOr<double> { return tier == Tier::kDram ? 300e9 : 30e9; };
  }

  absl::StatusOr<std::unique_ptr<TieredBinding>> Bind() {
    TieredPool pool;
    for (std::vector<char>& region : regions_) pool.data.push_back(region.data());
    pool.bytes = regions_[0].size();
    pool.num_blocks = kBlocks;
    return BindTieredPool(options_, groups_, SelectKernels(CpuFeatures()), pool, 2, system_);
  }

  nlohmann::json Statistics(const TieredBinding& binding) {
    BackendStatistics statistics;
    AddTieredStatistics(options_, binding, statistics);
    return nlohmann::json::parse(statistics.ToJson());
  }

  static nlohmann::json ArenaOf(const nlohmann::json& statistics, const std::string& tier, const std::string& role) {
    for (const nlohmann::json& arena : statistics["placement"]["arenas"]) {
      if (arena["tier"] == tier && arena["role"] == role) return arena;
    }
    return nullptr;
  }

  FakeTree tree_;
  FakeMemoryPolicy policy_;
  BackendOptions options_;
  HeadGroups groups_;
  TieredSystem system_;
  std::vector<std::vector<char>> regions_ = std::vector<std::vector<char>>(2, std::vector<char>(1 << 15));
};

TEST_F(TieredBindingTest, ACxlNodeTakesItsShareOfValues) {
  const std::unique_ptr<TieredBinding> binding = Bind().value();
  EXPECT_EQ(binding->choice.policy, PlacementPolicy::kProportional);
  EXPECT_EQ(binding->placement.cxl_pages[0], 0);
  EXPECT_EQ(binding->placement.cxl_pages[1], 18) << "2 * 30 / 330 of 100";
  const nlohmann::json statistics = Statistics(*binding);
  EXPECT_EQ(statistics["placement"]["policy"], "proportional");
  EXPECT_EQ(statistics["placement"]["reason"], "DRAM 300.0 GB/s measured, CXL 30.0 GB/s measured");
  EXPECT_TRUE(statistics["placement"]["notes"].empty()) << statistics;
  EXPECT_EQ(ArenaOf(statistics, "cxl", "key"), nullptr);
  EXPECT_EQ(ArenaOf(statistics, "cxl", "value")["node"], 1);
  EXPECT_EQ(ArenaOf(statistics, "cxl", "value")["capacity_bytes"], 18 * kPageBytes);
  EXPECT_EQ(ArenaOf(statistics, "dram", "key")["node"], 0);
  EXPECT_EQ(ArenaOf(statistics, "dram", "key")["sampled_pages_on_node"].size(), 1u);
  EXPECT_EQ(statistics["tiers"]["cxl"]["node"], 1);
  EXPECT_EQ(statistics["tiers"]["cxl"]["emulated"], false);
}

TEST_F(TieredBindingTest, ResidencyIsToldByTierRoleAndNode) {
  const std::unique_ptr<TieredBinding> binding = Bind().value();
  binding->blocks->BeginStep();
  constexpr int kWritten = 61;  // blocks of one sequence; one is in the single device page, its first
  for (int b = 0; b < kWritten; ++b) {
    ASSERT_TRUE(binding->blocks->PrepareWrite(1 + b, 0, 16, b, 16 * kWritten, 1).ok());
  }
  const int64_t on_device = binding->blocks->Stats().resident_pages[0][0];
  const nlohmann::json statistics = Statistics(*binding);
  EXPECT_EQ(ArenaOf(statistics, "dram", "key")["resident_bytes"], (kWritten - on_device) * kPageBytes);
  const int64_t on_cxl = ArenaOf(statistics, "cxl", "value")["resident_bytes"].get<int64_t>() / kPageBytes;
  EXPECT_NEAR(on_cxl, (kWritten - on_device) * 2.0 * 30 / 330, 1);
  EXPECT_EQ(ArenaOf(statistics, "dram", "value")["resident_bytes"], (kWritten - on_device - on_cxl) * kPageBytes);
  EXPECT_EQ(statistics["tiers"]["cxl"]["resident_value_bytes"], on_cxl * kPageBytes);
}

TEST_F(TieredBindingTest, WithoutNumaControlEverythingWorksAndOneNoteSaysSo) {
  policy_.prefer_error = policy_.query_error = policy_.move_error = EPERM;
  const absl::StatusOr<std::unique_ptr<TieredBinding>> binding = Bind();
  ASSERT_TRUE(binding.ok()) << binding.status();
  const nlohmann::json notes = Statistics(**binding)["placement"]["notes"];
  ASSERT_EQ(notes.size(), 1u) << notes;
  EXPECT_NE(notes[0].get<std::string>().find("no NUMA control"), std::string::npos) << notes;
}

TEST_F(TieredBindingTest, AFullNodeIsNoticed) {
  policy_.free_pages[1] = 100;  // the rest of the CXL tier's pages go to node 0
  const std::unique_ptr<TieredBinding> binding = Bind().value();
  const nlohmann::json values = ArenaOf(Statistics(*binding), "cxl", "value");
  EXPECT_GT(values["misplaced_pages"], 0) << values;
  EXPECT_GT(values["unmovable_pages"].get<int64_t>() + values["no_room_pages"].get<int64_t>(), 0) << values;
}

class Refusing final : public DeviceRegistrar {
 public:
  absl::Status Register(absl::Span<std::byte>) override { return absl::ResourceExhaustedError("RLIMIT_MEMLOCK"); }
  absl::Status Unregister(absl::Span<std::byte>) override { return absl::OkStatus(); }
};

TEST_F(TieredBindingTest, PinFailuresAreCountedAndNoted) {
  Refusing registrar;
  system_.registrar = &registrar;
  const std::unique_ptr<TieredBinding> binding = Bind().value();
  const nlohmann::json statistics = Statistics(*binding);
  EXPECT_EQ(ArenaOf(statistics, "dram", "key")["pin_failures"], 1);
  EXPECT_EQ(ArenaOf(statistics, "dram", "key")["registered_bytes"], 0);
  EXPECT_NE(statistics["placement"]["notes"].dump().find("RLIMIT_MEMLOCK"), std::string::npos) << statistics;
}

TEST_F(TieredBindingTest, ATierLargerThanItsNodeIsRefusedByName) {
  system_.arena.budget = [](int node) {
    MemoryBudget budget;
    budget.bytes = node == 1 ? 1000 : int64_t{1} << 40;
    budget.limited_by = "node 1";
    return budget;
  };
  const absl::Status status = Bind().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("cxl_bytes"), std::string::npos) << status;
  EXPECT_NE(status.message().find("node 1"), std::string::npos) << status;
}

TEST_F(TieredBindingTest, PacedTiersAreReportedAsEmulated) {
  options_.dram_node = options_.cxl_node = -1;
  groups_ = HeadGroups();
  options_.dram_gigabytes_per_second = 2;
  options_.cxl_gigabytes_per_second = 0.5;
  const nlohmann::json statistics = Statistics(*Bind().value());
  for (const char* tier : {"dram", "cxl"}) EXPECT_EQ(statistics["tiers"][tier]["emulated"], true) << tier;
  EXPECT_EQ(statistics["tiers"]["cxl"]["paced_gigabytes_per_second"], 0.5);
  EXPECT_EQ(statistics["placement"]["reason"], "DRAM 2.0 GB/s paced, CXL 0.5 GB/s paced");
  EXPECT_DOUBLE_EQ(statistics["placement"]["value_share_on_cxl"], 0.4);
}

}  // namespace
}  // namespace hybridgen
