// Construction and comparison of attention problems over pages.
#include "kernels/testing/attend_case.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cpu/kernels_amx_emulated.h"
#include "kernels/kernel_table.h"
#include "kernels/testing/red_zone.h"

namespace hybridgen {
namespace {

PageGeometry MakeGeometry(const AttendCase& c, PageFormat format) {
  PageGeometry g;
  g.format = format;
  g.dtype = c.kv();
  g.page_tokens = c.page_tokens;
  g.kv_heads = c.kv_heads;
  g.head_size = c.head_size;
  // By turns: K and V of a token in one row, head-major (what engines use), and token-major with odd gaps between rows,
  // which leaves rows aligned to their element only.
  if (c.seed % 2 == 0) {
    g.k_token_stride = g.v_token_stride = 2 * c.head_size;
    g.k_head_stride = g.v_head_stride = static_cast<int64_t>(c.page_tokens) * 2 * c.head_size;
  } else {
    g.k_head_stride = c.head_size + 1;
    g.v_head_stride = c.head_size + 3;
    g.k_token_stride = g.k_head_stride * c.kv_heads + 5;
    g.v_token_stride = g.v_head_stride * c.kv_heads + 1;
  }
  return g;
}

int64_t Offset(KvRole role, const PageGeometry& g, int head, int token, int dim) {
  if (g.format == PageFormat::kStrided) {
    return role == KvRole::kKey ? head * g.k_head_stride + token * g.k_token_stride + dim
                                : head * g.v_head_stride + token * g.v_token_stride + dim;
  }
  return role == KvRole::kKey ? PackedKeyOffset(g.dtype, g.page_tokens, g.head_size, head, token, dim)
                              : PackedValueOffset(g.dtype, g.page_tokens, g.head_size, head, token, dim);
}

}  // namespace

void AttendCase::SetStorage(DType kv) {
  if (!IsFloat8(kv)) {
    dtype = kv;
    return;
  }
  dtype = kv == DType::kFloat8E4M3 ? DType::kFloat16 : DType::kBFloat16;
  kv_dtype = kv;
  v_scale = 0.71875f;
}

std::string AttendCase::ToString() const {
  return absl::StrCat(DTypeName(dtype), " KV ", DTypeName(kv()), "->", DTypeName(output), " ", PageFormatName(format),
                      " page_tokens=", page_tokens, " kv_heads=", kv_heads, " group=", group, " head_size=", head_size,
                      " length=", length, " num_tokens=", num_tokens,
                      mask == OracleInput::Mask::kCausal ? " causal" : " full", " window=", window, " scale=", scale,
                      " soft_cap=", soft_cap, " alibi=", alibi, " sinks=", sinks, " seed=", seed);
}

float RoundTo(DType dtype, float x) {
  float stored = 0;
  WriteElement(dtype, &stored, 0, x);
  return ReadElement(dtype, &stored, 0);
}

void DrawShape(std::mt19937& random, int most_before, AttendCase& c) {
  const auto pick = [&](int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(random); };
  c.page_tokens = 16 << pick(0, 3);
  c.kv_heads = pick(1, 3);
  c.group = pick(1, 12);
  c.head_size = 8 * pick(1, 20);
  c.num_tokens = pick(1, std::min(20, kMaxTileRows / c.group));
  c.length = c.num_tokens + pick(0, most_before);
  c.mask = pick(0, 3) == 0 ? OracleInput::Mask::kNone : OracleInput::Mask::kCausal;
  c.window = pick(0, 1) == 0 ? 0 : pick(1, 150);
  c.scale = 0.05f * pick(1, 20);
  c.soft_cap = pick(0, 3) == 0 ? 2.0f : 0.0f;
  c.alibi = pick(0, 3) == 0;
}

AttendData::AttendData(const AttendCase& c) : case_(c) {
  std::mt19937 random(c.seed);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  const auto fill = [&](std::vector<float>& x, size_t n, DType dtype) {
    x.resize(n);
    for (float& e : x) e = RoundTo(dtype, uniform(random));
  };
  fill(query_, static_cast<size_t>(c.num_tokens) * heads() * c.head_size, c.dtype);
  fill(key_, static_cast<size_t>(c.length) * c.kv_heads * c.head_size, c.kv());
  fill(value_, key_.size(), c.kv());
  slopes_.resize(heads());
  sinks_.resize(heads());
  for (float& x : slopes_) x = 0.05f * (1.0f + uniform(random));
  for (float& x : sinks_) x = uniform(random);

  for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
    OracleInput in;
    in.num_tokens = c.num_tokens;
    in.query_heads = c.group;
    in.kv_heads = 1;
    in.head_size = c.head_size;
    in.query = [=](int token, int head, int dim) { return query(token, kv_head * case_.group + head, dim); };
    in.key = [=](int position, int, int dim) { return key(position, kv_head, dim); };
    in.value = [=](int position, int, int dim) { return case_.v_scale * value(position, kv_head, dim); };
    in.scale = c.scale;
    in.soft_cap = c.soft_cap;
    const auto slice = [&](const std::vector<float>& x) {
      return std::vector<float>(x.begin() + kv_head * c.group, x.begin() + (kv_head + 1) * c.group);
    };
    if (c.alibi) in.alibi_slopes = slice(slopes_);
    if (c.sinks) in.sinks = slice(sinks_);
    in.SetRanges(c.length, c.mask, c.window);
    oracle_.push_back(in);
  }
  BuildPages(c.format);
}

float AttendData::HalfInt8Step(const float* row, int head_size) {
  float largest = 0;
  for (int dim = 0; dim < head_size; ++dim) {
    if (!std::isfinite(row[dim])) return 0;
    largest = std::max(largest, std::abs(row[dim]));
  }
  return largest / 127 / 2;
}

// By the definition, in double.
void AttendData::WriteInt8(KvRole role, uint64_t page, int kv_head, int token, float* row) const {
  const PageGeometry& g = geometry_;
  const bool key = role == KvRole::kKey;
  char* bytes = reinterpret_cast<char*>(page);
  bool finite = true;
  for (int dim = 0; dim < g.head_size; ++dim) finite &= std::isfinite(row[dim]);
  const float scale = finite ? 2 * HalfInt8Step(row, g.head_size) : std::nanf("");
  std::memcpy(bytes + (key ? Int8KeyScaleOffset : Int8ValueScaleOffset)(g.page_tokens, g.head_size, kv_head, token),
              &scale, sizeof(scale));
  for (int dim = 0; dim < g.head_size; ++dim) {
    const double n = scale > 0 ? std::nearbyint(row[dim] / static_cast<double>(scale)) : 0;
    bytes[(key ? Int8KeyOffset : Int8ValueOffset)(g.page_tokens, g.head_size, kv_head, token, dim)] =
        static_cast<char>(static_cast<int>(n));
    row[dim] = static_cast<float>(n * scale);
  }
  for (int dim = g.head_size; dim < PaddedHeadSize(g.head_size); ++dim) {
    bytes[(key ? Int8KeyOffset : Int8ValueOffset)(g.page_tokens, g.head_size, kv_head, token, dim)] = 0;
  }
}

void AttendData::BuildPages(PageFormat format) {
  geometry_ = MakeGeometry(case_, format);
  query_bytes_.resize(query_.size() * DTypeSize(case_.dtype));
  for (size_t i = 0; i < query_.size(); ++i) WriteElement(case_.dtype, query_bytes_.data(), i, query_[i]);

  const int page_tokens = case_.page_tokens;
  const int num_pages = (case_.length + page_tokens - 1) / page_tokens;
  // Both roles of a page side by side; for interleaved rows V begins one row's K further on.
  int64_t role_elements = HostPageBytes(geometry_) / DTypeSize(case_.kv());
  if (format == PageFormat::kStrided) {
    role_elements = std::max(page_tokens * geometry_.k_token_stride + case_.kv_heads * geometry_.k_head_stride,
                             page_tokens * geometry_.v_token_stride + case_.kv_heads * geometry_.v_head_stride);
  }
  const bool interleaved = format == PageFormat::kStrided && case_.seed % 2 == 0;
  const int64_t value_shift = interleaved ? case_.head_size : role_elements;
  const int64_t page_elements = 2 * role_elements;
  const size_t element = DTypeSize(case_.kv());
  page_bytes_.assign(page_elements * num_pages * element, 0xff);  // NaN in every dtype

  std::vector<int> place(num_pages);
  for (int i = 0; i < num_pages; ++i) place[i] = i;
  std::shuffle(place.begin(), place.end(), std::mt19937(case_.seed + 17));
  pages_.clear();
  for (int i = 0; i < num_pages; ++i) {
    KvPage page;
    page.first_position = i * page_tokens;
    page.num_tokens = std::min(page_tokens, case_.length - page.first_position);
    page.k = reinterpret_cast<uint64_t>(page_bytes_.data()) + place[i] * page_elements * element;
    page.v = page.k + value_shift * element;
    bool seen = false;
    for (const OracleInput& in : oracle_) {
      for (int t = 0; t < in.num_tokens; ++t) {
        const int begin = std::max(in.kv_begin[t], page.first_position);
        seen |= begin < std::min(in.kv_end[t], page.first_position + page.num_tokens);
      }
    }
    if (!seen) {
      page.k = page.v = kPoisonedPage;
      pages_.push_back(page);
      continue;
    }
    for (int head = 0; head < case_.kv_heads; ++head) {
      for (int token = 0; token < page.num_tokens; ++token) {
        if (format == PageFormat::kPackedInt8V1) {
          WriteInt8(KvRole::kKey, page.k, head, token, &key(page.first_position + token, head, 0));
          WriteInt8(KvRole::kValue, page.v, head, token, &value(page.first_position + token, head, 0));
          continue;
        }
        for (int dim = 0; dim < case_.head_size; ++dim) {
          WriteElement(case_.kv(), reinterpret_cast<void*>(page.k), Offset(KvRole::kKey, geometry_, head, token, dim),
                       key(page.first_position + token, head, dim));
          WriteElement(case_.kv(), reinterpret_cast<void*>(page.v), Offset(KvRole::kValue, geometry_, head, token, dim),
                       value(page.first_position + token, head, dim));
        }
      }
    }
    pages_.push_back(page);
  }
}

QueryTile AttendData::Tile(int kv_head) const {
  const OracleInput& in = oracle_[kv_head];
  QueryTile tile;
  tile.q = query_bytes_.data() + static_cast<size_t>(kv_head) * case_.group * case_.head_size * DTypeSize(case_.dtype);
  tile.dtype = case_.dtype;
  tile.token_stride = static_cast<int64_t>(heads()) * case_.head_size;
  tile.head_stride = case_.head_size;
  tile.num_tokens = case_.num_tokens;
  tile.group = case_.group;
  tile.head_size = case_.head_size;
  tile.scale = in.scale;
  tile.soft_cap = in.soft_cap;
  tile.alibi_slopes = in.alibi_slopes.empty() ? nullptr : in.alibi_slopes.data();
  tile.query_position = in.query_position.data();
  tile.kv_begin = in.kv_begin.data();
  tile.kv_end = in.kv_end.data();
  return tile;
}

AttendArgs AttendData::Args(int kv_head) const {
  AttendArgs args;
  args.geometry = geometry_;
  args.kv_head = kv_head;
  args.pages = pages_.data();
  args.num_pages = static_cast<int>(pages_.size());
  return args;
}

AttendResult RunSteps(const KernelSet& kernels, const std::vector<AttendStep>& steps, int kv_head, const float* sinks,
                      DType output) {
  const QueryTile tile = steps[0].data->Tile(kv_head);
  const int rows = tile.num_tokens * tile.group;
  const size_t padded = PaddedHeadSize(tile.head_size);
  RedZoned<float> max(rows, 4), sum(rows, 8), acc(rows * padded, 12), lse(rows, 4);
  RedZoned<uint8_t> o(rows * tile.head_size * DTypeSize(output), DTypeSize(output));
  RedZoned<uint8_t> scratch(AttendScratchBytes(tile.head_size));
  const RowState state = {max.data(), sum.data(), acc.data()};
  kernels.init_rows(tile, sinks, state);
  AttendResult result;
  for (const AttendStep& step : steps) {
    AttendArgs args = step.data->Args(kv_head);
    args.pages = step.pages.data();
    args.num_pages = static_cast<int>(step.pages.size());
    result.status = kernels.attend(args.geometry)(tile, args, state, scratch.data());
    if (result.status != KernelResult::kOk) break;
  }
  RowOutput out;
  out.o = o.data();
  out.dtype = output;
  out.scale = steps[0].data->c().v_scale;
  out.token_stride = tile.group * tile.head_size;
  out.head_stride = tile.head_size;
  out.lse = lse.data();
  out.lse_token_stride = tile.group;
  out.lse_head_stride = 1;
  kernels.finalize_rows(tile, state, out);
  EXPECT_TRUE(max.Intact() && sum.Intact() && acc.Intact()) << "wrote outside the row state";
  EXPECT_TRUE(o.Intact() && lse.Intact()) << "wrote outside the output";
  EXPECT_TRUE(scratch.Intact()) << "wrote outside the scratch";
  for (int i = 0; i < rows * tile.head_size; ++i) result.o.push_back(ReadElement(output, o.data(), i));
  for (int i = 0; i < rows; ++i) result.lse.push_back(lse[i]);
  return result;
}

AttendResult RunCase(const KernelSet& kernels, AttendData& data, int kv_head) {
  const std::vector<float>& sinks = data.oracle(kv_head).sinks;
  return RunSteps(kernels, {{&data, data.pages()}}, kv_head, sinks.empty() ? nullptr : sinks.data(), data.c().output);
}

void ExpectMatchesOracle(AttendData& data, int kv_head, const AttendResult& result, int num_partials) {
  ASSERT_EQ(result.status, KernelResult::kOk);
  std::vector<OracleRow> rows = AttendOracle(data.oracle(kv_head));
  if (data.geometry().format == PageFormat::kPackedInt8V1) AddInt8Errors(data.oracle(kv_head), rows);
  const int head_size = data.c().head_size;
  ASSERT_EQ(result.o.size(), rows.size() * head_size);
  for (size_t r = 0; r < rows.size(); ++r) {
    const double tolerance = OutputTolerance(rows[r], data.c().output, num_partials);
    for (int dim = 0; dim < head_size; ++dim) {
      // Written so that NaN fails.
      if (!(std::abs(result.o[r * head_size + dim] - rows[r].o[dim]) <= tolerance)) {
        ADD_FAILURE() << "row " << r << " dim " << dim << ": " << result.o[r * head_size + dim] << " instead of "
                      << rows[r].o[dim] << " +- " << tolerance << "; " << data.c().ToString();
        return;
      }
    }
    if (std::isinf(rows[r].lse)) {
      EXPECT_EQ(result.lse[r], rows[r].lse) << "row " << r << "; " << data.c().ToString();
    } else {
      EXPECT_NEAR(result.lse[r], rows[r].lse, LseTolerance(rows[r], num_partials))
          << "row " << r << "; " << data.c().ToString();
    }
  }
}

void CheckCase(const KernelSet& kernels, const AttendCase& c) {
  SCOPED_TRACE(absl::StrCat(kernels.name, ": ", c.ToString()));
  AttendData data(c);
  for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
    ExpectMatchesOracle(data, kv_head, RunCase(kernels, data, kv_head));
  }
}

const std::vector<KernelSet>& RunnableKernelSets() {
  static const std::vector<KernelSet>* const kSets = [] {
    const CpuFeatures features = DetectCpuFeatures();
    auto* sets = new std::vector<KernelSet>;
    for (const Isa isa : AllIsas()) {
      const absl::StatusOr<KernelSet> set = FindKernels(features, isa);
      if (set.ok()) {
        sets->push_back(*set);
      } else {
        std::printf("SKIPPED: %s\n", std::string(set.status().message()).c_str());
      }
    }
    return sets;
  }();
  return *kSets;
}

const std::vector<KernelSet>& EmulatedKernelSets() {
  static const std::vector<KernelSet>* const kSets = [] {
    static constexpr char kName[] = "amx_bf16_emulated";
    auto* sets = new std::vector<KernelSet>;
    const absl::StatusOr<KernelSet> below = FindKernels(DetectCpuFeatures(), Isa::kAvx512Bf16);
    if (!below.ok()) {
      std::printf("SKIPPED: kernels '%s': %s\n", kName, std::string(below.status().message()).c_str());
      return sets;
    }
    KernelSet set = *below;
    set.name = kName;
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      AttendFn(&by_heads)[kNumHeadClasses] =
          set.attend_by[static_cast<int>(PageFormat::kPackedV1)][static_cast<int>(dtype)];
      by_heads[static_cast<int>(HeadClass::kMultipleOf32)] = kAmxEmulatedKernels.rows[0].attend;
    }
    sets->push_back(set);
    return sets;
  }();
  return *kSets;
}

uint32_t TestSeed(const char* target, uint32_t fallback) {
  const char* text = std::getenv("HYBRIDGEN_TEST_SEED");
  const uint32_t seed = text != nullptr ? static_cast<uint32_t>(std::strtoul(text, nullptr, 10)) : fallback;
  std::printf("seed %u; repeat: bazel test %s --test_env=HYBRIDGEN_TEST_SEED=%u\n", seed, target, seed);
  return seed;
}

}  // namespace hybridgen
