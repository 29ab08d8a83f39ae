// Steps that are replayed from captured graphs, between eager ones, against the double-precision oracle and against the
// same steps run eagerly: the device is the SIMT executor, whose captures keep a kernel's arguments and nothing else.
#include <memory>
#include <string>
#include <vector>

#include "backend/paged_attention_backend.h"
#include "backend/random_engine.h"
#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"
#include "tests/simt/host_stream.h"

namespace hybridgen {
namespace {

using simt::HostStream;

struct Setting {
  const char* name;
  Binding binding;
  DType dtype;
  int kv_heads;
  int group;
  int drafts;
  int steps_ahead;
  int head_groups;
  double mover_gigabytes_per_second;
};

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kReplays = 3;  // sanitizers multiply the executor's time
#else
constexpr int kReplays = 6;
#endif
constexpr int kDevicePages = 6;
constexpr int kBlocks = 49;
constexpr int kMaxSteps = 40 * kReplays;

enum class Mode { kEager, kGraphs };

// What an engine answers until so many steps have been replayed, or for so many steps.
struct Answers {
  std::vector<size_t> digests;
  int steps = 0;
};

void Drive(const Setting& s, Mode mode, int steps, Answers& answers) {
  Shape shape;
  shape.dtype = s.dtype;
  shape.head_size = 64;
  shape.kv_heads = s.kv_heads;
  shape.group = s.group;
  BackendOptions options;
  options.device_kind = DeviceKind::kCuda;
  options.binding = s.binding;
  options.head_groups = s.head_groups;
  options.mover_gigabytes_per_second = s.mover_gigabytes_per_second;
  const int64_t host_block =
      2 * shape.layers * PackedPageBytes(s.dtype, shape.kv_heads, shape.block_size, shape.head_size);
  options.dram_bytes = options.cxl_bytes = s.binding == Binding::kTiered ? 30 * host_block : 0;
  const uint32_t seed = TestSeed("//tests/simt:graph_test", 20261125);
  const auto stream = std::make_shared<HostStream>(seed);
  std::vector<HostStream::Graph> graphs;
  EngineDevice device;
  device.stream = stream;
  device.lend = [s = stream.get()](const void* data, size_t bytes) { s->Lend(data, bytes); };
  device.take_back = [s = stream.get()](const void* data) { s->TakeBack(data); };
  device.synchronize = [s = stream.get()] { return s->Synchronize(); };
  device.steps_ahead = s.steps_ahead;
  device.weight_unit = s.dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
  if (mode == Mode::kGraphs) {
    const int query_tokens = 1 + s.drafts;
    device.graphs = {{2 * query_tokens, query_tokens}, {8 * query_tokens, query_tokens}};
    device.capture = [s = stream.get()] { s->Capture(); };
    device.take_graph = [&](size_t graph) {
      graphs.resize(graph + 1);
      graphs[graph] = stream->TakeGraph();
    };
    device.replay = [&](size_t graph) { return stream->Replay(graphs[graph]); };
    options.graph_tokens = device.graphs.back().num_tokens;
    options.graph_pages = 8 * kBlocks;
  }
  Engine engine(shape, options, kDevicePages, kBlocks, s.drafts, seed, device);
  ASSERT_TRUE(engine.ok());
  if (testing::Test::HasFailure()) return;
  // What the scenario is for must have happened, so some go on for longer.
  const auto waits = [&] {
    return engine.replays() < kReplays ||
           (s.binding == Binding::kTiered && engine.Statistics()["tiers"]["dram"]["cpu_read_bytes"] == 0);
  };
  while (steps > 0 ? answers.steps < steps : answers.steps < kMaxSteps && waits()) {
    SCOPED_TRACE(testing::Message() << "step " << answers.steps);
    engine.Step(/*token_budget=*/100);
    ++answers.steps;
    if (testing::Test::HasFailure()) return;
  }
  if (mode == Mode::kGraphs) {
    EXPECT_GE(engine.replays(), kReplays);
  }
  const nlohmann::json stats = engine.Statistics();
  EXPECT_GT(stats["tiers"]["device"]["device_read_bytes"], 0) << stats;
  if (s.binding == Binding::kTiered) {
    EXPECT_GT(stats["tiers"]["dram"]["cpu_read_bytes"], 0) << stats;
  }
  answers.digests = engine.digests();
}

class GraphTest : public testing::TestWithParam<Setting> {};

TEST_P(GraphTest, ReplayedStepsMatchTheOracleAndEagerOnes) {
  const Setting& s = GetParam();
  Answers graphs, eager;
  Drive(s, Mode::kGraphs, 0, graphs);
  // Bit for bit where an eager step launches the same kernels on the same plan. Copies finish between steps that are
  // looked at one by one, so both plan alike; with drafts a graph may have kernels for more rows than a step needs.
  if (HasFailure() || s.drafts > 0 || s.steps_ahead > 1 || s.mover_gigabytes_per_second > 0) return;
  Drive(s, Mode::kEager, graphs.steps, eager);
  EXPECT_EQ(graphs.digests, eager.digests);
}

INSTANTIATE_TEST_SUITE_P(
    All, GraphTest,
    testing::Values(Setting{"identity", Binding::kIdentity, DType::kFloat16, 1, 4, 0, 1, 0, 0},
                    Setting{"identity_bf16_ahead", Binding::kIdentity, DType::kBFloat16, 1, 8, 0, 3, 0, 0},
                    Setting{"tiered", Binding::kTiered, DType::kBFloat16, 2, 2, 0, 1, 0, 0},
                    Setting{"tiered_drafts", Binding::kTiered, DType::kFloat16, 1, 4, 2, 1, 0, 0},
                    Setting{"tiered_ahead_mover", Binding::kTiered, DType::kFloat16, 2, 1, 0, 4, 0, 1.0},
                    Setting{"two_head_groups", Binding::kTiered, DType::kFloat16, 2, 2, 0, 1, 2, 0}),
    [](const testing::TestParamInfo<Setting>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace hybridgen
