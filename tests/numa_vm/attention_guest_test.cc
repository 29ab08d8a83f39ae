// In a guest: the block manager, the mover and attention over DRAM and the far memory; every output equal to the
// oracle.
#include <filesystem>
#include <map>
#include <string>

#include "backend/random_engine.h"
#include "gtest/gtest.h"
#include "kernels/page_format.h"
#include "nlohmann/json.hpp"
#include "tests/harness/harness.h"
#include "tests/numa_vm/guest.h"

namespace hybridgen {
namespace {

constexpr int64_t kKiB = 1024;
constexpr char kDaxDevice[] = "/dev/dax0.0";

// The mapped device that is the far memory where no node is; empty: none.
std::string FarDevice() { return FarNode() == kNoNode && std::filesystem::exists(kDaxDevice) ? kDaxDevice : ""; }

// By the kernel's word: every page that was placed lies on the node that was asked for.
void ExpectEveryPageInPlace() {
  const std::map<int, std::map<int, int64_t>> bound = PagesOfBoundMappings();
  EXPECT_GT(bound.count(HomeNode()), 0u);
  EXPECT_EQ(bound.count(FarNode()), FarNode() == kNoNode ? 0u : 1u);
  for (const auto& [asked, pages] : bound) {
    EXPECT_GT(pages.count(asked), 0u);
    EXPECT_EQ(pages.size(), 1u) << pages.size() << " nodes hold pages that were placed on node " << asked;
  }
}

// By our word: the same, and of a mapped device the node that it names.
void ExpectNoneMisplaced(const nlohmann::json& statistics) {
  ASSERT_GT(statistics["placement"]["arenas"].size(), 0u) << statistics;
  for (const nlohmann::json& arena : statistics["placement"]["arenas"]) {
    EXPECT_EQ(arena["misplaced_pages"], 0) << arena;
    EXPECT_EQ(arena["sampled_pages_unknown"], 0) << arena;
    if (arena["tier"] == "dram") {
      EXPECT_EQ(arena["node"], HomeNode()) << arena;
    } else if (FarDevice().empty()) {
      EXPECT_EQ(arena["node"], FarNode()) << arena;
    } else {
      EXPECT_NE(arena["node"], HomeNode()) << arena;
    }
  }
}

struct Setting {
  DeviceKind kind;
  PlacementChoice placement;
};

class EngineGuestTest : public testing::TestWithParam<Setting> {};

TEST_P(EngineGuestTest, RandomStepsEqualTheOracleWhilePagesMigrate) {
  Shape shape;
  BackendOptions options;
  options.device_kind = GetParam().kind;
  options.binding = Binding::kTiered;
  options.placement = GetParam().placement;
  options.mover_gigabytes_per_second = 1;
  const int64_t block =
      2 * shape.layers * PackedPageBytes(shape.dtype, shape.kv_heads, shape.block_size, shape.head_size);
  // K of all blocks does not fit into DRAM, so that some spills and comes back.
  options.dram_bytes = 8 * block;
  options.cxl_bytes = 52 * block;
  options.dram_node = HomeNode();
  options.cxl_node = FarNode();
  options.cxl_device = FarDevice();
  options.timeout = absl::Minutes(5);
  const uint32_t seed = TestSeed(GuestTarget().c_str(), 20261124);
  Engine engine(shape, options, /*device_pages=*/6, /*num_blocks=*/49, /*drafts=*/3, seed);
  ASSERT_TRUE(engine.ok());
  for (int step = 0; step < 60 && !HasFailure(); ++step) engine.Step(step % 7 == 0 ? 150 : 40);
  ExpectEveryPageInPlace();
  const nlohmann::json statistics = engine.Statistics();
  ExpectNoneMisplaced(statistics);
  EXPECT_GT(statistics["tiers"]["dram"]["read_bytes"], 0) << statistics;
  EXPECT_GT(statistics["tiers"]["cxl"]["read_bytes"], 0) << statistics;
  EXPECT_GT(statistics["migrations"], 0) << statistics;
}

INSTANTIATE_TEST_SUITE_P(Settings, EngineGuestTest,
                         testing::Values(Setting{DeviceKind::kCpu, PlacementChoice::kRole},
                                         Setting{DeviceKind::kEmulated, PlacementChoice::kInterleave}),
                         [](const auto& info) { return info.param.kind == DeviceKind::kCpu ? "Cpu" : "Emulated"; });

// A few prompts through the C ABI, every output checked. The caller's `device` outlives the options.
HarnessOptions SmallRun(const std::string& device) {
  HarnessOptions options;
  hg_config& config = options.config;
  config.struct_size = sizeof(config);
  config.device_kind = HG_DEVICE_EMULATED;
  config.binding = HG_BINDING_TIERED;
  config.executor = HG_EXECUTOR_POOL;
  config.isa = HG_ISA_AUTO;
  config.dtype = HG_FLOAT32;
  config.num_kv_heads = 2;
  config.head_size = 64;
  config.block_size = 16;
  config.num_threads = 2;
  config.timeout_seconds = 300;
  // A block takes 2 layers * 2 KV heads * 16 tokens * 2 * 64 * 4 bytes = 32 KiB: 3 of 12 blocks stay on the device,
  // DRAM has room for K and a part of V.
  config.dram_bytes = 192 * kKiB;
  config.cxl_bytes = 4096 * kKiB;
  config.dram_node = HomeNode();
  config.cxl_node = FarNode();
  config.cxl_device = device.empty() ? nullptr : device.c_str();
  options.num_query_heads = 4;
  options.num_layers = 2;
  options.prompt_tokens = {100, 33, 1};
  options.decode_tokens = 6;
  options.device_bytes = 3 * 32 * kKiB;
  return options;
}

// The library's statistics as JSON, or what went wrong.
std::string RunLibrary(const HarnessOptions& options) {
  const absl::StatusOr<Library> library = OpenLibrary("backend/libhybridgen.so");
  if (!library.ok()) return library.status().ToString();
  const absl::StatusOr<HarnessReport> report = RunHarness(*library, options);
  return report.ok() ? report->stats : report.status().ToString();
}

void ExpectEveryTierRead(const nlohmann::json& statistics) {
  for (const char* tier : {"device", "dram", "cxl"}) {
    EXPECT_GT(statistics["tiers"][tier]["read_bytes"], 0) << tier << " of " << statistics;
  }
}

TEST(AttentionGuestTest, TheLibraryThroughItsAbi) {
  const std::string device = FarDevice();
  const std::string text = RunLibrary(SmallRun(device));
  const nlohmann::json statistics = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  ASSERT_FALSE(statistics.is_discarded()) << text;
  ExpectNoneMisplaced(statistics);
  ExpectEveryTierRead(statistics);
}

TEST(AttentionGuestTest, WithoutPermissionToPlacePagesItWorksAndSaysSoInOneLine) {
  const std::string device = FarDevice();
  const std::string text = InChild([&device] {
    ForbidMemoryPolicy();
    return RunLibrary(SmallRun(device));
  });
  const nlohmann::json statistics = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  ASSERT_FALSE(statistics.is_discarded()) << text;
  ExpectEveryTierRead(statistics);
  const nlohmann::json& notes = statistics["placement"]["notes"];
  ASSERT_EQ(notes.size(), 1u) << notes;
  EXPECT_NE(notes[0].get<std::string>().find("NUMA"), std::string::npos) << notes;
}

}  // namespace
}  // namespace hybridgen
