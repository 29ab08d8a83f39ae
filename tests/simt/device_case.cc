// Construction, run and comparison of attention problems for the CUDA kernels.
#include "tests/simt/device_case.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/prefill.cuh"
#include "kernels/cuda/repack.cuh"
#include "tests/simt/executor.h"

namespace hybridgen::simt {
namespace {

constexpr uint64_t kPoisonedPage = 4096 - 64;  // not mapped on any Linux

}  // namespace

PageGeometry GeometryOf(Layout layout, DType dtype, int page_tokens, int kv_heads, int head_size) {
  PageGeometry g;
  g.dtype = dtype;
  g.page_tokens = page_tokens;
  g.kv_heads = kv_heads;
  g.head_size = head_size;
  const int64_t row = layout == Layout::kApart ? head_size : 2 * head_size;
  g.k_token_stride = g.v_token_stride = layout == Layout::kHeadMajor ? row : row * kv_heads;
  g.k_head_stride = g.v_head_stride = layout == Layout::kHeadMajor ? row * page_tokens : row;
  return g;
}

int64_t PageStride(Layout layout, const PageGeometry& g) {
  return static_cast<int64_t>(layout == Layout::kApart ? 1 : 2) * g.page_tokens * g.kv_heads * g.head_size;
}

int64_t ValueOffset(Layout layout, const PageGeometry& g, int num_pages) {
  return layout == Layout::kApart ? PageStride(layout, g) * num_pages : g.head_size;
}

std::string DeviceCase::ToString() const {
  return absl::StrCat(attend.ToString(), " layout=", static_cast<int>(layout), " sequences=", sequences,
                      " splits=", splits, " item_tokens=", item_tokens, pages == Pages::kStreamed ? " streamed" : "",
                      kernel == Kernel::kPrefill ? " prefill" : " decode");
}

void SetTypes(AttendCase& c, const DevicePair& pair) {
  c.SetStorage(pair.kv);
  c.dtype = c.output = pair.dtype;
}

double UnitOf(DType dtype) { return dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8; }

DeviceData::DeviceData(const DeviceCase& c) : case_(c) {
  const AttendCase& a = c.attend;
  geometry_ = GeometryOf(c.layout, a.kv(), a.page_tokens, a.kv_heads, a.head_size);
  int total_pages = 0;
  for (int i = 0; i < c.sequences; ++i) {
    AttendCase sequence = a;
    sequence.seed = 2 * (a.seed + i);
    if (i > 0) sequence.length = a.length / (i + 1) + i;
    sequence.length = std::max(sequence.length, a.num_tokens);
    sequence.format = c.pages == DeviceCase::Pages::kStreamed ? PageFormat::kPackedV1 : PageFormat::kStrided;
    sequences_.push_back(std::make_unique<AttendData>(sequence));
    total_pages += (sequence.length + a.page_tokens - 1) / a.page_tokens;
    num_tokens_ += a.num_tokens;
  }
  query_.assign(static_cast<size_t>(num_tokens_) * sequences_[0]->heads() * a.head_size, 0xffff);

  // Pages of all sequences lie shuffled in the tensor; a ring needs as many as the largest split has.
  places_.resize(total_pages);
  std::iota(places_.begin(), places_.end(), 0);
  std::shuffle(places_.begin(), places_.end(), std::mt19937(a.seed + 99));
  value_offset_ = ValueOffset(c.layout, geometry_, total_pages);
  tensor_.assign(2 * DTypeSize(a.kv()) * a.page_tokens * a.kv_heads * a.head_size * total_pages, 0xff);
  for (int i = 0; i < c.sequences; ++i) {
    AttendData& data = *sequences_[i];
    const OracleInput& in = data.oracle(0);
    first_token_.push_back(static_cast<int>(position_.size()));
    for (int t = 0; t < a.num_tokens; ++t) {
      position_.push_back(in.query_position[t]);
      kv_begin_.push_back(in.kv_begin[t]);
      kv_end_.push_back(in.kv_end[t]);
      for (int head = 0; head < data.heads(); ++head) {
        for (int dim = 0; dim < a.head_size; ++dim) {
          WriteElement(a.dtype, query_.data(),
                       (static_cast<int64_t>(first_token_[i] + t) * data.heads() + head) * a.head_size + dim,
                       data.query(t, head, dim));
        }
      }
    }
    AddPages(i);
  }
  attend_.k_base = reinterpret_cast<uint64_t>(tensor_.data());
  attend_.v_base = attend_.k_base + value_offset_ * static_cast<int64_t>(DTypeSize(a.kv()));
  // Of a sequence's heads; all sequences share the model, hence the first one's.
  for (int kv_head = 0; kv_head < a.kv_heads; ++kv_head) {
    const OracleInput& first = sequences_[0]->oracle(kv_head);
    slopes_.insert(slopes_.end(), first.alibi_slopes.begin(), first.alibi_slopes.end());
    sinks_.insert(sinks_.end(), first.sinks.begin(), first.sinks.end());
    for (int i = 1; i < c.sequences; ++i) {
      sequences_[i]->oracle(kv_head).alibi_slopes = first.alibi_slopes;
      sequences_[i]->oracle(kv_head).sinks = first.sinks;
    }
  }
  Plan();
}

void DeviceData::AddPages(int sequence) {
  const AttendCase& a = case_.attend;
  AttendData& data = *sequences_[sequence];
  const OracleInput& in = data.oracle(0);
  const int64_t page_stride = PageStride(case_.layout, geometry_), size = static_cast<int64_t>(DTypeSize(a.kv()));
  const int num_pages = (data.c().length + a.page_tokens - 1) / a.page_tokens;
  first_page_.push_back(static_cast<int>(pages_.size()));
  num_pages_.push_back(num_pages);
  for (int j = 0, split = 0; j < num_pages; ++j) {
    const int first = j * a.page_tokens;
    KvPage page;
    page.first_position = first;
    page.num_tokens = std::min(a.page_tokens, data.c().length - first);
    bool seen = false;
    for (int t = 0; t < a.num_tokens; ++t) {
      seen |= std::max(in.kv_begin[t], first) < std::min(in.kv_end[t], first + page.num_tokens);
    }
    // Addresses in the plan are relative to the layer's base.
    while (j >= SplitBegin(num_pages, split + 1)) ++split;
    const bool streamed = case_.pages == DeviceCase::Pages::kStreamed;
    const int place = streamed ? j - SplitBegin(num_pages, split) : places_[pages_.size()];
    const int64_t at = place * page_stride;
    page.k = page.v = seen ? at * size : kPoisonedPage - reinterpret_cast<uint64_t>(tensor_.data());
    pages_.push_back(page);
    const uint64_t ring = reinterpret_cast<uint64_t>(tensor_.data() + at * size);
    const KvPage& packed = data.pages()[j];
    jobs_.push_back({ring, ring + value_offset_ * size, packed.k, packed.v, seen ? page.num_tokens : 0});
    for (int head = 0; seen && !streamed && head < a.kv_heads; ++head) {
      for (int token = 0; token < page.num_tokens; ++token) {
        for (int dim = 0; dim < a.head_size; ++dim) {
          const int64_t k = at + head * geometry_.k_head_stride + token * geometry_.k_token_stride + dim;
          WriteElement(a.kv(), tensor_.data(), k, data.key(first + token, head, dim));
          WriteElement(a.kv(), tensor_.data(), k + value_offset_, data.value(first + token, head, dim));
        }
      }
    }
  }
}

cuda::RepackParams DeviceData::Unpack(int item) const {
  cuda::RepackParams p;
  p.jobs = jobs_.data() + items_[item].first_page;
  p.num_jobs = items_[item].num_pages;
  p.geometry = geometry_;
  return p;
}

void DeviceData::Plan() {
  const AttendCase& a = case_.attend;
  const int item_tokens = case_.item_tokens > 0 ? case_.item_tokens : a.num_tokens;
  int row = 0;
  for (int i = 0; i < case_.sequences; ++i) {
    for (int split = 0; split < case_.splits; ++split) {
      const int begin = SplitBegin(num_pages_[i], split), end = SplitBegin(num_pages_[i], split + 1);
      for (int t = 0; t < a.num_tokens; t += item_tokens) {
        cuda::AttendItem item;
        item.first_token = first_token_[i] + t;
        item.num_tokens = std::min(item_tokens, a.num_tokens - t);
        item.first_page = first_page_[i] + begin;
        item.num_pages = end - begin;
        item.partial_row = case_.splits == 1 ? -1 : row + t;
        item.owns_sink = split == case_.splits / 2;
        items_.push_back(item);
      }
      row += a.num_tokens;
    }
    for (int t = 0; t < a.num_tokens && case_.splits > 1; ++t) {
      merges_.push_back({first_token_[i] + t, i * case_.splits * a.num_tokens + t, case_.splits, a.num_tokens});
    }
  }
  const int heads = sequences_[0]->heads();
  const int64_t width = static_cast<int64_t>(heads) * a.head_size;
  partial_o_ = std::make_unique<RedZoned<float>>(case_.splits > 1 ? row * width : 0);
  partial_lse_ = std::make_unique<RedZoned<float>>(case_.splits > 1 ? row * heads : 0);
  lse_ = std::make_unique<RedZoned<float>>(num_tokens_ * heads);
  output_ = std::make_unique<RedZoned<uint16_t>>(num_tokens_ * width);

  attend_.q = {query_.data(), width, a.head_size};
  attend_.dtype = a.dtype;
  attend_.query_heads = heads;
  attend_.geometry = geometry_;
  attend_.pages = pages_.data();
  attend_.items = items_.data();
  attend_.num_items = static_cast<int>(items_.size());
  attend_.max_item_tokens = item_tokens;
  attend_.kv_begin = kv_begin_.data();
  attend_.kv_end = kv_end_.data();
  attend_.position = position_.data();
  attend_.scale = a.scale;
  attend_.v_scale = a.v_scale;
  attend_.soft_cap = a.soft_cap;
  attend_.alibi_slopes = slopes_.empty() ? nullptr : slopes_.data();
  attend_.sinks = sinks_.empty() ? nullptr : sinks_.data();
  attend_.partials = {partial_o_->data(), partial_lse_->data()};
  attend_.o = {output_->data(), width, a.head_size};
  attend_.status = &status_;

  merge_.items = merges_.data();
  merge_.num_items = static_cast<int>(merges_.size());
  merge_.query_heads = heads;
  merge_.head_size = a.head_size;
  merge_.device = attend_.partials;
  merge_.o = attend_.o;
  merge_.dtype = a.dtype;
  merge_.lse = lse_->data();
}

// Beyond what the oracle's tolerance allows for a float32 kernel (whose logits' error is taken twice, as tensor cores
// cut sums off instead of rounding them): the exponent is multiplied by log2 e, which rounds twice; a row is rescaled
// every 16 tokens; sums are cut off at every token; exp2 is off by 2^-22; weights are rounded before they meet V.
void DeviceData::ExpectMatchesOracle(double weight_unit) {
  constexpr double kUnit = 0x1p-24;
  const AttendCase& a = case_.attend;
  const int partials = case_.splits + 4;  // the warps of a block are joined like partials
  for (int i = 0; i < case_.sequences; ++i) {
    for (int kv_head = 0; kv_head < a.kv_heads; ++kv_head) {
      const std::vector<OracleRow> rows = AttendOracle(sequences_[i]->oracle(kv_head));
      for (int r = 0; r < static_cast<int>(rows.size()); ++r) {
        const OracleRow& row = rows[r];
        const int token = first_token_[i] + r / a.group;
        const int head = kv_head * a.group + r % a.group;
        const int64_t at = static_cast<int64_t>(token) * sequences_[i]->heads() + head;
        const double spread = row.logit_spread, n = row.num_seen;
        const double weights = kUnit * (4 * spread + 2 * n + (n / 16 + 1) * (10 + 4 * spread) + 8 * partials);
        const double tolerance =
            2 * OutputTolerance(row, a.dtype, partials) + 1.01 * 2 * (weights + weight_unit) * row.value_magnitude;
        for (int dim = 0; dim < a.head_size; ++dim) {
          const float x = ReadElement(a.dtype, output_->data(), at * a.head_size + dim);
          ASSERT_LE(std::abs(x - row.o[dim]), tolerance)
              << "sequence " << i << " KV head " << kv_head << " row " << r << " dim " << dim << ": " << x
              << " instead of " << row.o[dim] << "; " << case_.ToString();
        }
        if (case_.splits == 1) continue;
        if (std::isinf(row.lse)) {
          ASSERT_EQ((*lse_)[at], row.lse) << "row " << r << "; " << case_.ToString();
        } else {
          ASSERT_NEAR((*lse_)[at], row.lse, 2 * LseTolerance(row, partials) + 1.01 * weights)
              << "row " << r << "; " << case_.ToString();
        }
      }
    }
  }
  EXPECT_TRUE(partial_o_->Intact() && partial_lse_->Intact() && lse_->Intact() && output_->Intact())
      << "wrote outside an output; " << case_.ToString();
  EXPECT_EQ(status_, 0u);
}

double RunAttend(DeviceData& data, uint64_t seed) {
  const cuda::AttendParams& p = data.attend();
  EXPECT_EQ(cuda::Check(p), cuda::LaunchStatus::kOk);
  double weight_unit = 0.0;
  const auto run = [seed](Dim3 grid, int threads, int shared_bytes, const std::function<void()>& kernel) {
    LaunchConfig config;
    config.grid = grid;
    config.threads = threads;
    config.shared_bytes = shared_bytes;
    config.seed = seed;
    EXPECT_EQ(Launch(config, kernel), absl::OkStatus());
  };
  cuda::DispatchElements(p.dtype, p.geometry.dtype, [&](auto element, auto kv) {
    using T = typename decltype(element)::type;
    using Kv = typename decltype(kv)::type;
    const auto attend = [&](const cuda::AttendParams& p) {
      const auto grid = [&](int rows) {
        return Dim3{p.num_items, p.geometry.kv_heads, (cuda::MaxRows(p) + rows - 1) / rows};
      };
      if (data.c().kernel == DeviceCase::Kernel::kPrefill) {
        weight_unit = UnitOf(p.dtype);
        return cuda::DispatchHeadSize(p.geometry.head_size, [&](auto head_size) {
          using Tile = cuda::MmaTile<T, Kv, decltype(head_size)::value>;
          using Shape = cuda::PrefillShape<Tile>;
          run(grid(Shape::kRows), Shape::kThreads, Shape::kSharedBytes, [&] { cuda::PrefillKernel<Tile>(p); });
          return cuda::LaunchStatus::kOk;
        });
      }
      return cuda::DispatchDecode<T, Kv>(p, [&](auto type) {
        using Tile = typename decltype(type)::type;
        using Shape = cuda::DecodeShape<Tile>;
        weight_unit = Tile::kRows == 16 ? UnitOf(p.dtype) : 0.0;
        run(grid(Tile::kRows), Shape::kThreads, Shape::kSharedBytes, [&] { cuda::DecodeKernel<Tile>(p); });
        return cuda::LaunchStatus::kOk;
      });
    };
    if (data.c().pages == DeviceCase::Pages::kDevice) return attend(p);
    for (int item = 0; item < p.num_items; ++item) {
      const cuda::RepackParams unpack = data.Unpack(item);
      EXPECT_EQ(cuda::Check(unpack), cuda::LaunchStatus::kOk);
      cuda::DispatchRepack(p.geometry.dtype, [&](auto moved) {
        run({unpack.num_jobs * p.geometry.page_tokens / 16, p.geometry.kv_heads, 2}, cuda::kRepackThreads,
            cuda::RepackSharedBytes(p.geometry.dtype, p.geometry.head_size),
            [&] { cuda::RepackKernel<typename decltype(moved)::type, cuda::Repack::kUnpack>(unpack); });
        return cuda::LaunchStatus::kOk;
      });
      cuda::AttendParams one = p;
      one.items = p.items + item;
      one.num_items = 1;
      attend(one);
    }
    return cuda::LaunchStatus::kOk;
  });
  const cuda::MergeParams& merge = data.merge();
  if (merge.num_items > 0) {
    run({cuda::MergeBlocks(merge)}, cuda::kMergeThreads, 0, [&] { cuda::MergeKernel(merge); });
  }
  return weight_unit;
}

void CheckAttend(const DeviceCase& c) {
  SCOPED_TRACE(c.ToString());
  DeviceData data(c);
  const double weight_unit = RunAttend(data, c.attend.seed);
  if (!testing::Test::HasFailure()) data.ExpectMatchesOracle(weight_unit);
}

// Greedy: a row starts from an uncovered pair, and every other parameter takes the value that covers most.
std::vector<std::vector<int>> PairwiseCover(const std::vector<int>& sizes, uint32_t seed) {
  const int n = static_cast<int>(sizes.size());
  std::mt19937 random(seed);
  std::vector<std::vector<std::vector<char>>> covered(n * n);
  struct Pair {
    int i, a, j, b;
  };
  std::vector<Pair> open;
  for (int i = 0; i < n; ++i) {
    for (int j = i + 1; j < n; ++j) {
      covered[i * n + j].assign(sizes[i], std::vector<char>(sizes[j], 0));
      for (int a = 0; a < sizes[i]; ++a) {
        for (int b = 0; b < sizes[j]; ++b) open.push_back({i, a, j, b});
      }
    }
  }
  std::shuffle(open.begin(), open.end(), random);
  const auto gain = [&](const std::vector<int>& row, int i, int a) {
    int count = 0;
    for (int j = 0; j < n; ++j) {
      if (j == i || row[j] < 0) continue;
      count += i < j ? !covered[i * n + j][a][row[j]] : !covered[j * n + i][row[j]][a];
    }
    return count;
  };
  std::vector<std::vector<int>> rows;
  for (const Pair& pair : open) {
    if (covered[pair.i * n + pair.j][pair.a][pair.b]) continue;
    std::vector<int> row(n, -1);
    row[pair.i] = pair.a;
    row[pair.j] = pair.b;
    for (int i = 0; i < n; ++i) {
      if (row[i] >= 0) continue;
      int best = static_cast<int>(random() % sizes[i]);
      for (int a = 0; a < sizes[i]; ++a) {
        if (gain(row, i, a) > gain(row, i, best)) best = a;
      }
      row[i] = best;
    }
    for (int i = 0; i < n; ++i) {
      for (int j = i + 1; j < n; ++j) covered[i * n + j][row[i]][row[j]] = 1;
    }
    rows.push_back(row);
  }
  return rows;
}

}  // namespace hybridgen::simt
