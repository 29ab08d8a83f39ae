// The whole backend with device_kind cuda, against the double-precision oracle, driven at random as an engine drives
// it: the device is the SIMT executor, the CPU's part comes in by the joint.
#include <memory>
#include <optional>
#include <string>

#include "backend/paged_attention_backend.h"
#include "backend/random_engine.h"
#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"
#include "nlohmann/json.hpp"
#include "tests/simt/host_stream.h"

namespace hybridgen {
namespace {

using simt::HostStream;

struct Setting {
  const char* name;
  Binding binding;
  DType dtype;
  int head_size;
  int kv_heads;
  int group;
  int drafts;
  int64_t dram_blocks;
  int64_t cxl_blocks;
  int max_call_rows = 256;
  int steps_ahead = 1;
  int head_groups = 0;
  double mover_gigabytes_per_second = 0;
  std::optional<DType> kv_dtype = std::nullopt;  // float8
  double streaming_share = 0;
  int ring_pages = 512;
  int accepted_registrations = 1;  // every so many-th; 0: none
};

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kSteps = 8;
constexpr size_t kEveryNth = 3;  // sanitizers multiply the executor's time
#else
constexpr int kSteps = 30;
constexpr size_t kEveryNth = 1;
#endif
constexpr int kDevicePages = 6;
constexpr int kBlocks = 49;  // with the null block: 8x the device tier

class CudaBackendTest : public testing::TestWithParam<Setting> {};

EngineDevice DeviceOf(const std::shared_ptr<HostStream>& stream, DType dtype, int steps_ahead) {
  EngineDevice device;
  device.stream = stream;
  device.lend = [s = stream.get()](const void* data, size_t bytes) { s->Lend(data, bytes); };
  device.take_back = [s = stream.get()](const void* data) { s->TakeBack(data); };
  device.synchronize = [s = stream.get()] { return s->Synchronize(); };
  device.steps_ahead = steps_ahead;
  device.weight_unit = dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
  return device;
}

TEST_P(CudaBackendTest, MatchesTheOracleOverManySteps) {
  const Setting& s = GetParam();
  Shape shape;
  shape.dtype = s.dtype;
  shape.kv_dtype = s.kv_dtype;
  shape.head_size = s.head_size;
  shape.kv_heads = s.kv_heads;
  shape.group = s.group;
  BackendOptions options;
  options.device_kind = DeviceKind::kCuda;
  options.binding = s.binding;
  options.max_call_rows = s.max_call_rows;
  options.head_groups = s.head_groups;
  options.mover_gigabytes_per_second = s.mover_gigabytes_per_second;
  options.streaming_share = s.streaming_share;
  options.ring_pages = s.ring_pages;
  options.staging_bytes = 48 << 10;  // some blocks
  const int64_t host_block =
      2 * shape.layers * PackedPageBytes(shape.kv(), shape.kv_heads, shape.block_size, shape.head_size);
  options.dram_bytes = s.dram_blocks * host_block;
  options.cxl_bytes = s.cxl_blocks * host_block;
  if (s.binding == Binding::kTiered) options.page_digests = PageDigests::kOnPublish;
  const uint32_t seed = TestSeed("//tests/simt:backend_test", 20261124);
  const auto stream = std::make_shared<HostStream>(seed);
  stream->accept_every_registration(s.accepted_registrations);
  Engine engine(shape, options, kDevicePages, kBlocks, s.drafts, seed, DeviceOf(stream, s.dtype, s.steps_ahead));
  ASSERT_TRUE(engine.ok());
  if (HasFailure()) return;
  // What the scenario is for must have happened, so some go on for longer.
  const auto waits = [&] {
    const nlohmann::json stats = engine.Statistics();
    if (engine.prefix_hits() == 0 || stats["tiers"]["device"]["device_read_bytes"] == 0) return true;
    return s.binding == Binding::kTiered &&
           (stats["evictions"] == 0 || stats["recalls"] == 0 || stats["host_direct_writes"] == 0);
  };
  for (int step = 0; step < kSteps || (step < 20 * kSteps && waits()); ++step) {
    SCOPED_TRACE(testing::Message() << "step " << step);
    engine.Step(/*token_budget=*/step % 7 == 0 ? 100 : 24);
    if (HasFailure()) return;
  }
  const nlohmann::json stats = engine.Statistics();
  EXPECT_EQ(stats["device_kind"], "cuda");
  EXPECT_GT(engine.prefix_hits(), 0);
  EXPECT_EQ(stats["unwritten_reads"], 0);
  EXPECT_GT(stats["tiers"]["device"]["device_read_bytes"], 0) << stats;
  EXPECT_EQ(stats["tiers"]["device"]["cpu_read_bytes"], 0) << stats;
  if (s.binding == Binding::kIdentity) return;
  EXPECT_GT(stats["host_direct_writes"], 0) << stats;
  EXPECT_GT(stats["publishes"], 0) << stats;
  EXPECT_GT(stats["evictions"], 0) << stats;
  EXPECT_GT(stats["recalls"], 0) << stats;
  EXPECT_GT(stats["page_digests"]["blocks"], 0) << stats;
  const char* const tier = s.dram_blocks > 0 ? "dram" : "cxl";
  EXPECT_GT(stats["tiers"][tier]["read_bytes"], 0) << stats;
  EXPECT_EQ(stats["tiers"][tier]["device_read_bytes"] > 0, s.streaming_share > 0) << stats;
  EXPECT_EQ(stats["tiers"][tier]["cpu_read_bytes"] > 0, s.streaming_share < 1) << stats;
  for (const char* const seconds : {"device", "merge", "transfer"}) EXPECT_GT(stats["seconds"][seconds], 0) << stats;
}

// Every setting; under a sanitizer every third one, as the executor's fibres are slow there.
std::vector<Setting> Settings() {
  std::vector<Setting> settings = {
      Setting{"identity", Binding::kIdentity, DType::kFloat16, 64, 2, 2, 3, 0, 0},
      Setting{"identity_bf16_ahead", Binding::kIdentity, DType::kBFloat16, 128, 1, 8, 0, 0, 0, 256, 3},
      Setting{"dram", Binding::kTiered, DType::kFloat16, 64, 2, 2, 0, 60, 0},
      Setting{"dram_cxl_drafts", Binding::kTiered, DType::kBFloat16, 64, 2, 1, 3, 30, 30},
      Setting{"cxl_only_large_group", Binding::kTiered, DType::kFloat16, 96, 1, 6, 0, 0, 60},
      // Every layer of every step is several calls of the joint.
      Setting{"small_calls", Binding::kTiered, DType::kBFloat16, 64, 1, 3, 0, 60, 0, 7},
      Setting{"small_calls_drafts_ahead", Binding::kTiered, DType::kFloat16, 64, 2, 2, 3, 30, 30, 5, 2},
      Setting{"steps_ahead", Binding::kTiered, DType::kFloat16, 64, 1, 4, 0, 60, 0, 64, 4},
      Setting{"two_head_groups", Binding::kTiered, DType::kFloat16, 64, 4, 2, 0, 30, 30, 16, 1, 2},
      Setting{"mover", Binding::kTiered, DType::kBFloat16, 64, 2, 2, 0, 8, 52, 256, 2, 0, 1.0},
      // Float8 pages on both sides, two layers of different scales.
      Setting{"identity_e5m2", Binding::kIdentity, DType::kFloat16, 128, 1, 2, 3, 0, 0, 256, 1, 0, 0,
              DType::kFloat8E5M2},
      Setting{"dram_cxl_drafts_e4m3", Binding::kTiered, DType::kBFloat16, 64, 2, 2, 3, 30, 30, 256, 1, 0, 0,
              DType::kFloat8E4M3},
      Setting{"two_head_groups_e4m3", Binding::kTiered, DType::kFloat16, 96, 4, 1, 0, 60, 0, 16, 2, 2, 0,
              DType::kFloat8E4M3},
      Setting{"streamed", Binding::kTiered, DType::kFloat16, 64, 2, 2, 0, 30, 30, 256, 2, 0, 0, std::nullopt, 0.3},
      Setting{"streamed_small_ring_e4m3", Binding::kTiered, DType::kBFloat16, 64, 1, 3, 3, 60, 0, 7, 1, 0, 0,
              DType::kFloat8E4M3, 0.3, 2},
      Setting{"all_streamed_small_ring", Binding::kTiered, DType::kFloat16, 64, 2, 1, 3, 30, 30, 16, 2, 2, 0,
              std::nullopt, 1, 3},
      Setting{"all_streamed_one_page", Binding::kTiered, DType::kBFloat16, 64, 1, 4, 0, 60, 0, 64, 1, 0, 1.0,
              std::nullopt, 1, 1},
      Setting{"staged", Binding::kTiered, DType::kFloat16, 64, 2, 1, 0, 30, 30, 256, 2, 2, 0, std::nullopt, 0, 1, 0},
      Setting{"staged_in_part_e5m2", Binding::kTiered, DType::kBFloat16, 64, 1, 2, 3, 30, 30, 64, 1, 0, 1.0,
              DType::kFloat8E5M2, 0, 1, 2},
  };
  if (kEveryNth > 1) {
    for (size_t i = 0; i * kEveryNth < settings.size(); ++i) settings[i] = settings[i * kEveryNth];
    settings.resize((settings.size() + kEveryNth - 1) / kEveryNth);
  }
  return settings;
}

INSTANTIATE_TEST_SUITE_P(All, CudaBackendTest, testing::ValuesIn(Settings()),
                         [](const testing::TestParamInfo<Setting>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace hybridgen
