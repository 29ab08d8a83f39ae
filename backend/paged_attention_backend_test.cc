// The whole backend against the double-precision oracle, driven at random as an engine drives it.
#include "backend/paged_attention_backend.h"

#include <map>
#include <optional>
#include <string>

#include "backend/random_engine.h"
#include "gtest/gtest.h"
#include "kernels/page_format.h"
#include "kernels/testing/attend_case.h"
#include "nlohmann/json.hpp"

namespace hybridgen {
namespace {

struct Setting {
  const char* name;
  DeviceKind kind;
  Binding binding;
  DType dtype;
  double streaming_share;
  int drafts;
  int64_t dram_blocks;  // host tiers in blocks
  int64_t cxl_blocks;
  double mover_gigabytes_per_second = 0;
  PlacementChoice placement = PlacementChoice::kAuto;
  int head_groups = 0;
  int kv_heads = 2;
  int group = 2;                                 // query heads per KV head
  std::optional<DType> kv_dtype = std::nullopt;  // float8
  HostPageFormat host_page_format = HostPageFormat::kExact;
};

class BackendTest : public testing::TestWithParam<Setting> {};

constexpr int kDevicePages = 6;
constexpr double kSlowMover = 1e-3;  // copies are under way whenever blocks are written
constexpr int kBlocks = 49;          // with the null block: 8x the device tier

// That the policy was in force shows in what was read of each role: most reads are of resident pages.
void ExpectPlacement(const Setting& s, const nlohmann::json& stats) {
  if (s.cxl_blocks == 0 || s.dram_blocks == 0) return;
  const nlohmann::json& placement = stats["placement"];
  const auto resident = [&](const char* tier, const char* role) {
    for (const nlohmann::json& arena : placement["arenas"]) {
      if (arena["tier"] == tier && arena["role"] == role) return arena["resident_bytes"].get<int64_t>();
    }
    return int64_t{0};
  };
  switch (s.placement) {
    case PlacementChoice::kAuto:
    case PlacementChoice::kRole:
      EXPECT_EQ(placement["policy"], "role") << stats;
      break;
    case PlacementChoice::kProportional:
      EXPECT_EQ(placement["policy"], "proportional") << stats;
      EXPECT_DOUBLE_EQ(placement["value_share_on_cxl"].get<double>(), 0.5) << stats;
      EXPECT_EQ(resident("cxl", "key"), 0) << stats;
      EXPECT_GT(resident("cxl", "value"), 0) << stats;
      EXPECT_GT(resident("dram", "value"), 0) << stats;
      EXPECT_EQ(stats["placement_misses"], 0) << stats;
      break;
    case PlacementChoice::kInterleave:
      EXPECT_EQ(placement["policy"], "interleave") << stats;
      for (const char* role : {"key", "value"}) {
        EXPECT_GT(resident("cxl", role), 0) << stats;
        EXPECT_GT(resident("dram", role), 0) << stats;
      }
      break;
  }
}

// Each group has arenas of its own, half (a third, ...) of every page, and attends as often as the others.
void ExpectHeadGroups(const Setting& s, const nlohmann::json& stats) {
  const size_t groups = s.head_groups == 0 ? 1 : s.head_groups;
  const nlohmann::json& list = stats["head_groups"]["groups"];
  ASSERT_EQ(list.size(), groups) << stats;
  if (groups == 1) return;
  std::map<int, int64_t> capacity;
  for (const nlohmann::json& arena : stats["placement"]["arenas"]) {
    capacity[arena["head_group"].get<int>()] += arena["capacity_bytes"].get<int64_t>();
  }
  ASSERT_EQ(capacity.size(), groups) << stats;
  for (size_t g = 0; g < groups; ++g) {
    EXPECT_EQ(capacity[g], capacity[0]) << stats;
    EXPECT_GT(list[g]["items"], 0) << stats;
    EXPECT_EQ(list[g]["items"], list[0]["items"]) << stats;
    EXPECT_LE(list[g]["remote_items"], list[g]["items"]) << stats;
  }
}

TEST_P(BackendTest, MatchesTheOracleOverManySteps) {
  const Setting& s = GetParam();
  Shape shape;
  shape.dtype = s.dtype;
  shape.kv_dtype = s.kv_dtype;
  shape.kv_heads = s.kv_heads;
  shape.group = s.group;
  BackendOptions options;
  options.device_kind = s.kind;
  options.binding = s.binding;
  options.streaming_share = s.streaming_share;
  options.mover_gigabytes_per_second = s.mover_gigabytes_per_second;
  options.placement = s.placement;
  options.head_groups = s.head_groups;
  options.host_page_format = s.host_page_format;
  const bool digests = s.binding == Binding::kTiered && s.host_page_format == HostPageFormat::kExact;
  if (digests) options.page_digests = PageDigests::kOnPublish;
  if (s.placement == PlacementChoice::kProportional) {
    // Rates that decide the share and are too high to be felt.
    options.dram_gigabytes_per_second = 3000;
    options.cxl_gigabytes_per_second = 1000;
  }
  const int64_t host_block =
      2 * shape.layers *
      HostPageBytes(s.host_page_format == HostPageFormat::kInt8 ? PageFormat::kPackedInt8V1 : PageFormat::kPackedV1,
                    shape.kv(), shape.kv_heads, shape.block_size, shape.head_size);
  options.dram_bytes = s.dram_blocks * host_block;
  options.cxl_bytes = s.cxl_blocks * host_block;
  const uint32_t seed = TestSeed("//backend:paged_attention_backend_test", 20260418);
  Engine engine(shape, options, kDevicePages, kBlocks, s.drafts, seed);
  ASSERT_TRUE(engine.ok());
  if (HasFailure()) return;
#if defined(__SANITIZE_THREAD__)
  const int steps = 200;  // tsan multiplies the oracle's time
#else
  const int steps = 300;
#endif
  // The mover's thread gets its turn some time.
  const auto mover_waits = [&] { return s.mover_gigabytes_per_second > 0 && engine.Statistics()["migrations"] == 0; };
  for (int step = 0; step < steps || (step < 20 * steps && mover_waits()); ++step) {
    SCOPED_TRACE(testing::Message() << "step " << step);
    engine.Step(/*token_budget=*/step % 7 == 0 ? 150 : 40);
    if (HasFailure()) return;
  }
  // What the scenario is for must have happened.
  const nlohmann::json stats = engine.Statistics();
  EXPECT_GT(engine.preemptions(), 0);
  EXPECT_GT(engine.prefix_hits(), 0);
  EXPECT_EQ(stats["unwritten_reads"], 0);
  if (s.binding == Binding::kIdentity) return;
  EXPECT_EQ(stats["placement"]["host_page_format"], HostPageFormatName(s.host_page_format)) << stats;
  EXPECT_EQ(stats["placement"]["host_block_bytes"], host_block) << stats;
  EXPECT_GT(stats["host_direct_writes"], 0) << stats;
  EXPECT_GT(stats["publishes"], 0) << stats;
  const int64_t host_read =
      (stats["tiers"].contains("dram") ? stats["tiers"]["dram"]["read_bytes"].get<int64_t>() : 0) +
      (stats["tiers"].contains("cxl") ? stats["tiers"]["cxl"]["read_bytes"].get<int64_t>() : 0);
  EXPECT_GT(host_read, 0) << stats;
  if (s.kind == DeviceKind::kEmulated) {
    EXPECT_GT(stats["evictions"], 0) << stats;
    EXPECT_GT(stats["recalls"], 0) << stats;
    EXPECT_GT(stats["tiers"]["device"]["device_read_bytes"], 0) << stats;
    EXPECT_EQ(stats["tiers"]["device"]["cpu_read_bytes"], 0) << stats;
  }
  if (s.streaming_share == 1) {
    EXPECT_EQ(stats["cpu_share"], 0) << stats;
  }
  if (s.cxl_blocks > 0) {
    EXPECT_GT(stats["tiers"]["cxl"]["read_bytes"], 0) << stats;
  }
  ExpectPlacement(s, stats);
  if (s.mover_gigabytes_per_second > 0) {
    EXPECT_GT(stats["migrations"], 0) << stats;
    EXPECT_GT(stats["mover"]["bytes"], 0) << stats;
  }
  if (s.mover_gigabytes_per_second == kSlowMover) {
    EXPECT_GT(stats["migrations_dropped"], 0) << stats;
  }
  ExpectHeadGroups(s, stats);
  EXPECT_EQ(stats.contains("page_digests"), digests) << stats;
  if (digests) {
    EXPECT_GT(engine.page_digests_found(), 0);
    EXPECT_GT(stats["page_digests"]["blocks"], 0) << stats;
    EXPECT_LE(stats["page_digests"]["blocks"], stats["publishes"]) << stats;
    EXPECT_GT(stats["page_digests"]["reserved_bytes"], 0) << stats;
    EXPECT_GT(stats["page_digests"]["seconds"], 0) << stats;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BackendTest,
    testing::Values(
        Setting{"identity_cpu", DeviceKind::kCpu, Binding::kIdentity, DType::kFloat32, 0, 3, 0, 0},
        Setting{"identity_cpu_bf16", DeviceKind::kCpu, Binding::kIdentity, DType::kBFloat16, 0, 0, 0, 0},
        Setting{"identity_emulated", DeviceKind::kEmulated, Binding::kIdentity, DType::kFloat16, 0, 0, 0, 0},
        Setting{"cpu_dram", DeviceKind::kCpu, Binding::kTiered, DType::kFloat32, 0, 0, 44, 0},
        Setting{"cpu_dram_cxl_drafts", DeviceKind::kCpu, Binding::kTiered, DType::kBFloat16, 0, 3, 25, 25},
        Setting{"emulated_dram", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat32, 0, 0, 60, 0},
        Setting{"emulated_dram_cxl_drafts", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat32, 0, 3, 30, 30},
        Setting{"emulated_cxl_only", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat16, 0, 0, 0, 50},
        // K does not fit into DRAM: what spills is brought back while steps run.
        Setting{"cpu_mover_drafts", DeviceKind::kCpu, Binding::kTiered, DType::kBFloat16, 0, 3, 8, 42, kSlowMover},
        Setting{"emulated_mover_drafts", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat32, 0, 3, 8, 52, 1.0},
        Setting{"emulated_mover_streaming", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat16, 0.4, 0, 8, 52,
                100.0},
        Setting{"cpu_proportional_drafts", DeviceKind::kCpu, Binding::kTiered, DType::kFloat32, 0, 3, 44, 44, 0,
                PlacementChoice::kProportional},
        Setting{"cpu_interleave", DeviceKind::kCpu, Binding::kTiered, DType::kBFloat16, 0, 0, 30, 30, 0,
                PlacementChoice::kInterleave},
        Setting{"emulated_proportional", DeviceKind::kEmulated, Binding::kTiered, DType::kBFloat16, 0, 0, 50, 50, 0,
                PlacementChoice::kProportional},
        Setting{"emulated_interleave_streaming", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat32, 0.4, 3, 40,
                40, 0, PlacementChoice::kInterleave},
        // Head groups; what the machine lacks is emulated.
        Setting{"cpu_two_head_groups", DeviceKind::kCpu, Binding::kTiered, DType::kBFloat16, 0, 3, 8, 42, 1.0,
                PlacementChoice::kAuto, 2, 4, 3},
        Setting{"cpu_three_head_groups", DeviceKind::kCpu, Binding::kTiered, DType::kFloat32, 0, 0, 25, 25, 0,
                PlacementChoice::kInterleave, 3, 3, 1},
        Setting{"emulated_two_head_groups", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat16, 0.4, 3, 8, 52,
                100.0, PlacementChoice::kAuto, 2, 6, 2},
        Setting{"odd_heads_in_one_group", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat32, 0, 0, 60, 0, 0,
                PlacementChoice::kAuto, 0, 3, 5},
        // 8-bit host pages; the engine's data are such that they are exact.
        Setting{"cpu_int8_drafts", DeviceKind::kCpu, Binding::kTiered, DType::kBFloat16, 0, 3, 25, 25, 0,
                PlacementChoice::kAuto, 0, 2, 2, std::nullopt, HostPageFormat::kInt8},
        Setting{"cpu_int8_mover_two_head_groups", DeviceKind::kCpu, Binding::kTiered, DType::kFloat32, 0, 3, 8, 42, 1.0,
                PlacementChoice::kAuto, 2, 4, 3, std::nullopt, HostPageFormat::kInt8},
        Setting{"emulated_int8_mover_streaming", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat16, 0.4, 3, 8,
                52, 100.0, PlacementChoice::kAuto, 0, 2, 2, std::nullopt, HostPageFormat::kInt8},
        Setting{"emulated_int8_one_head_group", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat32, 0, 0, 60, 0,
                0, PlacementChoice::kAuto, 0, 3, 9, std::nullopt, HostPageFormat::kInt8},
        Setting{"emulated_streaming", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat32, 0.4, 0, 60, 0},
        Setting{"emulated_all_streamed", DeviceKind::kEmulated, Binding::kTiered, DType::kBFloat16, 1, 0, 60, 0},
        // Float8 KV: direct writes, publishing, recalls, migrations, head groups.
        Setting{"identity_cpu_e4m3", DeviceKind::kCpu, Binding::kIdentity, DType::kBFloat16, 0, 3, 0, 0, 0,
                PlacementChoice::kAuto, 0, 2, 2, DType::kFloat8E4M3},
        Setting{"identity_emulated_e5m2", DeviceKind::kEmulated, Binding::kIdentity, DType::kFloat32, 0, 0, 0, 0, 0,
                PlacementChoice::kAuto, 0, 2, 4, DType::kFloat8E5M2},
        Setting{"cpu_mover_drafts_e5m2", DeviceKind::kCpu, Binding::kTiered, DType::kBFloat16, 0, 3, 8, 42, 100.0,
                PlacementChoice::kAuto, 2, 4, 3, DType::kFloat8E5M2},
        Setting{"emulated_mover_streaming_e4m3", DeviceKind::kEmulated, Binding::kTiered, DType::kFloat16, 0.4, 3, 8,
                52, 100.0, PlacementChoice::kAuto, 2, 2, 2, DType::kFloat8E4M3}),
    [](const testing::TestParamInfo<Setting>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace hybridgen
