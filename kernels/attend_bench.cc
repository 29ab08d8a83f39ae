// Speed of the attention kernels on one thread: decode in GB/s of KV read beside the read ceiling of the same run,
// prefill in GFLOP/s. Every configuration is checked against the oracle before it is timed.
//
//   bazel run //kernels:attend_bench -- --benchmark_filter=decode/avx512
//
// Rates are per CPU time of the thread, and "best" is the fastest of the repetitions: other work on the machine takes
// time slices, which do not count, and memory bandwidth, which only ever slows a sample down.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "kernels/kernel_table.h"
#include "tests/oracle/attention_oracle.h"

namespace hybridgen {
namespace {

constexpr size_t kKvBytes = size_t{512} << 20;  // beyond any share of the last-level cache
constexpr int kHeads = 8;                       // KV heads in a page

struct Config {
  const KernelSet* kernels;
  DType dtype;
  PageFormat format;
  int page_tokens;
  int group;
  int num_tokens;  // 1: decode
  int head_size;
  int length;     // tokens of a sequence
  int sequences;  // 0: as many as the memory holds
};

// Anonymous memory on huge pages where the system grants them, shared by all configurations.
char* KvMemory() {
  static char* const memory = [] {
    void* p = mmap(nullptr, kKvBytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
      std::perror("mmap of the benchmark's KV memory");
      std::exit(1);
    }
    const uintptr_t aligned = (reinterpret_cast<uintptr_t>(p) + (2 << 20) - 1) & ~uintptr_t{(2 << 20) - 1};
    madvise(reinterpret_cast<void*>(aligned), kKvBytes, MADV_HUGEPAGE);
    return reinterpret_cast<char*>(aligned);
  }();
  return memory;
}

void Fill(DType dtype) {
  static int filled = -1;
  if (filled == static_cast<int>(dtype)) return;
  filled = static_cast<int>(dtype);
  constexpr size_t kPattern = 1 << 20;
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  char* memory = KvMemory();
  for (size_t i = 0; i < kPattern / DTypeSize(dtype); ++i) {
    const float x = uniform(random);
    if (dtype == DType::kFloat32) {
      reinterpret_cast<float*>(memory)[i] = x;
    } else {
      reinterpret_cast<uint16_t*>(memory)[i] = dtype == DType::kFloat16 ? FloatToFloat16(x) : FloatToBFloat16(x);
    }
  }
  for (size_t i = kPattern; i < kKvBytes; i += kPattern) std::copy_n(memory, kPattern, memory + i);
}

float Element(DType dtype, const void* base, int64_t index) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(base)[index];
  const uint16_t bits = static_cast<const uint16_t*>(base)[index];
  return dtype == DType::kFloat16 ? Float16ToFloat(bits) : BFloat16ToFloat(bits);
}

// A configuration's pages over all of the memory, shuffled, and a tile's buffers.
class Workload {
 public:
  explicit Workload(const Config& c) : config_(c) {
    Fill(c.dtype);
    geometry_.format = c.format;
    geometry_.dtype = c.dtype;
    geometry_.page_tokens = c.page_tokens;
    geometry_.kv_heads = kHeads;
    geometry_.head_size = c.head_size;
    geometry_.k_token_stride = geometry_.v_token_stride = 2 * c.head_size;
    geometry_.k_head_stride = geometry_.v_head_stride = 2 * c.head_size * c.page_tokens;
    const size_t role_bytes = PackedPageBytes(c.dtype, kHeads, c.page_tokens, c.head_size);
    const int pages_per_sequence = c.length / c.page_tokens;
    num_sequences_ = static_cast<int>(kKvBytes / (2 * role_bytes * pages_per_sequence));
    if (c.sequences > 0) num_sequences_ = c.sequences;
    std::vector<size_t> place(num_sequences_ * pages_per_sequence);
    for (size_t i = 0; i < place.size(); ++i) place[i] = i;
    std::shuffle(place.begin(), place.end(), std::mt19937(2));
    for (size_t i = 0; i < place.size(); ++i) {
      KvPage page;
      page.k = reinterpret_cast<uint64_t>(KvMemory()) + place[i] * 2 * role_bytes;
      page.v = page.k + (c.format == PageFormat::kStrided ? c.head_size * DTypeSize(c.dtype) : role_bytes);
      page.first_position = static_cast<int32_t>(i % pages_per_sequence) * c.page_tokens;
      page.num_tokens = c.page_tokens;
      pages_.push_back(page);
    }
    const int rows = c.num_tokens * c.group;
    std::mt19937 random(3);
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    q_.resize(rows * c.head_size);
    for (float& x : q_) x = uniform(random);
    max_.resize(rows);
    sum_.resize(rows);
    acc_.resize(rows * PaddedHeadSize(c.head_size));
    o_.resize(rows * c.head_size);
    scratch_.resize(AttendScratchBytes(c.head_size));
    kv_begin_.assign(c.num_tokens, 0);
    kv_end_.assign(c.num_tokens, c.length);
    tile_.q = q_.data();
    tile_.token_stride = c.group * c.head_size;
    tile_.head_stride = c.head_size;
    tile_.num_tokens = c.num_tokens;
    tile_.group = c.group;
    tile_.head_size = c.head_size;
    tile_.scale = 1.0f / std::sqrt(static_cast<float>(c.head_size));
    tile_.kv_begin = kv_begin_.data();
    tile_.kv_end = kv_end_.data();
    tile_.query_position = kv_begin_.data();
  }

  // Attends KV head `head` of sequence `sequence`.
  void RunItem(int sequence, int head) {
    const int pages = config_.length / config_.page_tokens;
    AttendArgs args;
    args.geometry = geometry_;
    args.kv_head = head;
    args.pages = &pages_[static_cast<size_t>(sequence) * pages];
    args.num_pages = pages;
    const RowState state = {max_.data(), sum_.data(), acc_.data()};
    RowOutput out;
    out.o = o_.data();
    out.token_stride = tile_.token_stride;
    out.head_stride = tile_.head_stride;
    config_.kernels->init_rows(tile_, nullptr, state);
    if (config_.kernels->attend(tile_, args, state, scratch_.data()) != KernelResult::kOk) std::abort();
    config_.kernels->finalize_rows(tile_, state, out);
  }

  bool Verify() {
    const int head = kHeads - 1;
    OracleInput in;
    in.num_tokens = 1;
    in.query_heads = config_.group;
    in.kv_heads = 1;
    in.head_size = config_.head_size;
    in.scale = tile_.scale;
    in.query = [&](int, int h, int dim) { return q_[h * config_.head_size + dim]; };
    in.key = [&](int position, int, int dim) { return ElementOf(KvRole::kKey, position, head, dim); };
    in.value = [&](int position, int, int dim) { return ElementOf(KvRole::kValue, position, head, dim); };
    in.SetRanges(config_.length, OracleInput::Mask::kNone, 0);
    RunItem(0, head);
    const std::vector<OracleRow> rows = AttendOracle(in);
    for (int row = 0; row < config_.group; ++row) {
      for (int dim = 0; dim < config_.head_size; ++dim) {
        const double error = std::abs(o_[row * config_.head_size + dim] - rows[row].o[dim]);
        if (!(error <= OutputTolerance(rows[row], DType::kFloat32))) return false;
      }
    }
    return true;
  }

  int num_sequences() const { return num_sequences_; }
  double bytes_per_item() const {
    return 2.0 * config_.length * config_.head_size * static_cast<double>(DTypeSize(config_.dtype));
  }
  double flops_per_item() const {
    return 4.0 * config_.length * config_.head_size * config_.group * config_.num_tokens;
  }

 private:
  float ElementOf(KvRole role, int position, int head, int dim) const {
    const KvPage& page = pages_[position / config_.page_tokens];
    const int token = position % config_.page_tokens;
    const PageGeometry& g = geometry_;
    const void* base = reinterpret_cast<const void*>(role == KvRole::kKey ? page.k : page.v);
    int64_t offset = head * g.k_head_stride + token * g.k_token_stride + dim;
    if (g.format == PageFormat::kPackedV1) {
      offset = role == KvRole::kKey ? PackedKeyOffset(g.dtype, g.page_tokens, g.head_size, head, token, dim)
                                    : PackedValueOffset(g.dtype, g.page_tokens, g.head_size, head, token, dim);
    }
    return Element(g.dtype, base, offset);
  }

  Config config_;
  PageGeometry geometry_;
  int num_sequences_;
  std::vector<KvPage> pages_;
  std::vector<float> q_, max_, sum_, acc_, o_;
  std::vector<char> scratch_;
  std::vector<int32_t> kv_begin_, kv_end_;
  QueryTile tile_;
};

double Fastest(const std::vector<double>& values) { return *std::max_element(values.begin(), values.end()); }

void BM_Attend(benchmark::State& state, const Config& c) {
  Workload work(c);
  if (!work.Verify()) {
    state.SkipWithError("the result differs from the oracle");
    return;
  }
  int item = 0;
  const int items = work.num_sequences() * kHeads;
  for (auto _ : state) {
    work.RunItem(item / kHeads, item % kHeads);
    item = (item + 1) % items;
  }
  const double n = static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(n * work.bytes_per_item() / 1e9, benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(n * work.flops_per_item() / 1e9, benchmark::Counter::kIsRate);
  state.counters["layers/s"] = benchmark::Counter(n / kHeads, benchmark::Counter::kIsRate);
}

// One sequential stream over the whole memory.
void BM_ReadCeiling(benchmark::State& state) {
  Fill(DType::kFloat32);
  constexpr size_t kChunk = 32 << 20;
  size_t offset = 0;
  for (auto _ : state) {
    uint64_t x[16] = {};
    const uint64_t* p = reinterpret_cast<const uint64_t*>(KvMemory() + offset);
    for (size_t i = 0; i < kChunk / 8; i += 16) {
      for (int j = 0; j < 16; ++j) x[j] ^= p[i + j];
    }
    for (int j = 1; j < 16; ++j) x[0] ^= x[j];
    benchmark::DoNotOptimize(x[0]);
    offset = (offset + kChunk) % kKvBytes;
  }
  state.counters["GB/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * kChunk / 1e9, benchmark::Counter::kIsRate);
}

benchmark::internal::Benchmark* Best(benchmark::internal::Benchmark* b) {
  return b->ComputeStatistics("best", Fastest)->Repetitions(5)->MinTime(0.1)->ReportAggregatesOnly();
}

void Register() {
  Best(benchmark::RegisterBenchmark("read_ceiling", BM_ReadCeiling));
  const CpuFeatures features = DetectCpuFeatures();
  for (const KernelSet& kernels : AllKernelSets()) {
    if (!Supports(features, kernels.isa)) {
      std::printf("SKIPPED: %s: this CPU lacks %s\n", kernels.name, MissingFeatures(features, kernels.isa).c_str());
      continue;
    }
    for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (PageFormat format : {PageFormat::kPackedV1, PageFormat::kStrided}) {
        const auto add = [&](const char* kind, int page_tokens, int group, int num_tokens, int head_size,
                             int length = 4096, int sequences = 0) {
          const Config c = {&kernels, dtype, format, page_tokens, group, num_tokens, head_size, length, sequences};
          const std::string name = absl::StrCat(kind, "/", kernels.name, "/", DTypeName(dtype), "/",
                                                format == PageFormat::kPackedV1 ? "packed" : "strided", "/page",
                                                page_tokens, "/group", group, "/d", head_size);
          Best(benchmark::RegisterBenchmark(name.c_str(), [c](benchmark::State& state) { BM_Attend(state, c); }));
        };
        for (int group : {1, 4, 8}) {
          add("decode", 16, group, 1, 128);
          add("decode", 128, group, 1, 128);
        }
        add("decode", 16, 4, 1, 64);
        // Short sequences that stay in the cache: what a decode step costs before memory does.
        for (int group : {1, 4, 8}) add("short", 16, group, 1, 128, 64, 1);
        add("prefill", 16, 4, 16, 128);
        add("prefill", 16, 1, 64, 64);
      }
    }
  }
}

}  // namespace
}  // namespace hybridgen

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  hybridgen::Register();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
