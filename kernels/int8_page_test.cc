// Tests of quantising tokens into 8-bit pages and of reading them back, against the definition in double.
#include "kernels/int8_page.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/page_copy.h"
#include "kernels/testing/red_zone.h"

namespace hybridgen {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr KvRole kRoles[] = {KvRole::kKey, KvRole::kValue};
constexpr int kHeads = 2;

PageGeometry Geometry(PageFormat format, DType dtype, int page_tokens, int head_size) {
  PageGeometry g;
  g.format = format;
  g.dtype = dtype;
  g.page_tokens = page_tokens;
  g.kv_heads = kHeads;
  g.head_size = head_size;
  g.k_head_stride = head_size + 1;
  g.k_token_stride = kHeads * g.k_head_stride + 2;
  g.v_token_stride = head_size + 3;
  g.v_head_stride = page_tokens * g.v_token_stride + 1;
  return g;
}

float Narrow(DType dtype, float x) {
  if (dtype == DType::kFloat32) return x;
  return dtype == DType::kFloat16 ? Float16ToFloat(FloatToFloat16(x)) : BFloat16ToFloat(FloatToBFloat16(x));
}

void Put(DType dtype, uint8_t* base, size_t index, float x) {
  const uint16_t half = dtype == DType::kFloat16 ? FloatToFloat16(x) : FloatToBFloat16(x);
  dtype == DType::kFloat32 ? std::memcpy(base + index * 4, &x, 4) : std::memcpy(base + index * 2, &half, 2);
}

float Get(DType dtype, const uint8_t* base, size_t index) {
  float x;
  uint16_t half;
  dtype == DType::kFloat32 ? std::memcpy(&x, base + index * 4, 4) : std::memcpy(&half, base + index * 2, 2);
  if (dtype == DType::kFloat32) return x;
  return dtype == DType::kFloat16 ? Float16ToFloat(half) : BFloat16ToFloat(half);
}

// A page of one role.
struct Page {
  Page(const PageGeometry& geometry, KvRole r) : g(geometry), role(r), bytes(Size(geometry)) {}
  static size_t Size(const PageGeometry& g) {
    if (g.format != PageFormat::kStrided) return HostPageBytes(g);
    return (std::max(g.page_tokens * g.k_token_stride, kHeads * g.v_head_stride)) * DTypeSize(g.dtype);
  }
  uint64_t address() { return reinterpret_cast<uint64_t>(bytes.data()); }
  size_t Index(int head, int token, int dim) const {
    const bool key = role == KvRole::kKey;
    if (g.format == PageFormat::kStrided) {
      return key ? head * g.k_head_stride + token * g.k_token_stride + dim
                 : head * g.v_head_stride + token * g.v_token_stride + dim;
    }
    return (key ? PackedKeyOffset : PackedValueOffset)(g.dtype, g.page_tokens, g.head_size, head, token, dim);
  }
  void Set(int head, int token, int dim, float x) { Put(g.dtype, bytes.data(), Index(head, token, dim), x); }
  float At(int head, int token, int dim) { return Get(g.dtype, bytes.data(), Index(head, token, dim)); }
  // Of an 8-bit page.
  int Value(int head, int token, int dim) {
    const auto offset = role == KvRole::kKey ? Int8KeyOffset : Int8ValueOffset;
    return static_cast<int8_t>(bytes.data()[offset(g.page_tokens, g.head_size, head, token, dim)]);
  }
  float Scale(int head, int token) {
    const auto offset = role == KvRole::kKey ? Int8KeyScaleOffset : Int8ValueScaleOffset;
    float scale;
    std::memcpy(&scale, bytes.data() + offset(g.page_tokens, g.head_size, head, token), sizeof(scale));
    return scale;
  }

  const PageGeometry g;
  const KvRole role;
  RedZoned<uint8_t> bytes;
};

// Fills tokens with numbers of all magnitudes that the dtype has; one token is 0, one has an outlier.
void FillRandom(Page& page, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::uniform_int_distribution<int> exponent(page.g.dtype == DType::kFloat16 ? -10 : -60, 5);
  for (int head = 0; head < kHeads; ++head) {
    for (int token = 0; token < page.g.page_tokens; ++token) {
      const float size = token == 5 ? 0.0f : std::ldexp(1.0f, exponent(random));
      for (int dim = 0; dim < page.g.head_size; ++dim) page.Set(head, token, dim, size * uniform(random));
      if (token == 6) page.Set(head, token, 3, 1000 * size);
    }
  }
}

// Whether the token of the 8-bit page is that of `exact`, by the definition.
void ExpectToken(Page& int8, Page& exact, int head, int int8_token, int token) {
  const int head_size = exact.g.head_size;
  float largest = 0;
  for (int dim = 0; dim < head_size; ++dim) largest = std::max(largest, std::abs(exact.At(head, token, dim)));
  const float scale = int8.Scale(head, int8_token);
  ASSERT_EQ(scale, largest / 127);
  int largest_n = 0;
  for (int dim = 0; dim < head_size; ++dim) {
    const int n = int8.Value(head, int8_token, dim);
    // Half a step, and three roundings of up to 127 steps.
    ASSERT_LE(std::abs(static_cast<double>(n) * scale - exact.At(head, token, dim)), scale * (0.5 + 3 * 127 * 0x1p-24));
    largest_n = std::max(largest_n, std::abs(n));
  }
  ASSERT_EQ(largest_n, largest > 0 ? 127 : 0);
  for (int dim = head_size; dim < PaddedHeadSize(head_size); ++dim) ASSERT_EQ(int8.Value(head, int8_token, dim), 0);
}

bool Untouched(Page& page, int head, int token) {
  bool untouched = true;
  for (int dim = 0; dim < PaddedHeadSize(page.g.head_size); ++dim) untouched &= page.Value(head, token, dim) == -1;
  return untouched && std::isnan(page.Scale(head, token));
}

template <typename F>
void ForEachShape(F f) {
  for (const DType dtype : kDTypes) {
    for (const int head_size : {8, 24, 64, 72, 128, 512}) {
      for (const int page_tokens : {16, 32, 128}) {
        SCOPED_TRACE(testing::Message() << DTypeName(dtype) << " head_size " << head_size << " page_tokens "
                                        << page_tokens);
        f(dtype, head_size, page_tokens);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(Int8PageTest, WriteKvWritesExactlyTheTokensNamed) {
  ForEachShape([](DType dtype, int head_size, int page_tokens) {
    const PageGeometry g = Geometry(PageFormat::kPackedInt8V1, dtype, page_tokens, head_size);
    const PageGeometry source = Geometry(PageFormat::kStrided, dtype, page_tokens, head_size);
    Page key(source, KvRole::kKey), value(source, KvRole::kValue);
    FillRandom(key, 1);
    FillRandom(value, 2);
    for (const auto& [offset, count] : {std::pair{0, 1}, {3, 1}, {4, 5}, {0, page_tokens}, {3, page_tokens - 3}}) {
      Page k(g, KvRole::kKey), v(g, KvRole::kValue);
      WriteArgs args;
      args.geometry = g;
      args.dtype = dtype;
      args.k_page = k.address();
      args.v_page = v.address();
      args.offset = offset;
      args.num_tokens = count;
      args.key = key.bytes.data();
      args.value = value.bytes.data();
      args.key_token_stride = source.k_token_stride;
      args.key_head_stride = source.k_head_stride;
      args.value_token_stride = source.v_token_stride;
      args.value_head_stride = source.v_head_stride;
      WriteKv(args);
      ASSERT_TRUE(k.bytes.Intact() && v.bytes.Intact());
      for (int head = 0; head < kHeads; ++head) {
        for (int token = 0; token < page_tokens; ++token) {
          for (Page* page : {&k, &v}) {
            if (token < offset || token >= offset + count) {
              ASSERT_TRUE(Untouched(*page, head, token)) << "token " << token;
            } else {
              ASSERT_NO_FATAL_FAILURE(ExpectToken(*page, page == &k ? key : value, head, token, token - offset));
            }
          }
        }
      }
    }
  });
}

TEST(Int8PageTest, ConvertsFromAndToExactPages) {
  ForEachShape([](DType dtype, int head_size, int page_tokens) {
    for (const KvRole role : kRoles) {
      for (const PageFormat format : {PageFormat::kStrided, PageFormat::kPackedV1}) {
        for (const int tokens : {0, 1, 7, page_tokens - 1, page_tokens}) {
          Page exact(Geometry(format, dtype, page_tokens, head_size), role), back(exact.g, role);
          Page int8(Geometry(PageFormat::kPackedInt8V1, dtype, page_tokens, head_size), role);
          FillRandom(exact, 3);
          ConvertPage(role, exact.g, exact.address(), int8.g, int8.address(), tokens);
          ConvertPage(role, int8.g, int8.address(), back.g, back.address(), tokens);
          ASSERT_TRUE(int8.bytes.Intact() && back.bytes.Intact());
          for (int head = 0; head < kHeads; ++head) {
            for (int token = 0; token < page_tokens; ++token) {
              if (token < tokens) {
                ASSERT_NO_FATAL_FAILURE(ExpectToken(int8, exact, head, token, token));
              } else {
                ASSERT_EQ(int8.Scale(head, token), 0.0f) << "slots that hold no token are zeros";
              }
              for (int dim = 0; dim < head_size; ++dim) {
                const float x = int8.Scale(head, token) * static_cast<float>(int8.Value(head, token, dim));
                ASSERT_TRUE(token < tokens || int8.Value(head, token, dim) == 0);
                if (token >= tokens && format == PageFormat::kStrided) {
                  ASSERT_TRUE(std::isnan(back.At(head, token, dim))) << "left alone";
                } else {
                  ASSERT_EQ(back.At(head, token, dim), Narrow(dtype, x));
                }
              }
            }
          }
        }
      }
    }
  });
}

// Between 8-bit pages bytes are copied: nothing is rounded again, NaN stays.
TEST(Int8PageTest, CopiesBetweenEightBitPagesAreExact) {
  ForEachShape([](DType dtype, int head_size, int page_tokens) {
    for (const KvRole role : kRoles) {
      for (const int tokens : {3, page_tokens}) {
        Page exact(Geometry(PageFormat::kStrided, dtype, page_tokens, head_size), role);
        const PageGeometry g = Geometry(PageFormat::kPackedInt8V1, dtype, page_tokens, head_size);
        Page from(g, role), to(g, role);
        FillRandom(exact, 4);
        exact.Set(1, 2, 0, std::numeric_limits<float>::quiet_NaN());
        ConvertPage(role, exact.g, exact.address(), g, from.address(), page_tokens);
        ConvertPage(role, g, from.address(), g, to.address(), tokens);
        ASSERT_TRUE(to.bytes.Intact());
        for (int head = 0; head < kHeads; ++head) {
          for (int token = 0; token < page_tokens; ++token) {
            const float from_scale = from.Scale(head, token), to_scale = to.Scale(head, token);
            const float zero = 0;
            ASSERT_EQ(std::memcmp(token < tokens ? &from_scale : &zero, &to_scale, sizeof(float)), 0);
            for (int dim = 0; dim < PaddedHeadSize(head_size); ++dim) {
              ASSERT_EQ(to.Value(head, token, dim), token < tokens ? from.Value(head, token, dim) : 0);
            }
          }
        }
      }
    }
  });
}

// Multiples of a power of two up to 127 of it, as tests of the backend use them, survive any number of copies.
TEST(Int8PageTest, TheGridIsExact) {
  for (const DType dtype : kDTypes) {
    for (const KvRole role : kRoles) {
      Page exact(Geometry(PageFormat::kStrided, dtype, 16, 128), role), back(exact.g, role);
      Page int8(Geometry(PageFormat::kPackedInt8V1, dtype, 16, 128), role);
      for (int head = 0; head < kHeads; ++head) {
        for (int token = 0; token < 16; ++token) {
          for (int dim = 0; dim < 128; ++dim) exact.Set(head, token, dim, std::ldexp(dim % 2 ? -dim : dim, token - 9));
        }
      }
      ConvertPage(role, exact.g, exact.address(), int8.g, int8.address(), 16);
      ConvertPage(role, int8.g, int8.address(), back.g, back.address(), 16);
      EXPECT_EQ(std::memcmp(exact.bytes.data(), back.bytes.data(), exact.bytes.size()), 0);
    }
  }
}

TEST(Int8PageTest, ExtremesAreDefined) {
  constexpr float kMost = 3.4e38f;
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Page exact(Geometry(PageFormat::kStrided, DType::kFloat32, 16, 8), KvRole::kValue), back(exact.g, KvRole::kValue);
  Page int8(Geometry(PageFormat::kPackedInt8V1, DType::kFloat32, 16, 8), KvRole::kValue);
  FillRandom(exact, 5);
  const float rows[][2] = {{std::nanf(""), 1}, {kInf, 1}, {-kInf, 0}, {kMost, -kMost}, {1e-40f, 0}, {1e-28f, -1e-29f}};
  for (int token = 0; token < 6; ++token) {
    for (int dim = 0; dim < 8; ++dim) exact.Set(0, token, dim, dim < 2 ? rows[token][dim] : 0);
  }
  ConvertPage(KvRole::kValue, exact.g, exact.address(), int8.g, int8.address(), 16);
  ConvertPage(KvRole::kValue, int8.g, int8.address(), back.g, back.address(), 16);
  for (int token = 0; token < 3; ++token) {
    EXPECT_TRUE(std::isnan(int8.Scale(0, token)));
    for (int dim = 0; dim < 8; ++dim) EXPECT_TRUE(std::isnan(back.At(0, token, dim)));
  }
  EXPECT_EQ(back.At(0, 3, 0), -back.At(0, 3, 1));
  EXPECT_NEAR(back.At(0, 3, 0) / kMost, 1, 1e-6);
  EXPECT_EQ(int8.Scale(0, 4), 0.0f) << "below kInt8LeastMagnitude";
  EXPECT_EQ(back.At(0, 4, 0), 0.0f);
  EXPECT_EQ(int8.Scale(0, 5), 0.0f);
  EXPECT_FALSE(std::isnan(int8.Scale(1, 0))) << "the other head";
}

}  // namespace
}  // namespace hybridgen
