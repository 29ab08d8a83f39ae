// Standalone program: paged attention through libhybridgen.so with no Python, checked, with time and bytes per tier.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "tests/harness/harness.h"

ABSL_FLAG(std::string, library, "backend/libhybridgen.so", "the library to open");
ABSL_FLAG(std::string, device_kind, "cpu", "cpu, emulated or cuda");
ABSL_FLAG(std::string, binding, "tiered", "identity or tiered");
ABSL_FLAG(std::string, executor, "pool", "auto, openmp or pool");
ABSL_FLAG(std::string, isa, "auto", "auto, portable, avx2, avx512, avx512_vnni, avx512_bf16 or amx_bf16");
ABSL_FLAG(std::string, dtype, "float32", "float32, float16 or bfloat16");
ABSL_FLAG(int, num_kv_heads, 2, "KV heads");
ABSL_FLAG(int, num_query_heads, 8, "query heads, a multiple of the KV heads");
ABSL_FLAG(int, head_size, 128, "elements of a head");
ABSL_FLAG(int, block_size, 16, "tokens of a block");
ABSL_FLAG(int, layers, 2, "attention layers");
ABSL_FLAG(int, threads, 0, "threads of the CPU worker; 0: all CPUs");
ABSL_FLAG(int, device_threads, 1, "threads of the emulated device");
ABSL_FLAG(double, device_gbps, 0, "GB/s to which the emulated device paces its reads; 0: as fast as it goes");
ABSL_FLAG(std::string, device, "0", "device tier, all layers (64K, 8M, 1G); 0: room for every block");
ABSL_FLAG(std::string, dram, "64M", "DRAM tier of the tiered binding");
ABSL_FLAG(std::string, cxl, "0", "CXL tier of the tiered binding");
ABSL_FLAG(int, dram_node, -1, "NUMA node of the DRAM tier; -1: any");
ABSL_FLAG(int, cxl_node, -1, "NUMA node of the CXL tier; -1: plain memory stands for it");
ABSL_FLAG(std::string, cxl_device, "", "/dev/daxX.Y whose memory is the CXL tier");
ABSL_FLAG(std::string, placement, "auto", "auto, role, proportional or interleave");
ABSL_FLAG(int, dram_weight, 1, "interleave: pages to DRAM for every cxl_weight pages to CXL");
ABSL_FLAG(int, cxl_weight, 1, "interleave: pages to CXL for every dram_weight pages to DRAM");
ABSL_FLAG(double, dram_gbps, 0, "GB/s to which the CPU's reads of the DRAM tier are paced; 0: as fast as they go");
ABSL_FLAG(double, cxl_gbps, 0, "GB/s to which the CPU's reads of an emulated CXL tier are paced");
ABSL_FLAG(double, mover_gbps, 0, "GB/s that migrations between host tiers may take; 0: none are made");
ABSL_FLAG(int, head_groups, 0,
          "parts of the KV heads with a DRAM node each; 0: as many as DRAM nodes with CPUs; others are emulated");
ABSL_FLAG(double, streaming_share, 0, "share of the host tokens that the device attends, 0 to 1");
ABSL_FLAG(std::vector<std::string>, prompt_tokens, std::vector<std::string>({"300", "77", "1"}),
          "prompt lengths, one sequence each");
ABSL_FLAG(int, decode_tokens, 16, "tokens generated per sequence");
ABSL_FLAG(int, step_tokens, 4096, "most query tokens of a step");
ABSL_FLAG(int, draft_tokens, 0, "draft tokens of a decode step, rejected at random");
ABSL_FLAG(int, rounds, 1, "how often the workload runs; later rounds reuse block ids");
ABSL_FLAG(int, sliding_window, 0, "tokens that a query sees; 0: all");
ABSL_FLAG(double, soft_cap, 0, "cap of the logits; 0: none");
ABSL_FLAG(bool, alibi, false, "ALiBi slopes");
ABSL_FLAG(bool, sinks, false, "attention sinks");
ABSL_FLAG(bool, causal, true, "a query sees nothing after itself");
ABSL_FLAG(std::string, tables, "",
          "block tables come as rows of the batch (rows) or by deltas (mirror, tiered binding)");
ABSL_FLAG(bool, check, true, "compare every output with the oracle; off: timing only");
ABSL_FLAG(uint64_t, seed, 1, "of elements, block ids and rejections");

namespace hybridgen {
namespace {

// The value's position among the choices; ends the program with the accepted ones otherwise.
int Choose(const char* flag, const std::string& value, const std::vector<std::string>& choices) {
  for (size_t i = 0; i < choices.size(); ++i) {
    if (choices[i] == value) return static_cast<int>(i);
  }
  std::fprintf(stderr, "--%s=%s is not one of: %s\n", flag, value.c_str(), absl::StrJoin(choices, ", ").c_str());
  std::exit(2);
}

int64_t ParseSize(const char* flag, std::string text) {
  int shift = 0;
  const std::string units = "KMG";
  if (!text.empty() && units.find(text.back()) != std::string::npos) {
    shift = 10 * (static_cast<int>(units.find(text.back())) + 1);
    text.pop_back();
  }
  int64_t value = 0;
  if (!absl::SimpleAtoi(text, &value) || value < 0) {
    std::fprintf(stderr, "--%s must be a size such as 0, 64K, 8M, 1G\n", flag);
    std::exit(2);
  }
  return value << shift;
}

HarnessOptions OptionsFromFlags() {
  HarnessOptions options;
  hg_config& config = options.config;
  config.struct_size = sizeof(config);
  config.device_kind = Choose("device_kind", absl::GetFlag(FLAGS_device_kind), {"cpu", "emulated", "cuda"});
  config.binding = Choose("binding", absl::GetFlag(FLAGS_binding), {"identity", "tiered"});
  config.executor = Choose("executor", absl::GetFlag(FLAGS_executor), {"auto", "openmp", "pool"});
  config.isa = Choose("isa", absl::GetFlag(FLAGS_isa),
                      {"auto", "portable", "avx2", "avx512", "avx512_bf16", "amx_bf16", "avx512_vnni"}) -
               1;
  config.dtype = Choose("dtype", absl::GetFlag(FLAGS_dtype), {"float32", "float16", "bfloat16"});
  config.num_kv_heads = absl::GetFlag(FLAGS_num_kv_heads);
  config.head_size = absl::GetFlag(FLAGS_head_size);
  config.block_size = absl::GetFlag(FLAGS_block_size);
  config.num_threads = absl::GetFlag(FLAGS_threads);
  config.device_threads = absl::GetFlag(FLAGS_device_threads);
  config.device_gigabytes_per_second = absl::GetFlag(FLAGS_device_gbps);
  config.speculative_tokens = absl::GetFlag(FLAGS_draft_tokens);
  config.streaming_share = absl::GetFlag(FLAGS_streaming_share);
  config.dram_node = absl::GetFlag(FLAGS_dram_node);
  config.cxl_node = absl::GetFlag(FLAGS_cxl_node);
  static const std::string* const cxl_device = new std::string(absl::GetFlag(FLAGS_cxl_device));  // outlives the run
  if (!cxl_device->empty()) config.cxl_device = cxl_device->c_str();
  config.placement =
      Choose("placement", absl::GetFlag(FLAGS_placement), {"auto", "role", "proportional", "interleave"});
  config.interleave_dram_weight = absl::GetFlag(FLAGS_dram_weight);
  config.interleave_cxl_weight = absl::GetFlag(FLAGS_cxl_weight);
  config.dram_gigabytes_per_second = absl::GetFlag(FLAGS_dram_gbps);
  config.cxl_gigabytes_per_second = absl::GetFlag(FLAGS_cxl_gbps);
  config.mover_gigabytes_per_second = absl::GetFlag(FLAGS_mover_gbps);
  config.head_groups = absl::GetFlag(FLAGS_head_groups);
  if (config.binding == HG_BINDING_TIERED) {
    config.dram_bytes = ParseSize("dram", absl::GetFlag(FLAGS_dram));
    config.cxl_bytes = ParseSize("cxl", absl::GetFlag(FLAGS_cxl));
  }
  options.device_bytes = ParseSize("device", absl::GetFlag(FLAGS_device));
  options.num_query_heads = absl::GetFlag(FLAGS_num_query_heads);
  options.num_layers = absl::GetFlag(FLAGS_layers);
  options.sliding_window = absl::GetFlag(FLAGS_sliding_window);
  options.soft_cap = static_cast<float>(absl::GetFlag(FLAGS_soft_cap));
  options.alibi = absl::GetFlag(FLAGS_alibi);
  options.sinks = absl::GetFlag(FLAGS_sinks);
  options.mask = absl::GetFlag(FLAGS_causal) ? Mask::kCausal : Mask::kNone;
  options.prompt_tokens.clear();
  for (const std::string& text : absl::GetFlag(FLAGS_prompt_tokens)) {
    options.prompt_tokens.push_back(static_cast<int>(ParseSize("prompt_tokens", text)));
  }
  options.decode_tokens = absl::GetFlag(FLAGS_decode_tokens);
  options.step_tokens = absl::GetFlag(FLAGS_step_tokens);
  options.draft_tokens = absl::GetFlag(FLAGS_draft_tokens);
  options.rounds = absl::GetFlag(FLAGS_rounds);
  options.tables = config.binding == HG_BINDING_TIERED ? TableSource::kMirror : TableSource::kRows;
  if (const std::string tables = absl::GetFlag(FLAGS_tables); !tables.empty()) {
    options.tables = static_cast<TableSource>(Choose("tables", tables, {"rows", "mirror"}));
  }
  options.check = absl::GetFlag(FLAGS_check) ? Check::kOracle : Check::kNone;
  options.seed = absl::GetFlag(FLAGS_seed);
  return options;
}

void PrintPhase(const char* name, const Phase& phase) {
  if (phase.steps == 0) return;
  std::printf("%-8s %6lld steps %9lld tokens %10.3f ms %10.1f tokens/s\n", name, static_cast<long long>(phase.steps),
              static_cast<long long>(phase.tokens), 1e3 * phase.seconds, phase.tokens / phase.seconds);
  const nlohmann::json before = nlohmann::json::parse(phase.stats_before);
  const nlohmann::json after = nlohmann::json::parse(phase.stats_after);
  for (const char* tier : {"device", "dram", "cxl"}) {
    if (!after["tiers"].contains(tier)) continue;
    const int64_t bytes =
        after["tiers"][tier]["read_bytes"].get<int64_t>() - before["tiers"][tier]["read_bytes"].get<int64_t>();
    if (bytes == 0) continue;
    std::printf("  %-6s %12.3f MB read %10.2f GB/s\n", tier, 1e-6 * bytes, 1e-9 * bytes / phase.seconds);
  }
}

int Main() {
  const absl::StatusOr<Library> library = OpenLibrary(absl::GetFlag(FLAGS_library));
  if (!library.ok()) {
    std::fprintf(stderr, "%s\n", library.status().ToString().c_str());
    return 1;
  }
  const HarnessOptions options = OptionsFromFlags();
  const absl::StatusOr<HarnessReport> report = RunHarness(*library, options);
  if (!report.ok()) {
    std::fprintf(stderr, "%s\nseed %llu; the same flags run it again\n", report.status().ToString().c_str(),
                 static_cast<unsigned long long>(options.seed));
    return 1;
  }
  std::printf("%s\n", report->build_info.c_str());
  PrintPhase("prefill", report->prefill);
  PrintPhase("decode", report->decode);
  std::printf("%s\n", report->stats.c_str());
  if (options.check == Check::kOracle) {
    std::printf("%lld rows equal the oracle; largest error %.3f of its tolerance\n",
                static_cast<long long>(report->checked_rows), report->largest_error);
  } else {
    std::printf("not checked\n");
  }
  return 0;
}

}  // namespace
}  // namespace hybridgen

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "Drives libhybridgen.so through its C ABI: prefills and decodes sequences, checks every output.");
  absl::ParseCommandLine(argc, argv);
  return hybridgen::Main();
}
