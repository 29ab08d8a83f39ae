// In a guest: block manager and attention over DRAM and the far node, through the C ABI, equal to the oracle.
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/harness/harness.h"
#include "tests/numa_vm/guest.h"

namespace hybridgen {
namespace {

constexpr int64_t kKiB = 1024;

class AttentionGuestTest : public ::testing::TestWithParam<hg_device_kind> {};

TEST_P(AttentionGuestTest, EveryOutputEqualsTheOracle) {
  const absl::StatusOr<Library> library = OpenLibrary("backend/libhybridgen.so");
  ASSERT_TRUE(library.ok()) << library.status();
  HarnessOptions options;
  hg_config& config = options.config;
  config.struct_size = sizeof(config);
  config.device_kind = GetParam();
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
  options.num_query_heads = 4;
  options.num_layers = 2;
  options.prompt_tokens = {100, 33, 1};
  options.decode_tokens = 6;
  options.device_bytes = 3 * 32 * kKiB;
  const absl::StatusOr<HarnessReport> report = RunHarness(*library, options);
  ASSERT_TRUE(report.ok()) << report.status() << "\nseed " << options.seed;
  EXPECT_GT(report->checked_rows, 0);
  const nlohmann::json tiers = nlohmann::json::parse(report->stats)["tiers"];
  for (const char* tier : {"device", "dram", "cxl"}) EXPECT_GT(tiers[tier]["read_bytes"].get<int64_t>(), 0) << tier;
}

INSTANTIATE_TEST_SUITE_P(Devices, AttentionGuestTest, ::testing::Values(HG_DEVICE_CPU, HG_DEVICE_EMULATED),
                         [](const auto& info) { return info.param == HG_DEVICE_CPU ? "Cpu" : "Emulated"; });

}  // namespace
}  // namespace hybridgen
