// Writing the KV cache, merging partials, packing and unpacking pages: exact, element by element.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/repack.cuh"
#include "kernels/cuda/write_kv.cuh"
#include "tests/simt/device_case.h"
#include "tests/simt/executor.h"

namespace hybridgen::simt {
namespace {

constexpr uint16_t kPoison = 0xffff;
constexpr Layout kLayouts[] = {Layout::kHeadMajor, Layout::kTokenMajor, Layout::kApart};

absl::Status RunBlocks(Dim3 grid, int threads, size_t shared_bytes, uint64_t seed,
                       const std::function<void()>& kernel) {
  LaunchConfig config;
  config.grid = grid;
  config.threads = threads;
  config.shared_bytes = shared_bytes;
  config.seed = seed;
  return Launch(config, kernel);
}

struct Tensor {
  Tensor(Layout layout, DType dtype, int pages, int page_tokens, int kv_heads, int head_size)
      : geometry(GeometryOf(layout, dtype, page_tokens, kv_heads, head_size)),
        page_stride(PageStride(layout, geometry)),
        value_offset(ValueOffset(layout, geometry, pages)),
        elements(2 * static_cast<size_t>(pages) * page_tokens * kv_heads * head_size) {}
  int64_t At(KvRole role, int page, int head, int token, int dim) const {
    return page * page_stride + head * geometry.k_head_stride + token * geometry.k_token_stride + dim +
           (role == KvRole::kValue ? value_offset : 0);
  }
  uint16_t* k() { return elements.data(); }
  uint16_t* v() { return elements.data() + value_offset; }

  PageGeometry geometry;
  int64_t page_stride;
  int64_t value_offset;
  RedZoned<uint16_t> elements;  // poison
};

TEST(WriteKvTest, EveryTokenInItsSlotAndNothingElse) {
  std::mt19937 random(TestSeed("//tests/simt:data_movement_test", 1));
  for (Layout layout : kLayouts) {
    for (int head_size : {8, 64, 72, 96, 128, 256, 512}) {
      for (int page_tokens : {1, 16, 128}) {
        const int kv_heads = 1 + random() % 5, num_tokens = random() % 40, pages = 40 / page_tokens + 2;
        Tensor cache(layout, DType::kFloat16, pages, page_tokens, kv_heads, head_size);
        // Rows as an engine has them: q, K and V of a token beside each other.
        const int64_t row = 3 * kv_heads * head_size + 8;
        std::vector<uint16_t> input(num_tokens * row + 1, kPoison);
        for (uint16_t& x : input) x = random() % 0x7c00;
        std::vector<int64_t> free(pages * page_tokens), slots;
        for (size_t i = 0; i < free.size(); ++i) free[i] = i;
        std::shuffle(free.begin(), free.end(), random);
        for (int t = 0; t < num_tokens; ++t) slots.push_back(random() % 5 == 0 ? -1 : free[t]);

        cuda::WriteKvParams p;
        p.key = {input.data(), row, head_size};
        p.value = {input.data() + kv_heads * head_size, row, 2 * head_size};
        p.num_tokens = num_tokens;
        p.slots = slots.data();
        p.geometry = cache.geometry;
        p.k_cache = cache.k();
        p.v_cache = cache.v();
        p.k_page_stride = p.v_page_stride = cache.page_stride;
        if (kv_heads > 1) p.value.head_stride = head_size;
        ASSERT_EQ(cuda::Check(p), cuda::LaunchStatus::kOk);
        ASSERT_EQ(RunBlocks({std::max(1, cuda::WriteKvBlocks(p))}, cuda::kWriteKvThreads, 0, random(),
                            [&] { cuda::WriteKvKernel(p); }),
                  absl::OkStatus());

        std::vector<uint16_t> want(cache.elements.size(), kPoison);
        for (int t = 0; t < num_tokens; ++t) {
          if (slots[t] < 0) continue;
          for (int head = 0; head < kv_heads; ++head) {
            for (int dim = 0; dim < head_size; ++dim) {
              const int page = slots[t] / page_tokens, token = slots[t] % page_tokens;
              want[cache.At(KvRole::kKey, page, head, token, dim)] = input[t * row + head * head_size + dim];
              want[cache.At(KvRole::kValue, page, head, token, dim)] =
                  input[t * row + (kv_heads + head) * head_size + dim];
            }
          }
        }
        ASSERT_EQ(std::memcmp(want.data(), cache.elements.data(), want.size() * 2), 0)
            << "layout " << static_cast<int>(layout) << " head_size " << head_size << " page_tokens " << page_tokens;
        ASSERT_TRUE(cache.elements.Intact());
      }
    }
  }
}

// Packs by the format's own offsets, unpacks again, in every format detail: both lanes (dtypes), head sizes that are
// padded, tails.
template <typename T>
void CheckRepack(std::mt19937& random) {
  for (Layout layout : kLayouts) {
    for (int head_size : {8, 64, 72, 96, 128, 256}) {
      for (int page_tokens : {16, 32, 128}) {
        const int kv_heads = 1 + random() % 3, num_jobs = 3;
        Tensor from(layout, T::kDType, num_jobs, page_tokens, kv_heads, head_size);
        Tensor back(layout, T::kDType, num_jobs, page_tokens, kv_heads, head_size);
        const size_t role = PackedPageBytes(T::kDType, kv_heads, page_tokens, head_size) / 2;
        RedZoned<uint16_t> packed(num_jobs * 2 * role);
        std::vector<uint16_t> want(packed.size(), 0);
        std::vector<cuda::RepackJob> jobs(num_jobs);
        for (int i = 0; i < num_jobs; ++i) {
          const int page = (i + 1) % num_jobs;
          jobs[i].num_tokens = i == 0 ? page_tokens : i == 1 ? 1 + random() % page_tokens : 0;
          jobs[i].strided_k = reinterpret_cast<uint64_t>(from.k() + page * from.page_stride);
          jobs[i].strided_v = reinterpret_cast<uint64_t>(from.v() + page * from.page_stride);
          jobs[i].packed_k = reinterpret_cast<uint64_t>(packed.data() + 2 * i * role);
          jobs[i].packed_v = reinterpret_cast<uint64_t>(packed.data() + (2 * i + 1) * role);
          for (int head = 0; head < kv_heads; ++head) {
            for (int token = 0; token < jobs[i].num_tokens; ++token) {
              for (int dim = 0; dim < head_size; ++dim) {
                const uint16_t k = random(), v = random();
                from.elements.data()[from.At(KvRole::kKey, page, head, token, dim)] = k;
                from.elements.data()[from.At(KvRole::kValue, page, head, token, dim)] = v;
                want[2 * i * role + PackedKeyOffset(T::kDType, page_tokens, head_size, head, token, dim)] = k;
                want[(2 * i + 1) * role + PackedValueOffset(T::kDType, page_tokens, head_size, head, token, dim)] = v;
              }
            }
          }
        }
        cuda::RepackParams p;
        p.jobs = jobs.data();
        p.num_jobs = num_jobs;
        p.geometry = from.geometry;
        ASSERT_EQ(cuda::Check(p), cuda::LaunchStatus::kOk);
        const Dim3 grid = {num_jobs * page_tokens / 16, kv_heads, 2};
        const size_t shared = cuda::RepackSharedBytes(head_size);
        ASSERT_EQ(RunBlocks(grid, cuda::kRepackThreads, shared, random(),
                            [&] { cuda::RepackKernel<T, cuda::Repack::kPack>(p); }),
                  absl::OkStatus());
        ASSERT_EQ(std::memcmp(want.data(), packed.data(), want.size() * 2), 0)
            << "packing, layout " << static_cast<int>(layout) << " head_size " << head_size << " page_tokens "
            << page_tokens;
        ASSERT_TRUE(packed.Intact());

        for (int i = 0; i < num_jobs; ++i) {
          const int page = (i + 1) % num_jobs;
          jobs[i].strided_k = reinterpret_cast<uint64_t>(back.k() + page * back.page_stride);
          jobs[i].strided_v = reinterpret_cast<uint64_t>(back.v() + page * back.page_stride);
        }
        ASSERT_EQ(RunBlocks(grid, cuda::kRepackThreads, shared, random(),
                            [&] { cuda::RepackKernel<T, cuda::Repack::kUnpack>(p); }),
                  absl::OkStatus());
        ASSERT_EQ(std::memcmp(from.elements.data(), back.elements.data(), from.elements.size() * 2), 0)
            << "unpacking, layout " << static_cast<int>(layout) << " head_size " << head_size << " page_tokens "
            << page_tokens;
        ASSERT_TRUE(back.elements.Intact());
      }
    }
  }
}

TEST(RepackTest, Float16) {
  std::mt19937 random(TestSeed("//tests/simt:data_movement_test", 2));
  CheckRepack<arch::Float16>(random);
}

TEST(RepackTest, BFloat16) {
  std::mt19937 random(TestSeed("//tests/simt:data_movement_test", 3));
  CheckRepack<arch::BFloat16>(random);
}

// Merges random partials, some of them empty and some from the host's buffer, against double precision. A weight is off
// by exp2's 2^-22 and by the rounding of its argument, the sums by a rounding per partial.
TEST(MergeTest, DeviceAndHostPartials) {
  std::mt19937 random(TestSeed("//tests/simt:data_movement_test", 4));
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (int head_size : {64, 72, 96, 128, 256, 512}) {
      const int heads = 1 + random() % 5, tokens = 1 + random() % 3, counts = 1 + random() % 6;
      const int device_rows = random() % (tokens * counts + 1), rows = tokens * counts;
      std::vector<float> o(rows * heads * head_size), lse(rows * heads);
      for (float& x : o) x = uniform(random);
      for (float& x : lse) x = random() % 4 == 0 ? kEmptyLse : 30 * uniform(random);
      for (int i = 0; i < rows * heads; ++i) {
        if (lse[i] == kEmptyLse) std::fill_n(o.begin() + i * head_size, head_size, NAN);  // is not read
      }
      // The two buffers are apart, each exactly as long as its rows.
      const int64_t width = heads * head_size;
      std::vector<float> device_o(o.begin(), o.begin() + device_rows * width);
      std::vector<float> host_o(o.begin() + device_rows * width, o.end());
      std::vector<float> device_lse(lse.begin(), lse.begin() + device_rows * heads);
      std::vector<float> host_lse(lse.begin() + device_rows * heads, lse.end());
      std::vector<cuda::MergeItem> items;
      for (int t = 0; t < tokens; ++t) items.push_back({tokens - 1 - t, t, counts, tokens});
      RedZoned<uint8_t> out(tokens * width * DTypeSize(dtype));
      RedZoned<float> out_lse(tokens * heads);

      cuda::MergeParams p;
      p.items = items.data();
      p.num_items = tokens;
      p.query_heads = heads;
      p.head_size = head_size;
      p.device = {device_o.data(), device_lse.data()};
      p.host[0] = {host_o.data(), host_lse.data()};
      p.first_host_row = device_rows;
      p.o = {out.data(), width, head_size};
      p.dtype = dtype;
      p.lse = out_lse.data();
      ASSERT_EQ(cuda::Check(p), cuda::LaunchStatus::kOk);
      ASSERT_EQ(RunBlocks({cuda::MergeBlocks(p)}, cuda::kMergeThreads, 0, random(), [&] { cuda::MergeKernel(p); }),
                absl::OkStatus());
      ASSERT_TRUE(out.Intact() && out_lse.Intact());

      for (const cuda::MergeItem& item : items) {
        for (int head = 0; head < heads; ++head) {
          double max = -INFINITY, sum = 0;
          std::vector<double> want(head_size, 0.0);
          for (int i = 0; i < counts; ++i) max = std::max<double>(max, lse[(item.row + i * tokens) * heads + head]);
          for (int i = 0; i < counts && max > -INFINITY; ++i) {
            const int at = (item.row + i * tokens) * heads + head;
            const double weight = std::exp(lse[at] - max);
            sum += weight;
            for (int dim = 0; dim < head_size && weight > 0; ++dim) want[dim] += weight * o[at * head_size + dim];
          }
          const double relative = 0x1p-22 + 0x1p-24 * (4 * 60 + 2 * counts + 4);
          const double unit = dtype == DType::kFloat32 ? 0x1p-24 : UnitOf(dtype);
          for (int dim = 0; dim < head_size; ++dim) {
            const double exact = sum == 0 ? 0 : want[dim] / sum;
            const float x = ReadElement(dtype, out.data(), item.token * width + head * head_size + dim);
            ASSERT_LE(std::abs(x - exact), 2 * relative + unit * std::abs(exact) + 0x1p-25)
                << "head size " << head_size;
          }
          const float got = out_lse[item.token * heads + head];
          if (sum == 0) {
            ASSERT_EQ(got, kEmptyLse);
          } else {
            ASSERT_NEAR(got, max + std::log(sum), relative + 4 * 0x1p-24 * 32);
          }
        }
      }
    }
  }
}

TEST(CheckTest, RefusesByName) {
  cuda::AttendParams p;
  p.geometry = GeometryOf(Layout::kHeadMajor, DType::kFloat16, 16, 2, 64);
  p.query_heads = 8;
  EXPECT_EQ(cuda::Check(p), cuda::LaunchStatus::kOk);
  const auto with = [&](auto change) {
    cuda::AttendParams changed = p;
    change(changed);
    return cuda::Check(changed);
  };
  using cuda::AttendParams;
  using cuda::LaunchStatus;
  EXPECT_EQ(with([](AttendParams& x) { x.geometry.dtype = DType::kFloat32; }), LaunchStatus::kUnsupportedDType);
  EXPECT_EQ(with([](AttendParams& x) { x.geometry.head_size = 80; }), LaunchStatus::kUnsupportedHeadSize);
  EXPECT_EQ(with([](AttendParams& x) { x.geometry.page_tokens = 8; }), LaunchStatus::kUnsupportedPage);
  EXPECT_EQ(with([](AttendParams& x) { x.geometry.format = PageFormat::kPackedV1; }), LaunchStatus::kUnsupportedPage);
  EXPECT_EQ(with([](AttendParams& x) { x.query_heads = 7; }), LaunchStatus::kUnsupportedGroup);
  EXPECT_EQ(with([](AttendParams& x) { x.geometry.v_token_stride += 4; }), LaunchStatus::kMisaligned);
  EXPECT_EQ(with([](AttendParams& x) { x.k_base = 8; }), LaunchStatus::kMisaligned);
  EXPECT_EQ(with([](AttendParams& x) { x.max_item_tokens = 1 << 20; }), LaunchStatus::kTooLarge);
  for (int status = 0; status <= static_cast<int>(LaunchStatus::kDriver); ++status) {
    EXPECT_STRNE(cuda::LaunchStatusText(static_cast<LaunchStatus>(status)), "unknown");
  }
}

}  // namespace
}  // namespace hybridgen::simt
