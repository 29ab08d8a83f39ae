// Tests of the packed element offsets against the format as documented.
#include "kernels/page_format.h"

#include <vector>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr int kHeadSizes[] = {8, 16, 24, 64, 72, 112, 128, 256, 512};
constexpr int kHeads = 3;

TEST(PageFormatTest, OffsetsWalkTheDocumentedOrder) {
  for (DType dtype : kDTypes) {
    for (int head_size : kHeadSizes) {
      for (int page_tokens : {16, 32, 128}) {
        const int lane = dtype == DType::kBFloat16 ? 2 : 1;
        const int padded = (head_size + 15) / 16 * 16;
        // K [kv_head][token / 16][dim / lane][16 tokens][lane], dims counted with their padding.
        size_t expected = 0;
        for (int head = 0; head < kHeads; ++head) {
          for (int group = 0; group < page_tokens / 16; ++group) {
            for (int d = 0; d < padded / lane; ++d) {
              for (int t = 0; t < 16; ++t) {
                for (int l = 0; l < lane; ++l, ++expected) {
                  ASSERT_EQ(PackedKeyOffset(dtype, page_tokens, head_size, head, group * 16 + t, d * lane + l),
                            expected);
                }
              }
            }
          }
        }
        EXPECT_EQ(PackedPageBytes(dtype, kHeads, page_tokens, head_size), expected * DTypeSize(dtype));
        // V [kv_head][dim / 16][token / lane][16 dims][lane].
        expected = 0;
        for (int head = 0; head < kHeads; ++head) {
          for (int block = 0; block < padded / 16; ++block) {
            for (int t = 0; t < page_tokens / lane; ++t) {
              for (int d = 0; d < 16; ++d) {
                for (int l = 0; l < lane; ++l, ++expected) {
                  ASSERT_EQ(PackedValueOffset(dtype, page_tokens, head_size, head, t * lane + l, block * 16 + d),
                            expected);
                }
              }
            }
          }
        }
        EXPECT_EQ(PackedPageBytes(dtype, kHeads, page_tokens, head_size), expected * DTypeSize(dtype));
      }
    }
  }
}

TEST(PageFormatTest, Int8OffsetsWalkTheDocumentedOrder) {
  for (int head_size : kHeadSizes) {
    for (int page_tokens : {16, 32, 128}) {
      const int padded = (head_size + 15) / 16 * 16;
      // K [kv_head][token / 16]{int8 [dim / 4][16 tokens][4 dims], float [16 tokens]}.
      size_t expected = 0;
      for (int head = 0; head < kHeads; ++head) {
        for (int group = 0; group < page_tokens; group += 16) {
          for (int d = 0; d < padded; d += 4) {
            for (int t = 0; t < 16; ++t) {
              for (int i = 0; i < 4; ++i, ++expected) {
                ASSERT_EQ(Int8KeyOffset(page_tokens, head_size, head, group + t, d + i), expected);
              }
            }
          }
          for (int t = 0; t < 16; ++t, expected += 4) {
            ASSERT_EQ(Int8KeyScaleOffset(page_tokens, head_size, head, group + t), expected);
          }
        }
      }
      EXPECT_EQ(Int8PageBytes(kHeads, page_tokens, head_size), expected);
      EXPECT_EQ(expected % (64 * kHeads), 0u) << "heads begin on cache lines";
      // V [kv_head]{int8 [dim / 16][token / 4][16 dims][4 tokens], float [page_tokens]}.
      expected = 0;
      for (int head = 0; head < kHeads; ++head) {
        for (int d = 0; d < padded; d += 16) {
          for (int t = 0; t < page_tokens; t += 4) {
            for (int i = 0; i < 16; ++i) {
              for (int j = 0; j < 4; ++j, ++expected) {
                ASSERT_EQ(Int8ValueOffset(page_tokens, head_size, head, t + j, d + i), expected);
              }
            }
          }
        }
        for (int t = 0; t < page_tokens; ++t, expected += 4) {
          ASSERT_EQ(Int8ValueScaleOffset(page_tokens, head_size, head, t), expected);
        }
      }
      EXPECT_EQ(Int8PageBytes(kHeads, page_tokens, head_size), expected);
    }
  }
}

}  // namespace
}  // namespace hybridgen
