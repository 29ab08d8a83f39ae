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

constexpr uint8_t kPoison = 0xff;
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

// In bytes; offsets in elements.
struct Tensor {
  Tensor(Layout layout, DType dtype, int pages, int page_tokens, int kv_heads, int head_size)
      : geometry(GeometryOf(layout, dtype, page_tokens, kv_heads, head_size)),
        page_stride(PageStride(layout, geometry)),
        value_offset(ValueOffset(layout, geometry, pages)),
        bytes(2 * DTypeSize(dtype) * pages * page_tokens * kv_heads * head_size) {}
  int64_t At(KvRole role, int page, int head, int token, int dim) const {
    return page * page_stride + head * geometry.k_head_stride + token * geometry.k_token_stride + dim +
           (role == KvRole::kValue ? value_offset : 0);
  }
  uint8_t* Address(int64_t element) { return bytes.data() + element * static_cast<int64_t>(DTypeSize(geometry.dtype)); }
  uint8_t* k() { return bytes.data(); }
  uint8_t* v() { return Address(value_offset); }

  PageGeometry geometry;
  int64_t page_stride;
  int64_t value_offset;
  RedZoned<uint8_t> bytes;  // poison
};

// Elements are any bits; float8 gets what the scalar conversion of the quotient gives, NaN and infinities included.
TEST(WriteKvTest, EveryTokenInItsSlotAndNothingElse) {
  std::mt19937 random(TestSeed("//tests/simt:data_movement_test", 1));
  for (const DevicePair& types : kDevicePairs) {
    for (Layout layout : kLayouts) {
      for (int head_size : {8, 64, 72, 96, 128, 256, 512}) {
        if (IsFloat8(types.kv) && head_size % 16 != 0) continue;
        for (int page_tokens : {1, 16, 128}) {
          SCOPED_TRACE(testing::Message()
                       << DTypeName(types.dtype) << " to " << DTypeName(types.kv) << " layout "
                       << static_cast<int>(layout) << " head_size " << head_size << " page_tokens " << page_tokens);
          const int kv_heads = 1 + random() % 5, num_tokens = random() % 40, pages = 40 / page_tokens + 2;
          Tensor cache(layout, types.kv, pages, page_tokens, kv_heads, head_size);
          // Rows as an engine has them: q, K and V of a token beside each other.
          const int64_t row = 3 * kv_heads * head_size + 8;
          std::vector<uint16_t> input(num_tokens * row + 1);
          for (uint16_t& x : input) x = static_cast<uint16_t>(random());
          std::vector<int64_t> free(pages * page_tokens), slots;
          for (size_t i = 0; i < free.size(); ++i) free[i] = i;
          std::shuffle(free.begin(), free.end(), random);
          for (int t = 0; t < num_tokens; ++t) slots.push_back(random() % 5 == 0 ? -1 : free[t]);

          cuda::WriteKvParams p;
          p.key = {input.data(), row, head_size};
          p.value = {input.data() + kv_heads * head_size, row, 2 * head_size};
          p.dtype = types.dtype;
          p.num_tokens = num_tokens;
          p.slots = slots.data();
          p.geometry = cache.geometry;
          p.k_cache = cache.k();
          p.v_cache = cache.v();
          p.k_page_stride = p.v_page_stride = cache.page_stride;
          if (kv_heads > 1) p.value.head_stride = head_size;
          if (IsFloat8(types.kv)) {
            p.k_scale = 0.3f;
            p.v_scale = 17.1f;
          }
          ASSERT_EQ(cuda::Check(p), cuda::LaunchStatus::kOk);
          cuda::DispatchElements(types.dtype, types.kv, [&](auto element, auto kv) {
            using T = typename decltype(element)::type;
            using Kv = typename decltype(kv)::type;
            EXPECT_EQ(RunBlocks({std::max(1, cuda::WriteKvBlocks(p))}, cuda::kWriteKvThreads, 0, random(),
                                [&] { cuda::WriteKvKernel<T, Kv>(p); }),
                      absl::OkStatus());
            return cuda::LaunchStatus::kOk;
          });

          std::vector<uint8_t> want(cache.bytes.size(), kPoison);
          const auto store = [&](int64_t to, int64_t from, float scale) {
            if (IsFloat8(types.kv)) {
              WriteElement(types.kv, want.data(), to, ReadElement(types.dtype, input.data(), from) / scale);
            } else {
              std::memcpy(want.data() + 2 * to, &input[from], 2);
            }
          };
          for (int t = 0; t < num_tokens; ++t) {
            if (slots[t] < 0) continue;
            for (int head = 0; head < kv_heads; ++head) {
              for (int dim = 0; dim < head_size; ++dim) {
                const int page = slots[t] / page_tokens, token = slots[t] % page_tokens;
                const int64_t from = t * row + head * head_size + dim;
                store(cache.At(KvRole::kKey, page, head, token, dim), from, p.k_scale);
                store(cache.At(KvRole::kValue, page, head, token, dim), from + kv_heads * head_size, p.v_scale);
              }
            }
          }
          ASSERT_EQ(std::memcmp(want.data(), cache.bytes.data(), want.size()), 0);
          ASSERT_TRUE(cache.bytes.Intact());
        }
      }
    }
  }
}

// Packs by the format's own offsets, unpacks again, in every format detail: element sizes and lanes (dtypes), head
// sizes that are padded, tails.
void CheckRepack(DType dtype, std::mt19937& random) {
  const size_t size = DTypeSize(dtype);
  const auto run = [&](cuda::Repack direction, const cuda::RepackParams& p) {
    absl::Status status;
    cuda::DispatchRepack(dtype, [&](auto element) {
      using T = typename decltype(element)::type;
      status = RunBlocks({p.num_jobs * p.geometry.page_tokens / 16, p.geometry.kv_heads, 2}, cuda::kRepackThreads,
                         cuda::RepackSharedBytes(dtype, p.geometry.head_size), random(), [&] {
                           direction == cuda::Repack::kPack ? cuda::RepackKernel<T, cuda::Repack::kPack>(p)
                                                            : cuda::RepackKernel<T, cuda::Repack::kUnpack>(p);
                         });
      return cuda::LaunchStatus::kOk;
    });
    return status;
  };
  for (Layout layout : kLayouts) {
    for (int head_size : {8, 64, 72, 96, 128, 256}) {
      if (IsFloat8(dtype) && head_size % 16 != 0) continue;
      for (int page_tokens : {16, 32, 128}) {
        SCOPED_TRACE(testing::Message() << DTypeName(dtype) << " layout " << static_cast<int>(layout) << " head_size "
                                        << head_size << " page_tokens " << page_tokens);
        const int kv_heads = 1 + random() % 3, num_jobs = 3;
        Tensor from(layout, dtype, num_jobs, page_tokens, kv_heads, head_size);
        Tensor back(layout, dtype, num_jobs, page_tokens, kv_heads, head_size);
        const size_t role = PackedPageBytes(dtype, kv_heads, page_tokens, head_size);
        RedZoned<uint8_t> packed(num_jobs * 2 * role);
        std::vector<uint8_t> want(packed.size(), 0);
        std::vector<cuda::RepackJob> jobs(num_jobs);
        for (int i = 0; i < num_jobs; ++i) {
          const int page = (i + 1) % num_jobs;
          jobs[i].num_tokens = i == 0 ? page_tokens : i == 1 ? 1 + random() % page_tokens : 0;
          jobs[i].strided_k = reinterpret_cast<uint64_t>(from.k() + page * from.page_stride * size);
          jobs[i].strided_v = reinterpret_cast<uint64_t>(from.v() + page * from.page_stride * size);
          jobs[i].packed_k = reinterpret_cast<uint64_t>(packed.data() + 2 * i * role);
          jobs[i].packed_v = reinterpret_cast<uint64_t>(packed.data() + (2 * i + 1) * role);
          for (int head = 0; head < kv_heads; ++head) {
            for (int token = 0; token < jobs[i].num_tokens; ++token) {
              for (int dim = 0; dim < head_size; ++dim) {
                const auto set = [&](KvRole kv, size_t page_of, size_t offset) {
                  const uint32_t bits = random();
                  std::memcpy(from.Address(from.At(kv, page, head, token, dim)), &bits, size);
                  std::memcpy(want.data() + page_of * role + offset * size, &bits, size);
                };
                set(KvRole::kKey, 2 * i, PackedKeyOffset(dtype, page_tokens, head_size, head, token, dim));
                set(KvRole::kValue, 2 * i + 1, PackedValueOffset(dtype, page_tokens, head_size, head, token, dim));
              }
            }
          }
        }
        cuda::RepackParams p;
        p.jobs = jobs.data();
        p.num_jobs = num_jobs;
        p.geometry = from.geometry;
        ASSERT_EQ(cuda::Check(p), cuda::LaunchStatus::kOk);
        ASSERT_EQ(run(cuda::Repack::kPack, p), absl::OkStatus());
        ASSERT_EQ(std::memcmp(want.data(), packed.data(), want.size()), 0) << "packing";
        ASSERT_TRUE(packed.Intact());

        for (int i = 0; i < num_jobs; ++i) {
          const int page = (i + 1) % num_jobs;
          jobs[i].strided_k = reinterpret_cast<uint64_t>(back.k() + page * back.page_stride * size);
          jobs[i].strided_v = reinterpret_cast<uint64_t>(back.v() + page * back.page_stride * size);
        }
        ASSERT_EQ(run(cuda::Repack::kUnpack, p), absl::OkStatus());
        ASSERT_EQ(std::memcmp(from.bytes.data(), back.bytes.data(), from.bytes.size()), 0) << "unpacking";
        ASSERT_TRUE(back.bytes.Intact());
      }
    }
  }
}

TEST(RepackTest, EveryDType) {
  std::mt19937 random(TestSeed("//tests/simt:data_movement_test", 2));
  for (DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    CheckRepack(dtype, random);
    if (HasFatalFailure()) return;
  }
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
  p.dtype = DType::kFloat16;
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
  EXPECT_EQ(with([](AttendParams& x) { x.geometry.dtype = DType::kFloat8E4M3; }), LaunchStatus::kOk);
  EXPECT_EQ(with([](AttendParams& x) { x.geometry.dtype = DType::kFloat32; }), LaunchStatus::kUnsupportedDType);
  EXPECT_EQ(with([](AttendParams& x) { x.geometry.dtype = DType::kBFloat16; }), LaunchStatus::kUnsupportedDType);
  EXPECT_EQ(with([](AttendParams& x) { x.dtype = x.geometry.dtype = DType::kFloat8E5M2; }),
            LaunchStatus::kUnsupportedDType);
  // 8 elements are 16 bytes, but not of float8.
  const auto shifted = [](AttendParams& x) { x.geometry.k_head_stride += 8; };
  EXPECT_EQ(with(shifted), LaunchStatus::kOk);
  EXPECT_EQ(with([&](AttendParams& x) {
              shifted(x);
              x.geometry.dtype = DType::kFloat8E5M2;
            }),
            LaunchStatus::kMisaligned);
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
