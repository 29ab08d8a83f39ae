// Page digests and the bounds of logits that they give, of every ISA level that this CPU has.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/kernel_set_test.h"
#include "kernels/testing/red_zone.h"

namespace hybridgen {
namespace {

class DigestTest : public KernelSetTest {};

INSTANTIATE_TEST_SUITE_P(Isa, DigestTest, testing::ValuesIn(RunnableKernelSets()), KernelSetName);

// The digests of all pages that the case's rows see, in the order of the pages.
class Digests {
 public:
  Digests(const KernelSet& kernels, const AttendData& data)
      : layout_(DigestLayoutOf(data.c().kv_heads, data.c().head_size)),
        bytes_(layout_.bytes * data.pages().size()),
        pages_(data.pages()) {
    for (size_t i = 0; i < pages_.size(); ++i) {
      const KvPage& page = data.pages()[i];
      if (page.k == kPoisonedPage) continue;  // nobody sees it
      pages_[i].k = reinterpret_cast<uint64_t>(bytes_.data() + i * layout_.bytes);
      kernels.selection.build_digest(data.geometry(), page.k, page.v, page.num_tokens,
                                     bytes_.data() + i * layout_.bytes);
    }
    EXPECT_TRUE(bytes_.Intact()) << "wrote outside the digests";
  }
  const std::vector<KvPage>& pages() const { return pages_; }
  float Magnitude(int page, int kv_head) const { return At<float>(page, layout_.magnitude, kv_head); }
  float Radius(int page, int kv_head) const { return At<float>(page, layout_.radius, kv_head); }
  float Bound(int page, int kv_head, int dim, int which) const {
    return BFloat16ToFloat(At<uint16_t>(page, layout_.box + kv_head * layout_.box_bytes, 2 * dim + which));
  }
  float Centroid(int page, int kv_head, int dim) const {
    return At<float>(page, layout_.centroid, kv_head * layout_.centroid_floats + dim);
  }

 private:
  template <typename T>
  T At(int page, size_t offset, size_t index) const {
    T x;
    std::memcpy(&x, reinterpret_cast<const char*>(pages_[page].k) + offset + index * sizeof(T), sizeof(T));
    return x;
  }
  DigestLayout layout_;
  RedZoned<uint8_t> bytes_;
  std::vector<KvPage> pages_;
};

// [row][page].
std::vector<float> Bounds(const KernelSet& kernels, const AttendData& data, const Digests& digests, int kv_head) {
  const QueryTile tile = data.Tile(kv_head);
  const int rows = tile.num_tokens * tile.group;
  const int pages = static_cast<int>(digests.pages().size());
  const int64_t stride = pages + 3;
  RedZoned<float> bounds(rows * stride, 4);
  RedZoned<uint8_t> scratch(DigestScratchBytes(tile.head_size), 4);
  AttendArgs args = data.Args(kv_head);
  args.pages = digests.pages().data();
  args.next_kv_head = kv_head + 1 < data.c().kv_heads ? kv_head + 1 : -1;
  kernels.selection.bound_logits(tile, args, bounds.data(), stride, scratch.data());
  EXPECT_TRUE(bounds.Intact() && scratch.Intact()) << "wrote outside its memory";
  std::vector<float> result;
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < stride; ++i) {
      if (i < pages) {
        result.push_back(bounds[row * stride + i]);
      } else {
        EXPECT_TRUE(std::isnan(bounds[row * stride + i])) << "wrote behind the last page";
      }
    }
  }
  return result;
}

// Bounds of `kernels` against the logits by the definition and those of every set of kernels.
void ExpectBounds(const KernelSet& kernels, AttendData& data) {
  const AttendCase& c = data.c();
  const Digests digests(kernels, data);
  const int num_pages = static_cast<int>(digests.pages().size());
  for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
    const std::vector<float> bounds = Bounds(kernels, data, digests, kv_head);
    const OracleInput& in = data.oracle(kv_head);
    const QueryTile tile = data.Tile(kv_head);
    const int rows = tile.num_tokens * tile.group;
    const int64_t slots = static_cast<int64_t>(num_pages) * c.page_tokens;
    std::vector<std::vector<float>> stored;
    for (const KernelSet& set : RunnableKernelSets()) {
      RedZoned<float> logits(rows * slots);
      std::vector<uint8_t> scratch(AttendScratchBytes(c.head_size));
      // An infinite logit ends the call; what was stored before it is compared.
      set.selection.store_logits(tile, data.Args(kv_head), logits.data(), slots, scratch.data());
      stored.emplace_back(logits.data(), logits.data() + rows * slots);
    }
    for (int row = 0; row < rows; ++row) {
      const int token = row / c.group;
      for (int page = 0; page < num_pages; ++page) {
        const float bound = bounds[row * num_pages + page];
        bool seen = false;
        for (int t = 0; t < digests.pages()[page].num_tokens; ++t) {
          const int position = page * c.page_tokens + t;
          if (position < in.kv_begin[token] || position >= in.kv_end[token]) continue;
          seen = true;
          ASSERT_FALSE(std::isnan(bound));
          const double logit = LogitOracle(in, token, row % c.group, position).logit;
          ASSERT_FALSE(logit > bound) << "row " << row << " position " << position << ": " << logit << " > " << bound;
          for (size_t i = 0; i < stored.size(); ++i) {
            const float x = stored[i][row * slots + position];
            ASSERT_FALSE(x > bound) << RunnableKernelSets()[i].name << ", row " << row << " position " << position
                                    << ": " << x << " > " << bound;
          }
        }
        if (!seen) {
          ASSERT_EQ(bound, -kInf) << "row " << row << " page " << page;
        }
      }
    }
  }
}

// Sets every K of the case; f(position, kv_head, dim).
void SetKeys(AttendData& data, const std::function<float(int, int, int)>& f) {
  const AttendCase& c = data.c();
  for (int position = 0; position < c.length; ++position) {
    for (int head = 0; head < c.kv_heads; ++head) {
      for (int dim = 0; dim < c.head_size; ++dim) {
        data.key(position, head, dim) = RoundTo(c.kv(), f(position, head, dim));
      }
    }
  }
}
void SetQueries(AttendData& data, const std::function<float(int, int)>& f) {
  const AttendCase& c = data.c();
  for (int token = 0; token < c.num_tokens; ++token) {
    for (int head = 0; head < data.heads(); ++head) {
      for (int dim = 0; dim < c.head_size; ++dim) data.query(token, head, dim) = RoundTo(c.dtype, f(head, dim));
    }
  }
}

TEST_P(DigestTest, HoldsBoxCentroidAndRadius) {
  for (DType dtype : kKvDTypes) {
    for (int head_size : {8, 16, 24, 64, 72}) {
      for (int length : {1, 2, 15, 16, 17, 33, 48, 100}) {
        AttendCase c;
        c.SetStorage(dtype);
        c.head_size = head_size;
        c.length = length;
        c.page_tokens = 48;
        c.kv_heads = 3;
        c.seed = head_size + length;
        SCOPED_TRACE(c.ToString());
        AttendData data(c);
        const Digests digests(kernels(), data);
        for (size_t page = 0; page < data.pages().size(); ++page) {
          const int first = data.pages()[page].first_position, tokens = data.pages()[page].num_tokens;
          for (int head = 0; head < c.kv_heads; ++head) {
            float magnitude = 0;
            for (int dim = 0; dim < PaddedHeadSize(head_size); ++dim) {
              const float low = digests.Bound(page, head, dim, 0), high = digests.Bound(page, head, dim, 1);
              if (dim >= head_size) {
                ASSERT_TRUE(low == 0 && high == 0 && digests.Centroid(page, head, dim) == 0) << "padded dim " << dim;
                continue;
              }
              float least = kInf, largest = -kInf;
              double mean = 0, sum = 0;
              for (int t = 0; t < tokens; ++t) {
                least = std::min(least, data.key(first + t, head, dim));
                largest = std::max(largest, data.key(first + t, head, dim));
                mean += static_cast<double>(data.value(first + t, head, dim)) / tokens;
                sum += std::abs(static_cast<double>(data.value(first + t, head, dim))) / tokens;
              }
              // Outward, and by less than one place of bfloat16.
              ASSERT_LE(low, least);
              ASSERT_GE(high, largest);
              ASSERT_LE(least - low, 0x1p-7 * std::abs(least));
              ASSERT_LE(high - largest, 0x1p-7 * std::abs(largest));
              if (dtype == DType::kBFloat16) {
                ASSERT_TRUE(low == least && high == largest);
              }
              magnitude = std::max({magnitude, std::abs(low), std::abs(high)});
              // The share rounds once, every term once.
              ASSERT_NEAR(digests.Centroid(page, head, dim), mean, (tokens + 2) * 0x1p-24 * sum);
            }
            ASSERT_EQ(digests.Magnitude(page, head), magnitude);
            double radius = 0;
            for (int t = 0; t < tokens; ++t) {
              double square = 0;
              for (int dim = 0; dim < head_size; ++dim) {
                const double d = static_cast<double>(data.value(first + t, head, dim)) -
                                 static_cast<double>(digests.Centroid(page, head, dim));
                square += d * d;
              }
              radius = std::max(radius, std::sqrt(square));
            }
            ASSERT_GE(digests.Radius(page, head), radius);
            ASSERT_LE(digests.Radius(page, head), radius * (1 + (2 * head_size + 20) * 0x1p-24) + 0x1p-57);
          }
        }
      }
    }
  }
}

TEST_P(DigestTest, OfOneTokenBoundsItsLogitClosely) {
  AttendCase c;
  c.dtype = DType::kBFloat16;  // whose box is exact
  c.length = 1;
  c.group = 5;
  AttendData data(c);
  const Digests digests(kernels(), data);
  const std::vector<float> bounds = Bounds(kernels(), data, digests, 1);
  for (int row = 0; row < c.group; ++row) {
    const OracleLogit x = LogitOracle(data.oracle(1), 0, row, 0);
    double reach = 0;
    for (int dim = 0; dim < c.head_size; ++dim) reach += std::abs(data.query(0, c.group + row, dim));
    const double slack = 2 * (4 * c.head_size + 32) * 0x1p-24 * c.scale * reach * digests.Magnitude(0, 1);
    EXPECT_GE(bounds[row], x.logit);
    EXPECT_LE(bounds[row], x.logit + slack);
  }
}

TEST_P(DigestTest, BoundsRandomPages) {
  const uint32_t seed = TestSeed("//kernels/cpu:digest_test", 20251125);
  std::mt19937 random(seed);
  const auto pick = [&](int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(random); };
  for (int i = 0; i < 60; ++i) {
    AttendCase c;
    c.dtype = kDTypes[pick(0, 2)];
    c.page_tokens = 16 * pick(1, 4);
    c.kv_heads = pick(1, 3);
    c.group = pick(1, 12);
    c.head_size = 8 * pick(1, 17);
    c.num_tokens = pick(1, std::min(10, 64 / c.group));
    c.length = c.num_tokens + pick(0, 700);
    c.mask = pick(0, 3) == 0 ? OracleInput::Mask::kNone : OracleInput::Mask::kCausal;
    c.window = pick(0, 1) == 0 ? 0 : pick(1, 300);
    c.scale = 0.1f * pick(-5, 20);
    c.soft_cap = pick(0, 2) == 0 ? 2.0f : 0.0f;
    c.alibi = pick(0, 2) == 0;
    c.seed = random();
    SCOPED_TRACE(testing::Message() << kernels().name << ": " << c.ToString());
    AttendData data(c);
    if (c.alibi && pick(0, 1) == 0) {
      for (int head = 0; head < c.kv_heads; ++head) {
        for (float& slope : data.oracle(head).alibi_slopes) slope = -slope;  // the tile reads the oracle's
      }
    }
    ExpectBounds(kernels(), data);
    ASSERT_FALSE(HasFailure()) << "case " << i << " of seed " << seed;
  }
}

// What rounding could turn a bound on: all tokens alike, so that the box is a point and nothing is given away.
TEST_P(DigestTest, BoundsHoldWhereRoundingIsAllThereIs) {
  std::mt19937 random(TestSeed("//kernels/cpu:digest_test", 7));
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (DType dtype : kDTypes) {
    for (float q_size : {1e-40f, 1e-20f, 1.0f, 1e4f}) {
      for (float k_size : {1e-40f, 1e-38f, 1e-7f, 1.0f, 1e4f}) {
        for (int variant = 0; variant < 4; ++variant) {
          AttendCase c;
          c.dtype = dtype;
          c.kv_heads = 1;
          c.group = 5;
          c.head_size = 128;
          c.length = 32;
          c.scale = variant == 3 ? 1e-30f : 0.088388346f;
          c.soft_cap = variant == 2 ? 1.0f : 0.0f;
          AttendData data(c);
          std::vector<float> k(c.head_size), q(c.head_size);
          for (float& x : k) x = k_size * uniform(random);
          for (float& x : q) x = q_size * uniform(random);
          // Terms that cancel: q.k is what is left of large products.
          for (int dim = 1; variant == 1 && dim < c.head_size; dim += 2) {
            k[dim] = k[dim - 1];
            q[dim] = -q[dim - 1];
          }
          SetKeys(data, [&](int position, int, int dim) { return position < 16 ? k[dim] : -k[dim]; });
          SetQueries(data, [&](int head, int dim) { return head % 2 == 0 ? q[dim] : q[c.head_size - 1 - dim]; });
          data.BuildPages(c.format);
          SCOPED_TRACE(testing::Message() << c.ToString() << " |q|=" << q_size << " |k|=" << k_size);
          ExpectBounds(kernels(), data);
        }
      }
    }
  }
}

// Products and sums that overflow, in whatever order: never a bound below the logit.
TEST_P(DigestTest, BoundsOfHugeNumbersAreInfinite) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (float scale : {1.0f, 1e-30f, -1.0f, 1e10f}) {
      AttendCase c;
      c.dtype = dtype;
      c.length = 40;
      c.scale = scale;
      AttendData data(c);
      SetKeys(data, [](int position, int, int dim) { return (dim + position) % 4 < 2 ? -2e38f : 2e38f; });
      SetQueries(data, [](int, int dim) { return dim == 3 ? -1.5f : 1.5f; });
      data.BuildPages(c.format);
      ExpectBounds(kernels(), data);
      const Digests digests(kernels(), data);
      for (float bound : Bounds(kernels(), data, digests, 0)) EXPECT_EQ(bound, kInf);
    }
  }
}

TEST_P(DigestTest, NothingFiniteBoundsWhatIsNotFinite) {
  for (DType dtype : kDTypes) {
    for (float soft_cap : {0.0f, 2.0f}) {
      for (float bad : {kNaN, kInf, -kInf}) {
        AttendCase c;
        c.dtype = dtype;
        c.length = 70;
        c.page_tokens = 32;
        c.group = 3;
        c.soft_cap = soft_cap;
        AttendData data(c);
        for (int head = 0; head < data.heads(); ++head) data.query(0, head, 5) = 0.0f;  // whatever the bad K meets
        data.key(37, 1, 5) = bad;
        data.value(40, 0, 3) = bad;
        data.BuildPages(c.format);
        const Digests digests(kernels(), data);
        for (int head = 0; head < 2; ++head) {
          const std::vector<float> bounds = Bounds(kernels(), data, digests, head);
          for (int row = 0; row < 3; ++row) {
            for (int page = 0; page < 3; ++page) {
              EXPECT_EQ(bounds[3 * row + page] == kInf, head == 1 && page == 1) << head << " " << row << " " << page;
            }
          }
        }
        EXPECT_EQ(digests.Magnitude(1, 1), kInf);
        EXPECT_EQ(digests.Radius(1, 0), kInf);
        for (int dim = 0; dim < c.head_size; ++dim) {
          EXPECT_EQ(digests.Bound(1, 1, dim, 1), 0.0f);
          EXPECT_EQ(digests.Centroid(1, 0, dim), 0.0f);
        }
        // And a query that is not finite knows nothing of any page.
        data.query(0, 4, 0) = bad;
        data.BuildPages(c.format);
        const std::vector<float> bounds = Bounds(kernels(), data, digests, 1);
        for (int page = 0; page < 3; ++page) EXPECT_EQ(bounds[3 + page], kInf);
      }
    }
  }
}

// float32 keys beyond the largest bfloat16, and V too large to square.
TEST_P(DigestTest, WhatDoesNotFitIsUnknown) {
  AttendCase c;
  c.length = 16;
  AttendData data(c);
  data.key(3, 0, 0) = std::numeric_limits<float>::max();
  data.value(3, 0, 0) = 1e30f;
  data.BuildPages(c.format);
  const Digests digests(kernels(), data);
  EXPECT_EQ(digests.Magnitude(0, 0), kInf);
  EXPECT_EQ(digests.Radius(0, 0), kInf);
  EXPECT_LT(digests.Magnitude(0, 1), kInf);
  EXPECT_LT(digests.Radius(0, 1), kInf);
}

TEST_P(DigestTest, RepeatedRunsGiveTheSameBits) {
  for (DType dtype : kDTypes) {
    AttendCase c;
    c.dtype = dtype;
    c.group = 7;
    c.num_tokens = 3;
    c.length = 777;
    AttendData data(c);
    const Digests first(kernels(), data), second(kernels(), data);
    for (size_t page = 0; page < data.pages().size(); ++page) {
      EXPECT_EQ(std::memcmp(reinterpret_cast<const void*>(first.pages()[page].k),
                            reinterpret_cast<const void*>(second.pages()[page].k),
                            DigestLayoutOf(c.kv_heads, c.head_size).bytes),
                0);
    }
    EXPECT_EQ(Bounds(kernels(), data, first, 1), Bounds(kernels(), data, second, 1));
  }
}

}  // namespace
}  // namespace hybridgen
