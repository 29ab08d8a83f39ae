// Speed of writing KV and of converting pages on one thread, in GB/s of payload (each byte that is copied counts once).
// Every configuration is checked against the packed format's offsets before it is timed.
//
//   bazel run //kernels:copy_bench -- --benchmark_filter=publish
//
// Rates are per CPU time of the thread, and "best" is the fastest of the repetitions.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "kernels/page_copy.h"

namespace hybridgen {
namespace {

constexpr int kHeads = 8;
constexpr int kHeadSize = 128;
constexpr size_t kBytes = size_t{128} << 20;  // per side: beyond any share of the last-level cache

// Strided to packed, back, packed to packed; tokens into packed pages.
enum class Kind { kPublish, kRecall, kMigrate, kWrite };

struct Config {
  Kind kind;
  DType dtype;
  int page_tokens;
};

PageGeometry Geometry(const Config& c, PageFormat format) {
  PageGeometry g;
  g.format = format;
  g.dtype = c.dtype;
  g.page_tokens = c.page_tokens;
  g.kv_heads = kHeads;
  g.head_size = kHeadSize;
  g.k_token_stride = g.v_token_stride = kHeadSize;
  g.k_head_stride = g.v_head_stride = int64_t{kHeadSize} * c.page_tokens;
  return g;
}

size_t Offset(const PageGeometry& g, KvRole role, int head, int token, int dim) {
  if (g.format == PageFormat::kStrided) return head * g.k_head_stride + token * g.k_token_stride + dim;
  return role == KvRole::kKey ? PackedKeyOffset(g.dtype, g.page_tokens, g.head_size, head, token, dim)
                              : PackedValueOffset(g.dtype, g.page_tokens, g.head_size, head, token, dim);
}

// Pages of both roles side by side, on either side of the copy.
class Workload {
 public:
  explicit Workload(const Config& c)
      : config_(c),
        from_(Geometry(
            c, c.kind == Kind::kPublish || c.kind == Kind::kWrite ? PageFormat::kStrided : PageFormat::kPackedV1)),
        to_(Geometry(c, c.kind == Kind::kRecall ? PageFormat::kStrided : PageFormat::kPackedV1)),
        page_bytes_(PackedPageBytes(c.dtype, kHeads, c.page_tokens, kHeadSize)),
        source_(kBytes),
        target_(kBytes) {
    if (c.kind == Kind::kWrite) {  // tokens as a projection leaves them: [token][head][dim]
      from_.k_head_stride = from_.v_head_stride = kHeadSize;
      from_.k_token_stride = from_.v_token_stride = kHeads * kHeadSize;
    }
    std::mt19937 random(1);
    const size_t pattern = 2 * page_bytes_;
    for (size_t i = 0; i < pattern; ++i) source_[i] = static_cast<uint8_t>(random());
    for (size_t i = pattern; i < kBytes; i += pattern) std::memcpy(&source_[i], source_.data(), pattern);
  }

  int pages() const { return static_cast<int>(kBytes / (2 * page_bytes_)); }
  double bytes_per_page() const { return 2.0 * static_cast<double>(page_bytes_); }

  // Both roles.
  void CopyPage(int page) {
    const uint64_t from = reinterpret_cast<uint64_t>(source_.data()) + page * 2 * page_bytes_;
    const uint64_t to = reinterpret_cast<uint64_t>(target_.data()) + page * 2 * page_bytes_;
    if (config_.kind != Kind::kWrite) {
      ConvertPage(KvRole::kKey, from_, from, to_, to, config_.page_tokens);
      ConvertPage(KvRole::kValue, from_, from + page_bytes_, to_, to + page_bytes_, config_.page_tokens);
      return;
    }
    WriteArgs args;
    args.geometry = to_;
    args.k_page = to;
    args.v_page = to + page_bytes_;
    args.num_tokens = config_.page_tokens;
    args.key = reinterpret_cast<const void*>(from);
    args.value = reinterpret_cast<const void*>(from + page_bytes_);
    args.key_token_stride = args.value_token_stride = from_.k_token_stride;
    args.key_head_stride = args.value_head_stride = from_.k_head_stride;
    WriteKv(args);
  }

  bool Verify() {
    CopyPage(1);
    const size_t element = DTypeSize(config_.dtype);
    for (KvRole role : {KvRole::kKey, KvRole::kValue}) {
      const size_t base = (role == KvRole::kKey ? 2 : 3) * page_bytes_;
      for (int head = 0; head < kHeads; ++head) {
        for (int token = 0; token < config_.page_tokens; ++token) {
          for (int dim = 0; dim < kHeadSize; ++dim) {
            const size_t from = base + Offset(from_, role, head, token, dim) * element;
            const size_t to = base + Offset(to_, role, head, token, dim) * element;
            if (std::memcmp(&source_[from], &target_[to], element) != 0) return false;
          }
        }
      }
    }
    return true;
  }

 private:
  Config config_;
  PageGeometry from_, to_;
  size_t page_bytes_;  // of one role
  std::vector<uint8_t> source_, target_;
};

double Fastest(const std::vector<double>& values) { return *std::max_element(values.begin(), values.end()); }

void BM_Copy(benchmark::State& state, const Config& c) {
  Workload work(c);
  if (!work.Verify()) {
    state.SkipWithError("an element is not where the format puts it");
    return;
  }
  int page = 0;
  for (auto _ : state) {
    work.CopyPage(page);
    page = (page + 1) % work.pages();
  }
  state.counters["GB/s"] = benchmark::Counter(static_cast<double>(state.iterations()) * work.bytes_per_page() / 1e9,
                                              benchmark::Counter::kIsRate);
}

void Register() {
  const std::pair<const char*, Kind> kinds[] = {
      {"publish", Kind::kPublish}, {"recall", Kind::kRecall}, {"migrate", Kind::kMigrate}, {"write", Kind::kWrite}};
  for (const auto& [name, kind] : kinds) {
    for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (int page_tokens : {16, 128}) {
        const Config c = {kind, dtype, page_tokens};
        benchmark::RegisterBenchmark(absl::StrCat(name, "/", DTypeName(dtype), "/page", page_tokens).c_str(),
                                     [c](benchmark::State& state) { BM_Copy(state, c); })
            ->ComputeStatistics("best", Fastest)
            ->Repetitions(5)
            ->MinTime(0.1)
            ->ReportAggregatesOnly();
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
