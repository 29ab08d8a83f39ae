// Speed of the attention kernels beside the machine's read ceilings, measured alternately in one run.
//
//   bazel run //tests/bench:attend_bench -- --dtypes=bfloat16 --groups=1,4,8 --json=/tmp/attend.json
//   bazel run //tests/bench:attend_bench -- --dtypes=bfloat16 --formats=packed,int8   (8-bit pages beside exact ones)
//
// Every case is checked against the oracle first. A round measures `seq1` (one sequential stream per thread), 2, 4 and
// 8 streams per thread, and the kernel, for some milliseconds each; rounds in which the machine was not quiet are
// counted and dropped. `best` is the largest median of all stream counts. Whatever reads less than all of K and V is
// also set beside exact attention, measured in the same rounds: `x exact` is the ratio of tokens per second.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/kernel_table.h"
#include "nlohmann/json.hpp"
#include "tests/bench/attend_workload.h"
#include "tests/bench/measurement.h"
#include "tests/bench/read_ceiling.h"

using List = std::vector<std::string>;

ABSL_FLAG(std::string, isa, "", "row of the kernel table; empty: the best one of this CPU");
ABSL_FLAG(
    List, kinds, List({"decode"}),
    "decode, cache (arithmetic alone), prefill; stored and summary (logits from K alone), digests (their bounds)");
ABSL_FLAG(List, dtypes, List({"float32", "float16", "bfloat16"}),
          "of KV and queries; float8_e4m3, float8_e5m2: of KV, beside bfloat16 queries");
ABSL_FLAG(List, formats, List({"packed"}), "packed, strided, int8 (8-bit pages; the dtype is that of the queries)");
ABSL_FLAG(List, page_tokens, List({"128"}), "tokens of a page, multiples of 16");
ABSL_FLAG(List, groups, List({"1", "4", "8"}), "query heads per KV head");
ABSL_FLAG(int, head_size, 128, "dims of a head");
ABSL_FLAG(int, threads, 0, "0: one for every CPU that this process may use");
ABSL_FLAG(double, gib, 2, "KV memory, GiB; more than any share of the last-level cache");
ABSL_FLAG(int, samples, 15, "clean rounds per case");
ABSL_FLAG(double, case_seconds, 20, "a case gives up after this time");
ABSL_FLAG(double, sample_ms, 20, "length of one measurement");
ABSL_FLAG(double, max_lost, 0.02, "largest share of lost time in a clean measurement");
ABSL_FLAG(double, max_foreign, 0.02, "largest share of the CPUs that other processes may have used in one");
ABSL_FLAG(std::string, json, "", "also write the results to this file");
ABSL_FLAG(
    bool, serve, false,
    "measure one case on demand: after `ready`, every line `seq1` or `attend` on standard input is answered by one "
    "line of JSON");

namespace hybridgen {
namespace {

constexpr int kStreams[] = {1, 2, 4, 8};
constexpr int64_t kCeilingItem = 4 << 20;
constexpr size_t kFewestSamples = 5;

using nlohmann::json;

[[noreturn]] void Die(const absl::Status& status) {
  std::cerr << status << "\n";
  std::exit(2);
}

std::vector<int> AllowedCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof(set), &set);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  const int threads = absl::GetFlag(FLAGS_threads);
  if (threads > 0) {
    for (size_t i = cpus.size(); i < static_cast<size_t>(threads); ++i) cpus.push_back(cpus[i % cpus.size()]);
    cpus.resize(threads);
  }
  return cpus;
}

template <typename T>
T Named(const std::string& name, std::initializer_list<std::pair<const char*, T>> values) {
  for (const auto& [known, value] : values) {
    if (name == known) return value;
  }
  Die(absl::InvalidArgumentError(absl::StrCat("'", name, "' is not a value of this flag; see --help")));
}

int Number(const std::string& text) {
  int value;
  if (absl::SimpleAtoi(text, &value) && value > 0) return value;
  Die(absl::InvalidArgumentError(absl::StrCat("'", text, "' is not a positive number")));
}

std::vector<AttendConfig> Cases() {
  const CpuFeatures features = DetectCpuFeatures();
  const std::string isa = absl::GetFlag(FLAGS_isa);
  AttendConfig c;
  c.kernels = SelectKernels(features);
  if (!isa.empty()) {
    const absl::Span<const Isa> isas = AllIsas();
    const auto known = std::find_if(isas.begin(), isas.end(), [&](Isa level) { return isa == IsaName(level); });
    if (known == isas.end()) Die(absl::InvalidArgumentError(absl::StrCat("no kernels for ", isa)));
    absl::StatusOr<KernelSet> found = FindKernels(features, *known);
    if (!found.ok()) Die(found.status());
    c.kernels = *found;
  }
  c.head_size = absl::GetFlag(FLAGS_head_size);
  std::vector<AttendConfig> cases;
  for (const std::string& kind : absl::GetFlag(FLAGS_kinds)) {
    c.kind = Named<AttendKind>(kind, {{"decode", AttendKind::kDecode},
                                      {"cache", AttendKind::kCache},
                                      {"prefill", AttendKind::kPrefill},
                                      {"stored", AttendKind::kStored},
                                      {"summary", AttendKind::kSummary},
                                      {"digests", AttendKind::kDigests}});
    for (const std::string& dtype : absl::GetFlag(FLAGS_dtypes)) {
      c.dtype = Named<DType>(dtype, {{"float32", DType::kFloat32},
                                     {"float16", DType::kFloat16},
                                     {"bfloat16", DType::kBFloat16},
                                     {"float8_e4m3", DType::kFloat8E4M3},
                                     {"float8_e5m2", DType::kFloat8E5M2}});
      for (const std::string& format : absl::GetFlag(FLAGS_formats)) {
        c.format = Named<PageFormat>(format, {{"packed", PageFormat::kPackedV1},
                                              {"strided", PageFormat::kStrided},
                                              {"int8", PageFormat::kPackedInt8V1}});
        for (const std::string& page_tokens : absl::GetFlag(FLAGS_page_tokens)) {
          c.page_tokens = Number(page_tokens);
          for (const std::string& group : absl::GetFlag(FLAGS_groups)) {
            c.group = Number(group);
            cases.push_back(c);
          }
        }
      }
    }
  }
  return cases;
}

class Bench {
 public:
  Bench(KvMemory* memory, std::vector<int> cpus) : memory_(memory), cpus_(std::move(cpus)) {}

  size_t threads() const { return cpus_.size(); }

  Sample Ceiling(int streams) {
    const int64_t items = static_cast<int64_t>(memory_->bytes()) / kCeilingItem;
    return Run(&next_read_, [&](int, int64_t item) {
      checksum_ ^= ReadStreams(memory_->data() + item % items * kCeilingItem, kCeilingItem, streams);
      return kCeilingItem;
    });
  }

  Sample Attend(AttendWorkload& work) {
    return Run(&next_item_, [&](int thread, int64_t item) { return work.RunItem(thread, item); });
  }

 private:
  // Goes on where the last sample ended, so that all of the memory is read in turn.
  template <typename Work>
  Sample Run(std::atomic<int64_t>* next, const Work& work) {
    return Measure(cpus_, absl::GetFlag(FLAGS_sample_ms) / 1e3,
                   [&](int thread, int64_t) { return work(thread, next->fetch_add(1, std::memory_order_relaxed)); });
  }

  KvMemory* memory_;
  std::vector<int> cpus_;
  std::atomic<int64_t> next_read_{0};
  std::atomic<int64_t> next_item_{0};
  std::atomic<uint64_t> checksum_{0};
};

json ToJson(const Spread& spread) { return {{"min", spread.min}, {"median", spread.median}, {"max", spread.max}}; }

// exact: null, or the work that `work` is compared with.
json RunCase(Bench& bench, const AttendConfig& config, AttendWorkload& work, AttendWorkload* exact) {
  const QuietLimits limits = {absl::GetFlag(FLAGS_max_lost), absl::GetFlag(FLAGS_max_foreign)};
  const size_t wanted = absl::GetFlag(FLAGS_samples);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(absl::GetFlag(FLAGS_case_seconds));
  std::vector<double> ceilings[std::size(kStreams)];
  std::vector<double> rates, fractions, of_exact;
  size_t discarded = 0;
  for (size_t round = 0; rates.size() < wanted && std::chrono::steady_clock::now() < end; ++round) {
    const Sample seq1 = bench.Ceiling(1);
    const Sample sample = bench.Attend(work);
    if (exact != nullptr) {
      const Sample other = bench.Attend(*exact);
      if (IsQuiet(sample, limits) && IsQuiet(other, limits)) {
        of_exact.push_back(sample.rate * work.tokens_per_byte() / (other.rate * exact->tokens_per_byte()));
      }
    }
    if (IsQuiet(seq1, limits) && IsQuiet(sample, limits)) {
      ceilings[0].push_back(seq1.rate);
      rates.push_back(sample.rate);
      fractions.push_back(sample.rate / seq1.rate);
    } else {
      ++discarded;
    }
    const size_t other = 1 + round % (std::size(kStreams) - 1);
    const Sample streams = bench.Ceiling(kStreams[other]);
    if (IsQuiet(streams, limits)) ceilings[other].push_back(streams.rate);
  }
  json result = {{"name", config.Name()},
                 {"run_bytes", work.run_bytes()},
                 {"threads", bench.threads()},
                 {"largest_error", work.largest_error()},
                 {"clean", rates.size()},
                 {"discarded", discarded},
                 {"quiet", rates.size() >= kFewestSamples}};
  if (rates.size() < kFewestSamples) return result;
  double best = 0;
  for (const std::vector<double>& values : ceilings) {
    if (!values.empty()) best = std::max(best, SpreadOf(values).median);
  }
  const Spread rate = SpreadOf(rates);
  result["bytes_per_second"] = ToJson(rate);
  result["tokens_per_second"] = rate.median * work.tokens_per_byte() * config.kv_heads;  // of one KV head
  result["flops_per_second"] = rate.median * work.flops_per_byte();
  result["seq1"] = ToJson(SpreadOf(ceilings[0]));
  result["best"] = best;
  result["of_seq1"] = ToJson(SpreadOf(fractions));
  result["of_best"] = rate.median / best;
  result["of_seq1_samples"] = fractions;
  if (of_exact.size() >= kFewestSamples) {
    result["of_exact"] = ToJson(SpreadOf(of_exact));
    result["of_exact_samples"] = of_exact;
  }
  return result;
}

void Print(const json& r) {
  const std::string name = r["name"];
  if (!r["quiet"].get<bool>()) {
    std::cout << absl::StrFormat("%-52s machine not quiet (%d clean rounds, %d discarded)\n", name,
                                 r["clean"].get<int>(), r["discarded"].get<int>());
    return;
  }
  const json& rate = r["bytes_per_second"];
  const json& of_seq1 = r["of_seq1"];
  std::cout << absl::StrFormat(
      "%-52s %5.1f %5.1f %5.1f | %6.1f | %4.2f %4.2f %4.2f | %4.2f | %5.1f %5.1f | %4dK | %6.1f %7.1e | %d/%d\n", name,
      rate["min"].get<double>() / 1e9, rate["median"].get<double>() / 1e9, rate["max"].get<double>() / 1e9,
      r["flops_per_second"].get<double>() / 1e9, of_seq1["min"].get<double>(), of_seq1["median"].get<double>(),
      of_seq1["max"].get<double>(), r["of_best"].get<double>(), r["seq1"]["median"].get<double>() / 1e9,
      r["best"].get<double>() / 1e9, r["run_bytes"].get<int64_t>() / 1024, r["tokens_per_second"].get<double>() / 1e6,
      r["largest_error"].get<double>(), r["clean"].get<int>(), r["discarded"].get<int>());
  if (r.contains("of_exact")) {
    const json& ratio = r["of_exact"];
    std::cout << absl::StrFormat("%-52s %5.2f %5.2f %5.2f x exact (min med max)\n", "", ratio["min"].get<double>(),
                                 ratio["median"].get<double>(), ratio["max"].get<double>());
  }
  std::cout.flush();
}

void Serve(Bench& bench, AttendWorkload& work) {
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    const Sample sample = line == "seq1" ? bench.Ceiling(1) : bench.Attend(work);
    std::cout << json{{"rate", sample.rate},
                      {"cpu_rate", sample.cpu_rate},
                      {"lost", sample.lost},
                      {"foreign", sample.foreign}}
              << std::endl;
  }
}

std::unique_ptr<KvMemory> CreateMemory() {
  absl::StatusOr<std::unique_ptr<KvMemory>> memory =
      KvMemory::Create(static_cast<size_t>(absl::GetFlag(FLAGS_gib) * 1024) << 20);
  if (!memory.ok()) Die(memory.status());
  return *std::move(memory);
}

bool ReadsLess(const AttendConfig& config) {
  return config.kind == AttendKind::kStored || config.kind == AttendKind::kSummary ||
         config.kind == AttendKind::kDigests ||
         (config.kind == AttendKind::kDecode && config.format == PageFormat::kPackedInt8V1);
}

int Main() {
  const std::unique_ptr<KvMemory> memory = CreateMemory();
  std::unique_ptr<KvMemory> exact_memory;  // once it is wanted
  Bench bench(memory.get(), AllowedCpus());
  json results = json::array();
  if (!absl::GetFlag(FLAGS_serve)) {
    std::cout << absl::StrFormat("%-52s %17s | %6s | %14s | %4s | %5s %5s | %5s | %6s %7s | clean/discarded\n", "",
                                 "GB/s min med max", "GFLOP", "of seq1", "best", "seq1", "best", "run", "Mtok/s",
                                 "error");
  }
  for (const AttendConfig& config : Cases()) {
    AttendWorkload work(config, memory.get(), static_cast<int>(bench.threads()));
    std::unique_ptr<AttendWorkload> exact;
    if (ReadsLess(config)) {
      AttendConfig decode = config;
      decode.kind = AttendKind::kDecode;
      if (decode.format == PageFormat::kPackedInt8V1) decode.format = PageFormat::kPackedV1;
      if (exact_memory == nullptr) exact_memory = CreateMemory();
      exact = std::make_unique<AttendWorkload>(decode, exact_memory.get(), static_cast<int>(bench.threads()));
    }
    const absl::Status verified = work.Verify();
    if (!verified.ok()) Die(verified);
    if (absl::GetFlag(FLAGS_serve)) {
      Serve(bench, work);
      return 0;
    }
    results.push_back(RunCase(bench, config, work, exact.get()));
    Print(results.back());
  }
  const std::string path = absl::GetFlag(FLAGS_json);
  if (!path.empty()) {
    std::ofstream file(path);
    file << json{{"gib", absl::GetFlag(FLAGS_gib)}, {"sample_ms", absl::GetFlag(FLAGS_sample_ms)}, {"cases", results}}
                .dump(1)
         << "\n";
    if (!file.flush()) Die(absl::UnavailableError(absl::StrCat("cannot write ", path)));
  }
  return 0;
}

}  // namespace
}  // namespace hybridgen

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("attention kernels beside the read ceilings of the same run");
  absl::ParseCommandLine(argc, argv);
  return hybridgen::Main();
}
