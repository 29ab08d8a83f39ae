// The joint softmax: attention over device pages and, from logits and V rows that the CPU chose, over host tokens,
// merged, equals one softmax over all of them.
#include "kernels/cuda/chosen.cuh"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/merge.cuh"
#include "tests/simt/device_case.h"
#include "tests/simt/executor.h"

namespace hybridgen::simt {
namespace {

// Logits and V rows of random sets against double precision; a second merge partner is the empty partial, or the mass
// that was left out, which takes weight and gives no value.
struct ChosenCase {
  DevicePair types;
  int head_size;
  int group;
  int num_tokens;
  int count;
  bool left_out;
  uint32_t seed;
};

void CheckChosen(const ChosenCase& c) {
  SCOPED_TRACE(testing::Message() << DTypeName(c.types.dtype) << " over " << DTypeName(c.types.kv)
                                  << " head_size=" << c.head_size << " group=" << c.group
                                  << " num_tokens=" << c.num_tokens << " count=" << c.count << " seed=" << c.seed);
  std::mt19937 random(c.seed);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  constexpr int kKvHeads = 2, kItems = 2;
  const int heads = kKvHeads * c.group, capacity = c.count + 3;
  const DType kv = c.types.kv;
  const float v_scale = IsFloat8(kv) ? 0.71875f : 1.0f;
  std::vector<uint8_t> v(kItems * kKvHeads * capacity * c.head_size * DTypeSize(kv), 0xff);
  std::vector<float> logits(static_cast<size_t>(kItems) * c.num_tokens * heads * capacity, NAN);
  std::vector<int32_t> counts;
  for (int set = 0; set < kItems * kKvHeads; ++set) {
    counts.push_back(set == 1 ? c.count / 2 : c.count);
    for (int key = 0; key < counts[set]; ++key) {
      for (int dim = 0; dim < c.head_size; ++dim) {
        WriteElement(kv, v.data(), (static_cast<int64_t>(set) * capacity + key) * c.head_size + dim, uniform(random));
      }
    }
  }
  const auto logit = [&](int item, int token, int head, int key) -> float& {
    return logits[((static_cast<size_t>(item) * c.num_tokens + token) * heads + head) * capacity + key];
  };
  for (int item = 0; item < kItems; ++item) {
    for (int token = 0; token < c.num_tokens; ++token) {
      for (int head = 0; head < heads; ++head) {
        for (int key = 0; key < counts[item * kKvHeads + head / c.group]; ++key) {
          logit(item, token, head, key) = random() % 7 == 0 ? kEmptyLse : 10 * uniform(random);
        }
      }
    }
  }

  // Rows [0, items * tokens) are the chosen keys' partials, those behind them the masses left out.
  const int rows = kItems * c.num_tokens;
  std::vector<cuda::AttendItem> items(kItems);
  std::vector<cuda::MergeItem> merges;
  for (int item = 0; item < kItems; ++item) {
    items[item].first_token = item * c.num_tokens;
    items[item].num_tokens = c.num_tokens;
    items[item].partial_row = item * c.num_tokens;
    for (int t = 0; t < c.num_tokens; ++t)
      merges.push_back({item * c.num_tokens + t, item * c.num_tokens + t, 2, rows});
  }
  const int64_t width = static_cast<int64_t>(heads) * c.head_size;
  RedZoned<float> o(rows * width), lse(rows * heads), out(rows * width);
  std::vector<float> left_o(rows * width, 0.0f), left_lse(rows * heads, kEmptyLse);
  if (c.left_out) {
    for (float& x : left_lse) x = 5 * uniform(random);
  }
  uint32_t status = 0;
  cuda::ChosenParams p;
  p.attend.items = items.data();
  p.attend.num_items = kItems;
  p.attend.max_item_tokens = c.num_tokens;
  p.attend.query_heads = heads;
  p.attend.geometry = GeometryOf(Layout::kHeadMajor, kv, 16, kKvHeads, c.head_size);
  p.attend.dtype = c.types.dtype;
  p.attend.v_scale = v_scale;
  p.attend.partials = {o.data(), lse.data()};
  p.attend.status = &status;
  p.capacity = capacity;
  p.counts = counts.data();
  p.logits = logits.data();
  p.v = v.data();
  ASSERT_EQ(cuda::Check(p), cuda::LaunchStatus::kOk);
  double weight_unit = 0;
  cuda::DispatchElements(c.types.dtype, kv, [&](auto element, auto kv_element) {
    using T = typename decltype(element)::type;
    using Kv = typename decltype(kv_element)::type;
    return cuda::DispatchDecode<T, Kv>(p.attend, [&](auto type) {
      using Tile = typename decltype(type)::type;
      using Shape = cuda::DecodeShape<Tile>;
      weight_unit = Tile::kRows == 16 ? UnitOf(c.types.dtype) : 0;
      LaunchConfig config;
      config.grid = {kItems, kKvHeads, (cuda::MaxRows(p.attend) + Tile::kRows - 1) / Tile::kRows};
      config.threads = Shape::kThreads;
      config.shared_bytes = Shape::kSharedBytes;
      config.seed = c.seed;
      EXPECT_EQ(Launch(config, [&] { cuda::ChosenKernel<Tile>(p); }), absl::OkStatus());
      return cuda::LaunchStatus::kOk;
    });
  });
  cuda::MergeParams merge;
  merge.items = merges.data();
  merge.num_items = rows;
  merge.query_heads = heads;
  merge.head_size = c.head_size;
  merge.device = p.attend.partials;
  merge.host[0] = {left_o.data(), left_lse.data()};
  merge.first_host_row = rows;
  merge.o = {out.data(), width, c.head_size};
  LaunchConfig config;
  config.grid = {cuda::MergeBlocks(merge)};
  config.threads = cuda::kMergeThreads;
  ASSERT_EQ(Launch(config, [&] { cuda::MergeKernel(merge); }), absl::OkStatus());
  ASSERT_TRUE(o.Intact() && lse.Intact() && out.Intact());
  EXPECT_EQ(status, 0u);

  for (int item = 0; item < kItems; ++item) {
    for (int token = 0; token < c.num_tokens; ++token) {
      for (int head = 0; head < heads; ++head) {
        const int row = item * c.num_tokens + token, set = item * kKvHeads + head / c.group;
        double max = left_lse[row * heads + head];
        for (int key = 0; key < counts[set]; ++key) max = std::max<double>(max, logit(item, token, head, key));
        double sum = max == -INFINITY ? 0 : std::exp(left_lse[row * heads + head] - max);
        std::vector<double> want(c.head_size, 0.0);
        for (int key = 0; key < counts[set] && max > -INFINITY; ++key) {
          const double weight = std::exp(logit(item, token, head, key) - max);
          sum += weight;
          for (int dim = 0; dim < c.head_size; ++dim) {
            want[dim] += weight * v_scale *
                         ReadElement(kv, v.data(), (static_cast<int64_t>(set) * capacity + key) * c.head_size + dim);
          }
        }
        // |V| and its mean are up to 1, logits up to 10: as DeviceData::ExpectMatchesOracle, without the dot product.
        const double n = c.count;
        const double relative = weight_unit + 0x1p-24 * (6 * 20 + 3 * n + (n / 16 + 7) * (10 + 4 * 20)) + 0x1p-22;
        for (int dim = 0; dim < c.head_size; ++dim) {
          const double exact = sum == 0 ? 0 : want[dim] / sum;
          ASSERT_LE(std::abs(out[row * width + head * c.head_size + dim] - exact), 2 * relative)
              << "row " << row << " head " << head << " dim " << dim;
        }
      }
    }
  }
}

TEST(ChosenTest, EqualsOneSoftmax) {
  const uint32_t seed = TestSeed("//tests/simt:chosen_test", 1);
  uint32_t n = 0;
  for (int head_size : {64, 96, 128, 256}) {
    for (int group : {1, 4, 8}) {
      for (int count : {0, 1, 15, 16, 17, 63, 65, 130}) {
        ++n;
        CheckChosen(
            {kDevicePairs[(n + n / 8) % 6], head_size, group, static_cast<int>(1 + n % 3), count, n % 5 < 3, seed + n});
        if (HasFatalFailure() || HasFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace hybridgen::simt
