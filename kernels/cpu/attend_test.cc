// The attention kernels of every ISA level that this CPU has, against the oracle.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/testing/kernel_set_test.h"

namespace hybridgen {
namespace {

constexpr PageFormat kFormats[] = {PageFormat::kStrided, PageFormat::kPackedV1, PageFormat::kPackedInt8V1};

class AttendTest : public KernelSetTest {
 protected:
  // Calls f(case) for every dtype of KV and format.
  template <typename F>
  void ForEachStorage(F f) {
    for (DType kv : kKvDTypes) {
      for (PageFormat format : kFormats) {
        if (format == PageFormat::kPackedInt8V1 && IsFloat8(kv)) continue;  // no such pages
        AttendCase c;
        c.SetStorage(kv);
        c.output = c.dtype;
        c.format = format;
        f(c);
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Isa, AttendTest, testing::ValuesIn(RunnableKernelSets()), KernelSetName);
INSTANTIATE_TEST_SUITE_P(Emulated, AttendTest, testing::ValuesIn(EmulatedKernelSets()), KernelSetName);

TEST_P(AttendTest, LengthsRoundPagesVectorsAndChunks) {
  ForEachStorage([&](AttendCase c) {
    for (int page_tokens : {16, 32, 128}) {
      for (int length : {0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 143, 144, 145, 255, 256, 257}) {
        c.page_tokens = page_tokens;
        c.length = length;
        c.seed = length + page_tokens / 16;
        // A query beyond the sequence's end: sees all of it, also when that is nothing.
        c.mask = OracleInput::Mask::kNone;
        c.head_size = 16;
        CheckCase(kernels(), c);
      }
    }
  });
}

TEST_P(AttendTest, EveryHeadSize) {
  ForEachStorage([&](AttendCase c) {
    for (int head_size = 8; head_size <= 512; head_size += head_size < 256 ? 8 : 256) {
      c.head_size = head_size;
      c.length = 37;
      c.group = 1 + head_size / 8 % 3;
      c.seed = head_size / 8;
      CheckCase(kernels(), c);
    }
  });
}

TEST_P(AttendTest, EveryGroupSize) {
  ForEachStorage([&](AttendCase c) {
    for (int group = 1; group <= 16; ++group) {
      c.group = group;
      c.seed = group;
      c.length = 70;
      CheckCase(kernels(), c);
    }
  });
}

TEST_P(AttendTest, TilesWithCausalAndWindowEdges) {
  ForEachStorage([&](AttendCase c) {
    for (const auto& [num_tokens, group] : {std::pair{2, 1}, {5, 3}, {16, 4}, {21, 3}, {64, 1}}) {
      for (int window : {0, 1, 5, 16, 17, 100}) {
        for (int length : {num_tokens, num_tokens + 30, 200}) {
          c.num_tokens = num_tokens;
          c.group = group;
          c.window = window;
          c.length = length;
          c.kv_heads = 1;
          c.head_size = 24;
          c.seed = length + window;
          c.page_tokens = window % 2 == 0 ? 16 : 32;
          CheckCase(kernels(), c);
        }
      }
    }
  });
}

TEST_P(AttendTest, SoftCapAlibiAndSinks) {
  ForEachStorage([&](AttendCase c) {
    for (int variant = 0; variant < 8; ++variant) {
      c.soft_cap = variant & 1 ? 1.5f : 0.0f;
      c.alibi = variant & 2;
      c.sinks = variant & 4;
      c.num_tokens = 3;
      c.group = 2;
      c.window = 50;
      c.length = 150;
      c.scale = 1.0f;
      c.seed = variant;
      CheckCase(kernels(), c);
    }
  });
}

TEST_P(AttendTest, OutputOfEveryType) {
  ForEachStorage([&](AttendCase c) {
    for (DType output : kDTypes) {
      for (DType query : kDTypes) {
        if (!c.kv_dtype.has_value() && query != c.dtype) continue;
        AttendCase mixed = c;
        mixed.dtype = query;
        mixed.output = output;
        mixed.head_size = 40;
        CheckCase(kernels(), mixed);
      }
    }
  });
}

// All 256 codes, subnormals, NaN and infinities among them: V through one token of weight 1 (an incomplete group) or of
// weight 1/16 beside 15 tokens of zeros (a whole one), K through queries of a single 1.
TEST_P(AttendTest, EveryFloat8CodeIsReadExactly) {
  for (DType kv : {DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    for (PageFormat format : {PageFormat::kStrided, PageFormat::kPackedV1}) {
      for (int length : {1, 16}) {
        for (int group : {1, 2, 8, 16}) {
          AttendCase c;
          c.kv_dtype = kv;
          c.format = format;
          c.length = length;
          c.group = group;
          c.kv_heads = 1;
          c.head_size = 256;
          c.scale = 1.0f;
          SCOPED_TRACE(absl::StrCat(kernels().name, ": ", c.ToString()));
          AttendData data(c);
          const KvPage& page = data.pages()[0];
          uint8_t* k = reinterpret_cast<uint8_t*>(page.k);
          uint8_t* v = reinterpret_cast<uint8_t*>(page.v);
          const bool packed = format == PageFormat::kPackedV1;
          const PageGeometry& g = data.geometry();
          const auto at = [&](int token, int dim) {
            return packed ? PackedValueOffset(kv, 16, 256, 0, token, dim) : token * g.v_token_stride + dim;
          };
          for (int token = 0; token < length; ++token) {
            for (int dim = 0; dim < 256; ++dim) {
              k[packed ? PackedKeyOffset(kv, 16, 256, 0, token, dim) : token * g.k_token_stride + dim] = 0;
              v[at(token, dim)] = token == 0 ? static_cast<uint8_t>(dim) : 0;
            }
          }
          AttendResult result = RunCase(kernels(), data, 0);
          for (int i = 0; i < group * 256; ++i) {
            const uint8_t code = static_cast<uint8_t>(i % 256);
            const float expected = ReadElement(kv, &code, 0) / static_cast<float>(length);
            ASSERT_TRUE(std::isnan(expected) ? std::isnan(result.o[i]) : result.o[i] == expected)
                << "code " << i % 256 << ": " << result.o[i] << " instead of " << expected;
          }
          // Code c in dim c of every token, the finite ones: a row with its 1 there has that logit for all of them.
          const uint8_t largest = kv == DType::kFloat8E4M3 ? 0x7e : 0x7b;
          for (int token = 0; token < length; ++token) {
            for (int dim = 0; dim < 256; ++dim) {
              k[packed ? PackedKeyOffset(kv, 16, 256, 0, token, dim) : token * g.k_token_stride + dim] =
                  (dim & 0x7f) > largest ? 0 : static_cast<uint8_t>(dim);
              v[at(token, dim)] = 0;
            }
          }
          QueryTile tile = data.Tile(0);
          for (int first = 0; first < 256; first += group) {
            std::vector<float> q(group * 256), max(group), sum(group), acc(group * 256);
            for (int row = 0; row < group; ++row) q[row * 256 + first + row] = 1.0f;
            tile.q = q.data();
            const RowState state = {max.data(), sum.data(), acc.data()};
            std::vector<uint8_t> scratch(AttendScratchBytes(256));
            kernels().init_rows(tile, nullptr, state);
            ASSERT_EQ(kernels().attend(data.geometry())(tile, data.Args(0), state, scratch.data()), KernelResult::kOk);
            for (int row = 0; row < group; ++row) {
              const uint8_t code = (first + row) % 128 > largest ? 0 : static_cast<uint8_t>(first + row);
              ASSERT_EQ(max[row], ReadElement(kv, &code, 0)) << "code " << first + row;
              ASSERT_EQ(sum[row], static_cast<float>(length));
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace hybridgen
