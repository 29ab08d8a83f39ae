// Spreads of host KV over DRAM and CXL, timed through the C ABI and set beside the cost model's prediction.
//
//   bazel run //tests/harness:spread_bench -- --dram_gbps 2 --cxl_gbps 0.5
//
// Both tiers are plain memory whose reads are paced: the times are EMULATED, their ratios are what is compared. Every
// placement is first run with all outputs checked against the oracle. The placements take turns, `runs` times; medians
// are printed. A row without pacing tells whether the processor could read as fast as the paces ask.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "kernels/page_format.h"
#include "nlohmann/json.hpp"
#include "scheduler/cost_model.h"
#include "tests/harness/harness.h"

ABSL_FLAG(std::string, library, "backend/libhybridgen.so", "the library to open");
ABSL_FLAG(double, dram_gbps, 2, "pace of the DRAM tier");
ABSL_FLAG(double, cxl_gbps, 0.5, "pace of the CXL tier");
ABSL_FLAG(int, dram_weight, 4, "of the weighted interleave");
ABSL_FLAG(int, cxl_weight, 1, "of the weighted interleave");
ABSL_FLAG(int, sequences, 8, "sequences that decode together");
ABSL_FLAG(int, prompt_tokens, 1536, "tokens of each prompt");
ABSL_FLAG(int, decode_tokens, 12, "tokens generated per sequence");
ABSL_FLAG(int, threads, 2, "threads of the CPU worker");
ABSL_FLAG(int, runs, 5, "timed runs of each placement");

namespace hybridgen {
namespace {

struct Row {
  const char* name;
  int32_t placement;
  int dram_weight, cxl_weight;
  double dram_room;  // of the host's bytes
  double cxl_room;
  double paced;  // 1: yes, 0: no
  SpreadKind predicted;
};

std::vector<Row> Rows() {
  const int dram = absl::GetFlag(FLAGS_dram_weight), cxl = absl::GetFlag(FLAGS_cxl_weight);
  return {
      {"all in DRAM, not paced", HG_PLACEMENT_ROLE, 1, 1, 1, 0, 0, SpreadKind::kAllDram},
      {"all in DRAM", HG_PLACEMENT_ROLE, 1, 1, 1, 0, 1, SpreadKind::kAllDram},
      {"proportional", HG_PLACEMENT_PROPORTIONAL, 1, 1, 1, 1, 1, SpreadKind::kProportional},
      {"interleave by weights", HG_PLACEMENT_INTERLEAVE, dram, cxl, 1, 1, 1, SpreadKind::kInterleave},
      {"interleave 1:1", HG_PLACEMENT_INTERLEAVE, 1, 1, 1, 1, 1, SpreadKind::kInterleave},
      {"role priority, DRAM for 5/8", HG_PLACEMENT_ROLE, 1, 1, 0.625, 1, 1, SpreadKind::kRolePriority},
  };
}

HarnessOptions OptionsOf(const Row& row) {
  HarnessOptions options;
  hg_config& config = options.config;
  config.struct_size = sizeof(config);
  config.device_kind = HG_DEVICE_CPU;
  config.binding = HG_BINDING_TIERED;
  config.executor = HG_EXECUTOR_POOL;
  config.isa = HG_ISA_AUTO;
  config.dtype = HG_BFLOAT16;
  config.num_kv_heads = 4;
  config.head_size = 128;
  config.block_size = 16;
  config.num_threads = absl::GetFlag(FLAGS_threads);
  config.dram_node = config.cxl_node = -1;
  options.num_query_heads = 4;
  options.num_layers = 2;
  options.prompt_tokens.assign(absl::GetFlag(FLAGS_sequences), absl::GetFlag(FLAGS_prompt_tokens));
  options.decode_tokens = absl::GetFlag(FLAGS_decode_tokens);
  const int64_t block_bytes =
      2 * options.num_layers *
      PackedPageBytes(options.dtype(), config.num_kv_heads, config.block_size, config.head_size);
  const int64_t blocks_per_sequence =
      (absl::GetFlag(FLAGS_prompt_tokens) + absl::GetFlag(FLAGS_decode_tokens)) / config.block_size + 1;
  const int64_t host_bytes = blocks_per_sequence * absl::GetFlag(FLAGS_sequences) * block_bytes;
  options.device_bytes = 16 * block_bytes;
  config.dram_bytes = static_cast<int64_t>(row.dram_room * static_cast<double>(host_bytes));
  config.cxl_bytes = static_cast<int64_t>(row.cxl_room * static_cast<double>(host_bytes));
  config.placement = row.placement;
  config.interleave_dram_weight = row.dram_weight;
  config.interleave_cxl_weight = row.cxl_weight;
  config.dram_gigabytes_per_second = row.paced * absl::GetFlag(FLAGS_dram_gbps);
  config.cxl_gigabytes_per_second = row.paced * absl::GetFlag(FLAGS_cxl_gbps);
  return options;
}

// A decode step's bytes by tier, and its time.
struct Step {
  double seconds = 0;
  double dram = 0;  // the engine's tensor is DRAM too
  double cxl = 0;
};

absl::StatusOr<Step> Time(const Library& library, const HarnessOptions& options) {
  const absl::StatusOr<HarnessReport> report = RunHarness(library, options);
  if (!report.ok()) return report.status();
  const Phase& decode = report->decode;
  const nlohmann::json before = nlohmann::json::parse(decode.stats_before)["tiers"];
  const nlohmann::json after = nlohmann::json::parse(decode.stats_after)["tiers"];
  const double steps = static_cast<double>(decode.steps);
  const auto bytes = [&](const char* tier) {
    if (!after.contains(tier)) return 0.0;
    return (after[tier]["read_bytes"].get<double>() - before[tier]["read_bytes"].get<double>()) / steps;
  };
  return Step{decode.seconds / steps, bytes("dram") + bytes("device"), bytes("cxl")};
}

// The same placement on fewer and shorter sequences, every output checked.
absl::StatusOr<HarnessReport> Verify(const Library& library, HarnessOptions options) {
  options.prompt_tokens = {300, 77, 1};
  options.decode_tokens = 8;
  options.check = Check::kOracle;
  return RunHarness(library, options);
}

// Seconds that the cost model gives for reading `bytes`, half of it K.
absl::StatusOr<double> Predict(const Row& row, double bytes) {
  Platform platform;
  platform.host.dram = {{1e9 * absl::GetFlag(FLAGS_dram_gbps), row.dram_room * bytes}};
  if (row.cxl_room > 0) platform.host.cxl = {{1e9 * absl::GetFlag(FLAGS_cxl_gbps), row.cxl_room * bytes}};
  StepBytes step;
  step.keys = step.values = bytes / 2;
  InterleaveWeights weights;
  weights.dram = row.dram_weight;
  weights.cxl = row.cxl_weight;
  absl::StatusOr<StepCost> cost = PredictStep(platform, step, row.predicted, weights);
  if (!cost.ok()) return cost.status();
  return cost->seconds;
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

int Main() {
  const absl::StatusOr<Library> library = OpenLibrary(absl::GetFlag(FLAGS_library));
  if (!library.ok()) return Fail(library.status());
  const std::vector<Row> rows = Rows();
  double largest_error = 0;
  for (const Row& row : rows) {
    const absl::StatusOr<HarnessReport> report = Verify(*library, OptionsOf(row));
    if (!report.ok()) return Fail(report.status());
    largest_error = std::max(largest_error, report->largest_error);
  }
  std::vector<std::vector<double>> seconds(rows.size());
  std::vector<Step> steps(rows.size());
  for (int run = 0; run < absl::GetFlag(FLAGS_runs); ++run) {
    for (size_t i = 0; i < rows.size(); ++i) {
      HarnessOptions options = OptionsOf(rows[i]);
      options.check = Check::kNone;
      const absl::StatusOr<Step> step = Time(*library, options);
      if (!step.ok()) return Fail(step.status());
      steps[i] = *step;
      seconds[i].push_back(step->seconds);
    }
  }
  std::printf(
      "EMULATED: plain memory, reads paced to %.2f GB/s (DRAM) and %.2f GB/s (CXL); %d threads, median of %d runs\n"
      "outputs of every placement equal the oracle, largest error %.3f of its tolerance\n",
      absl::GetFlag(FLAGS_dram_gbps), absl::GetFlag(FLAGS_cxl_gbps), absl::GetFlag(FLAGS_threads),
      absl::GetFlag(FLAGS_runs), largest_error);
  std::printf("%-30s %9s %9s %9s %9s %9s %9s\n", "placement", "DRAM MB", "CXL MB", "ms", "model ms", "ratio", "model");
  const double base = Median(seconds[1]);
  const absl::StatusOr<double> model_base = Predict(rows[1], steps[1].dram + steps[1].cxl);
  if (!model_base.ok()) return Fail(model_base.status());
  for (size_t i = 0; i < rows.size(); ++i) {
    const absl::StatusOr<double> model = Predict(rows[i], steps[i].dram + steps[i].cxl);
    if (!model.ok()) return Fail(model.status());
    const double time = Median(seconds[i]);
    std::printf("%-30s %9.2f %9.2f %9.2f ", rows[i].name, 1e-6 * steps[i].dram, 1e-6 * steps[i].cxl, 1e3 * time);
    if (rows[i].paced == 0) {
      std::printf("%9s %9.2f %9s\n", "-", time / base, "-");
    } else {
      std::printf("%9.2f %9.2f %9.2f\n", 1e3 * *model, time / base, *model / *model_base);
    }
  }
  return 0;
}

}  // namespace
}  // namespace hybridgen

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("Times spreads of host KV over paced memory beside the cost model's prediction.");
  absl::ParseCommandLine(argc, argv);
  return hybridgen::Main();
}
