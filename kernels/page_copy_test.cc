// Tests of writing tokens into pages and of converting pages, bit for bit, for every format, dtype and role.
#include "kernels/page_copy.h"

#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/red_zone.h"

namespace hybridgen {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3,
                             DType::kFloat8E5M2};
constexpr int kHeadSizes[] = {8, 24, 64, 72, 112, 128, 512};
constexpr int kPageTokens[] = {16, 32, 128};
constexpr KvRole kRoles[] = {KvRole::kKey, KvRole::kValue};
constexpr int kHeads = 2;
constexpr uint32_t kUntouched = 0xffffffffu;  // what RedZoned fills with

PageGeometry Packed(DType dtype, int page_tokens, int head_size) {
  PageGeometry g;
  g.format = PageFormat::kPackedV1;
  g.dtype = dtype;
  g.page_tokens = page_tokens;
  g.kv_heads = kHeads;
  g.head_size = head_size;
  return g;
}

// Rows with gaps of an odd number of elements, K and V in rows of different strides.
PageGeometry Strided(DType dtype, int page_tokens, int head_size) {
  PageGeometry g = Packed(dtype, page_tokens, head_size);
  g.format = PageFormat::kStrided;
  g.k_head_stride = head_size + 1;
  g.k_token_stride = kHeads * g.k_head_stride + 2;
  g.v_token_stride = head_size + 3;
  g.v_head_stride = page_tokens * g.v_token_stride + 1;
  return g;
}

size_t PageElements(const PageGeometry& g, KvRole role) {
  if (g.format == PageFormat::kPackedV1) {
    return PackedPageBytes(g.dtype, g.kv_heads, g.page_tokens, g.head_size) / DTypeSize(g.dtype);
  }
  return role == KvRole::kKey ? (g.page_tokens - 1) * g.k_token_stride + (kHeads - 1) * g.k_head_stride + g.head_size
                              : (g.page_tokens - 1) * g.v_token_stride + (kHeads - 1) * g.v_head_stride + g.head_size;
}

size_t ElementOffset(const PageGeometry& g, KvRole role, int head, int token, int dim) {
  if (g.format == PageFormat::kPackedV1) {
    return role == KvRole::kKey ? PackedKeyOffset(g.dtype, g.page_tokens, g.head_size, head, token, dim)
                                : PackedValueOffset(g.dtype, g.page_tokens, g.head_size, head, token, dim);
  }
  return role == KvRole::kKey ? head * g.k_head_stride + token * g.k_token_stride + dim
                              : head * g.v_head_stride + token * g.v_token_stride + dim;
}

// A page of one role; elements are compared as bits.
class Page {
 public:
  Page(const PageGeometry& g, KvRole role)
      : geometry(g), role_(role), bytes_(PageElements(g, role) * DTypeSize(g.dtype), DTypeSize(g.dtype)) {}
  uint64_t address() { return reinterpret_cast<uint64_t>(bytes_.data()); }
  uint32_t Element(size_t offset) {
    uint32_t bits = 0;
    std::memcpy(&bits, bytes_.data() + offset * DTypeSize(geometry.dtype), DTypeSize(geometry.dtype));
    return bits;
  }
  uint32_t At(int head, int token, int dim) { return Element(ElementOffset(geometry, role_, head, token, dim)); }
  bool Intact() const { return bytes_.Intact(); }
  size_t NumElements() const { return PageElements(geometry, role_); }

  const PageGeometry geometry;

 private:
  KvRole role_;
  RedZoned<uint8_t> bytes_;
};

uint32_t Untouched(DType dtype) { return kUntouched >> (32 - 8 * DTypeSize(dtype)); }

// Source tokens [token][head][dim] with a gap after each head and token, for pages of dtype `stored`: of the same bits,
// or where that is float8 of another dtype (by turns) and with a scale.
class Tokens {
 public:
  Tokens(DType stored, int num_tokens, int head_size, uint32_t seed)
      : dtype(IsFloat8(stored) ? kDTypes[seed % 3] : stored),
        scale(IsFloat8(stored) ? 0.01f * static_cast<float>(1 + seed % 200) : 1.0f),
        head_stride(head_size + 1),
        token_stride(kHeads * head_stride + 3),
        stored_(stored) {
    std::mt19937 random(seed);
    bytes_.resize(num_tokens * token_stride * DTypeSize(dtype));
    if (!IsFloat8(stored)) {
      for (uint8_t& b : bytes_) b = static_cast<uint8_t>(random());
      return;
    }
    for (int64_t i = 0; i < num_tokens * token_stride; ++i) {
      // Within 512 scales, of which e4m3 holds 448.
      WriteElement(dtype, bytes_.data(), i, scale * (static_cast<float>(random()) * 0x1p-22f - 512.0f));
    }
  }
  const void* data() const { return bytes_.data(); }
  // Bits that a page must hold.
  uint32_t At(int head, int token, int dim) const {
    uint32_t bits = 0;
    const int64_t index = token * token_stride + head * head_stride + dim;
    if (dtype == stored_) {
      std::memcpy(&bits, bytes_.data() + index * DTypeSize(dtype), DTypeSize(dtype));
    } else {
      WriteElement(stored_, &bits, 0, ReadElement(dtype, bytes_.data(), index) / scale);
    }
    return bits;
  }

  const DType dtype;
  const float scale;
  const int64_t head_stride;
  const int64_t token_stride;

 private:
  const DType stored_;
  std::vector<uint8_t> bytes_;
};

WriteArgs MakeWrite(Page& k, Page& v, const Tokens& key, const Tokens& value, int offset, int num_tokens) {
  WriteArgs args;
  args.geometry = k.geometry;
  args.dtype = key.dtype;
  args.k_scale = key.scale;
  args.v_scale = value.scale;
  args.k_page = k.address();
  args.v_page = v.address();
  args.offset = offset;
  args.num_tokens = num_tokens;
  args.key = key.data();
  args.value = value.data();
  args.key_token_stride = key.token_stride;
  args.key_head_stride = key.head_stride;
  args.value_token_stride = value.token_stride;
  args.value_head_stride = value.head_stride;
  return args;
}

// Elements of `page` that belong to no token of [0, num_tokens) (padding included) and are not `expected`.
int CountOthersUnlike(Page& page, KvRole role, int first, int last, uint32_t expected) {
  std::vector<bool> written(page.NumElements(), false);
  for (int head = 0; head < kHeads; ++head) {
    for (int token = first; token < last; ++token) {
      for (int dim = 0; dim < page.geometry.head_size; ++dim) {
        written[ElementOffset(page.geometry, role, head, token, dim)] = true;
      }
    }
  }
  int unlike = 0;
  for (size_t i = 0; i < written.size(); ++i) unlike += !written[i] && page.Element(i) != expected;
  return unlike;
}

template <typename F>
void ForEachGeometry(F f) {
  for (DType dtype : kDTypes) {
    for (int head_size : kHeadSizes) {
      for (int page_tokens : kPageTokens) {
        f(Strided(dtype, page_tokens, head_size));
        f(Packed(dtype, page_tokens, head_size));
      }
    }
  }
}

TEST(WriteKvTest, WritesExactlyTheTokensNamed) {
  ForEachGeometry([](const PageGeometry& g) {
    SCOPED_TRACE(testing::Message() << DTypeName(g.dtype) << " head_size " << g.head_size << " page_tokens "
                                    << g.page_tokens << " format " << static_cast<int>(g.format));
    // Single tokens, parts of 16-token groups, whole groups, and both together.
    for (const auto& [offset, count] : {std::pair{0, 1},
                                        {3, 1},
                                        {4, 5},
                                        {0, g.page_tokens},
                                        {0, g.page_tokens - 1},
                                        {3, g.page_tokens - 3},
                                        {g.page_tokens - 1, 1}}) {
      Page k(g, KvRole::kKey), v(g, KvRole::kValue);
      const Tokens key(g.dtype, count, g.head_size, 1 + g.head_size),
          value(g.dtype, count, g.head_size, 4 + g.head_size);
      WriteKv(MakeWrite(k, v, key, value, offset, count));
      ASSERT_TRUE(k.Intact() && v.Intact());
      for (int head = 0; head < kHeads; ++head) {
        for (int token = 0; token < count; ++token) {
          for (int dim = 0; dim < g.head_size; ++dim) {
            ASSERT_EQ(k.At(head, offset + token, dim), key.At(head, token, dim));
            ASSERT_EQ(v.At(head, offset + token, dim), value.At(head, token, dim));
          }
        }
      }
      // Other tokens keep their content; the padded dims of the written ones are zero in packed pages.
      for (Page* page : {&k, &v}) {
        const KvRole role = page == &k ? KvRole::kKey : KvRole::kValue;
        const int padding = g.format == PageFormat::kPackedV1 ? PaddedHeadSize(g.head_size) - g.head_size : 0;
        EXPECT_EQ(CountOthersUnlike(*page, role, offset, offset + count, Untouched(g.dtype)), kHeads * count * padding);
        for (int head = 0; head < kHeads; ++head) {
          for (int dim = g.head_size; dim < g.head_size + padding; ++dim) EXPECT_EQ(page->At(head, offset, dim), 0u);
        }
      }
    }
  });
}

TEST(WriteKvTest, TokenByTokenEqualsAllAtOnce) {
  const PageGeometry g = Packed(DType::kBFloat16, 32, 24);
  const Tokens key(g.dtype, 32, 24, 5), value(g.dtype, 32, 24, 6);
  Page k1(g, KvRole::kKey), v1(g, KvRole::kValue), k2(g, KvRole::kKey), v2(g, KvRole::kValue);
  WriteKv(MakeWrite(k1, v1, key, value, 0, 32));
  for (int token = 0; token < 32; ++token) {
    WriteArgs args = MakeWrite(k2, v2, key, value, token, 1);
    args.key = static_cast<const uint16_t*>(key.data()) + token * key.token_stride;
    args.value = static_cast<const uint16_t*>(value.data()) + token * value.token_stride;
    WriteKv(args);
  }
  for (size_t i = 0; i < k1.NumElements(); ++i) EXPECT_EQ(k1.Element(i), k2.Element(i));
  for (size_t i = 0; i < v1.NumElements(); ++i) EXPECT_EQ(v1.Element(i), v2.Element(i));
}

TEST(ConvertPageTest, EveryPairOfFormatsRoundTripsBitForBit) {
  // Of the two float8 one: this only moves bytes.
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3}) {
    for (int head_size : kHeadSizes) {
      for (int page_tokens : kPageTokens) {
        const PageGeometry formats[] = {Strided(dtype, page_tokens, head_size), Packed(dtype, page_tokens, head_size)};
        for (const PageGeometry& from : formats) {
          for (const PageGeometry& to : formats) {
            for (KvRole role : kRoles) {
              for (int num_tokens : {0, 1, 15, page_tokens - 1, page_tokens}) {
                SCOPED_TRACE(testing::Message()
                             << DTypeName(dtype) << " head_size " << head_size << " page_tokens " << page_tokens
                             << " tokens " << num_tokens << " from " << static_cast<int>(from.format) << " to "
                             << static_cast<int>(to.format));
                // The source is full and only partly valid.
                Page k(from, KvRole::kKey), v(from, KvRole::kValue);
                const Tokens data(dtype, page_tokens, head_size, head_size + page_tokens);
                WriteKv(MakeWrite(k, v, data, data, 0, page_tokens));
                Page& source = role == KvRole::kKey ? k : v;
                Page there(to, role), back(from, role);
                ConvertPage(role, from, source.address(), to, there.address(), num_tokens);
                ConvertPage(role, to, there.address(), from, back.address(), num_tokens);
                ASSERT_TRUE(there.Intact() && back.Intact());
                for (int head = 0; head < kHeads; ++head) {
                  for (int token = 0; token < num_tokens; ++token) {
                    for (int dim = 0; dim < head_size; ++dim) {
                      ASSERT_EQ(there.At(head, token, dim), data.At(head, token, dim));
                      ASSERT_EQ(back.At(head, token, dim), data.At(head, token, dim));
                    }
                  }
                }
                for (Page* page : {&there, &back}) {
                  const uint32_t rest = page->geometry.format == PageFormat::kPackedV1 ? 0u : Untouched(dtype);
                  EXPECT_EQ(CountOthersUnlike(*page, role, 0, num_tokens, rest), 0);
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST(ConvertPageTest, PageLengthsMayDiffer) {
  const PageGeometry from = Packed(DType::kFloat16, 32, 64);
  const PageGeometry to = Packed(DType::kFloat16, 16, 64);
  const Tokens data(DType::kFloat16, 32, 64, 9);
  Page k(from, KvRole::kKey), v(from, KvRole::kValue), small(to, KvRole::kValue);
  WriteKv(MakeWrite(k, v, data, data, 0, 32));
  ConvertPage(KvRole::kValue, from, v.address(), to, small.address(), 16);
  ASSERT_TRUE(small.Intact());
  for (int token = 0; token < 16; ++token) {
    for (int dim = 0; dim < 64; ++dim) EXPECT_EQ(small.At(1, token, dim), data.At(1, token, dim));
  }
}

}  // namespace
}  // namespace hybridgen
