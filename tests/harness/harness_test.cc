// The harness over both device kinds, both bindings, and KV larger than the device tier: what `bazel run
// //tests/harness` does, with every output checked.
#include "tests/harness/harness.h"

#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "nlohmann/json.hpp"

namespace hybridgen {
namespace {

struct Case {
  const char* name;
  hg_device_kind device_kind;
  hg_binding binding;
  void (*change)(HarnessOptions&);
};

void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }

constexpr int64_t kKiB = 1024;

#ifdef HYBRIDGEN_SANITIZER
constexpr int kLongPrompt = 120;
constexpr int kDecodeTokens = 3;
#else
constexpr int kLongPrompt = 270;
constexpr int kDecodeTokens = 20;
#endif

// 3 sequences of 27 blocks together (sanitizers: 12); a block takes 2 layers * 2 KV heads * 16 tokens * 2 * 64 * 4
// bytes = 32 KiB, so that the 3 device pages of the tiered cases hold a ninth of the KV (sanitizers: a quarter).
HarnessOptions Options(const Case& c) {
  HarnessOptions options;
  hg_config& config = options.config;
  config.struct_size = sizeof(config);
  config.device_kind = c.device_kind;
  config.binding = c.binding;
  config.executor = HG_EXECUTOR_POOL;
  config.isa = HG_ISA_AUTO;
  config.dtype = HG_FLOAT32;
  config.num_kv_heads = 2;
  config.head_size = 64;
  config.block_size = 16;
  config.num_threads = 2;
  config.dram_node = -1;
  config.cxl_node = -1;
  options.num_query_heads = 4;
  options.num_layers = 2;
  options.prompt_tokens = {kLongPrompt, 41, 1};
  options.decode_tokens = kDecodeTokens;
  if (c.binding == HG_BINDING_IDENTITY) {
    options.tables = TableSource::kRows;  // the host mirror belongs to the tiered binding
  } else {
    config.dram_bytes = 8192 * kKiB;
    options.device_bytes = 3 * 32 * kKiB;
  }
  c.change(options);
  return options;
}

class HarnessTest : public ::testing::TestWithParam<Case> {};

TEST_P(HarnessTest, EveryOutputEqualsTheOracle) {
  const absl::StatusOr<Library> library = OpenLibrary("backend/libhybridgen.so");
  ASSERT_TRUE(library.ok()) << library.status();
  const HarnessOptions options = Options(GetParam());
  const absl::StatusOr<HarnessReport> report = RunHarness(*library, options);
  ASSERT_TRUE(report.ok()) << report.status() << "\nseed " << options.seed;

  int64_t computed_tokens = 0;
  for (int prompt : options.prompt_tokens) computed_tokens += prompt + options.decode_tokens;
  EXPECT_GE(report->checked_rows, computed_tokens * options.rounds * options.num_layers * options.num_query_heads);
  const nlohmann::json stats = nlohmann::json::parse(report->stats);
  const auto read_bytes = [&stats](const char* tier) {
    return stats["tiers"].contains(tier) ? stats["tiers"][tier]["read_bytes"].get<int64_t>() : 0;
  };
  // The tiers that the case is about were really read.
  EXPECT_EQ(read_bytes("dram") > 0, options.config.dram_bytes > 0) << report->stats;
  EXPECT_EQ(read_bytes("cxl") > 0, options.config.cxl_bytes > 0) << report->stats;
  EXPECT_GT(read_bytes("device"), 0) << report->stats;
  // Paced reads never take less time than their rate allows, on however fast a machine.
  const double cpu_seconds = stats["seconds"]["cpu"], device_seconds = stats["seconds"]["device"];
  if (const double rate = 1e9 * options.config.cxl_gigabytes_per_second; rate > 0) {
    EXPECT_LE(stats["tiers"]["cxl"]["cpu_read_bytes"].get<double>(), rate * cpu_seconds) << report->stats;
  }
  if (const double rate = 1e9 * options.config.device_gigabytes_per_second; rate > 0) {
    EXPECT_LE(stats["tiers"]["device"]["device_read_bytes"].get<double>(), rate * device_seconds) << report->stats;
  }
}

void AsItIs(HarnessOptions&) {}
void ChunkedPrefill(HarnessOptions& o) { o.step_tokens = 48; }
void RowTables(HarnessOptions& o) { o.tables = TableSource::kRows; }
void BlocksReused(HarnessOptions& o) { o.rounds = 3; }
void Drafts(HarnessOptions& o) { o.config.speculative_tokens = o.draft_tokens = 4; }
void HalfStreamed(HarnessOptions& o) { o.config.streaming_share = 0.5; }
void AllStreamed(HarnessOptions& o) { o.config.streaming_share = 1.0; }
void Window(HarnessOptions& o) { o.sliding_window = 50; }
void AllFeatures(HarnessOptions& o) {
  o.soft_cap = 3;
  o.alibi = true;
  o.sinks = true;
}
void NotCausal(HarnessOptions& o) {
  o.mask = Mask::kNone;
  o.step_tokens = 32;
}
void Float16(HarnessOptions& o) { o.config.dtype = HG_FLOAT16; }
void BFloat16(HarnessOptions& o) { o.config.dtype = HG_BFLOAT16; }
void OddHeads(HarnessOptions& o) {
  o.config.head_size = 72;
  o.config.num_kv_heads = 1;
  o.num_query_heads = 5;
  o.config.block_size = 48;
}
// K and V over both host tiers: the DRAM tier alone is too small for the host's part.
void WithCxl(HarnessOptions& o) {
  o.config.dram_bytes = 320 * kKiB;
  o.config.cxl_bytes = 4096 * kKiB;
}
// Both host tiers in two head groups, with migrations.
void HeadGroups(HarnessOptions& o) {
  WithCxl(o);
  BlocksReused(o);
  o.config.head_groups = 2;
  o.config.mover_gigabytes_per_second = 1;
}
void Proportional(HarnessOptions& o) {
  o.config.dram_bytes = o.config.cxl_bytes = 2048 * kKiB;
  o.config.placement = HG_PLACEMENT_PROPORTIONAL;
  o.config.dram_gigabytes_per_second = 300;  // decides the share, too high to be felt
  o.config.cxl_gigabytes_per_second = 100;
}
void Interleaved(HarnessOptions& o) {
  o.config.dram_bytes = o.config.cxl_bytes = 2048 * kKiB;
  o.config.placement = HG_PLACEMENT_INTERLEAVE;
  o.config.interleave_dram_weight = 2;
}
// Slow enough that pacing waits.
void Paced(HarnessOptions& o) {
  WithCxl(o);
  o.config.cxl_gigabytes_per_second = 0.02;
}
void PacedDevice(HarnessOptions& o) { o.config.device_gigabytes_per_second = 0.02; }
void Portable(HarnessOptions& o) { o.config.isa = HG_ISA_PORTABLE; }

std::string CaseName(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(
    Cases, HarnessTest,
    ::testing::Values(Case{"CpuIdentity", HG_DEVICE_CPU, HG_BINDING_IDENTITY, AsItIs},
                      Case{"CpuIdentityDrafts", HG_DEVICE_CPU, HG_BINDING_IDENTITY, Drafts},
                      Case{"CpuIdentityAllFeatures", HG_DEVICE_CPU, HG_BINDING_IDENTITY, AllFeatures},
                      Case{"CpuTiered", HG_DEVICE_CPU, HG_BINDING_TIERED, AsItIs},
                      Case{"CpuTieredChunkedPrefill", HG_DEVICE_CPU, HG_BINDING_TIERED, ChunkedPrefill},
                      Case{"CpuTieredRows", HG_DEVICE_CPU, HG_BINDING_TIERED, RowTables},
                      Case{"CpuTieredBlocksReused", HG_DEVICE_CPU, HG_BINDING_TIERED, BlocksReused},
                      Case{"CpuTieredDrafts", HG_DEVICE_CPU, HG_BINDING_TIERED, Drafts},
                      Case{"CpuTieredWithCxl", HG_DEVICE_CPU, HG_BINDING_TIERED, WithCxl},
                      Case{"CpuTieredHeadGroups", HG_DEVICE_CPU, HG_BINDING_TIERED, HeadGroups},
                      Case{"CpuTieredProportional", HG_DEVICE_CPU, HG_BINDING_TIERED, Proportional},
                      Case{"CpuTieredInterleaved", HG_DEVICE_CPU, HG_BINDING_TIERED, Interleaved},
                      Case{"CpuTieredPaced", HG_DEVICE_CPU, HG_BINDING_TIERED, Paced},
                      Case{"CpuTieredOddHeads", HG_DEVICE_CPU, HG_BINDING_TIERED, OddHeads},
                      Case{"CpuTieredPortable", HG_DEVICE_CPU, HG_BINDING_TIERED, Portable}),
    CaseName);

INSTANTIATE_TEST_SUITE_P(
    EmulatedCases, HarnessTest,
    ::testing::Values(Case{"EmulatedIdentity", HG_DEVICE_EMULATED, HG_BINDING_IDENTITY, AsItIs},
                      Case{"EmulatedTiered", HG_DEVICE_EMULATED, HG_BINDING_TIERED, AsItIs},
                      Case{"EmulatedTieredChunkedPrefill", HG_DEVICE_EMULATED, HG_BINDING_TIERED, ChunkedPrefill},
                      Case{"EmulatedTieredBlocksReused", HG_DEVICE_EMULATED, HG_BINDING_TIERED, BlocksReused},
                      Case{"EmulatedTieredDrafts", HG_DEVICE_EMULATED, HG_BINDING_TIERED, Drafts},
                      Case{"EmulatedTieredHalfStreamed", HG_DEVICE_EMULATED, HG_BINDING_TIERED, HalfStreamed},
                      Case{"EmulatedTieredAllStreamed", HG_DEVICE_EMULATED, HG_BINDING_TIERED, AllStreamed},
                      Case{"EmulatedTieredWindow", HG_DEVICE_EMULATED, HG_BINDING_TIERED, Window},
                      Case{"EmulatedTieredAllFeatures", HG_DEVICE_EMULATED, HG_BINDING_TIERED, AllFeatures},
                      Case{"EmulatedTieredNotCausal", HG_DEVICE_EMULATED, HG_BINDING_TIERED, NotCausal},
                      Case{"EmulatedTieredFloat16", HG_DEVICE_EMULATED, HG_BINDING_TIERED, Float16},
                      Case{"EmulatedTieredBFloat16", HG_DEVICE_EMULATED, HG_BINDING_TIERED, BFloat16},
                      Case{"EmulatedTieredPaced", HG_DEVICE_EMULATED, HG_BINDING_TIERED, PacedDevice},
                      Case{"EmulatedTieredProportional", HG_DEVICE_EMULATED, HG_BINDING_TIERED, Proportional},
                      Case{"EmulatedTieredHeadGroups", HG_DEVICE_EMULATED, HG_BINDING_TIERED, HeadGroups},
                      Case{"EmulatedTieredWithCxl", HG_DEVICE_EMULATED, HG_BINDING_TIERED, WithCxl}),
    CaseName);

}  // namespace
}  // namespace hybridgen
