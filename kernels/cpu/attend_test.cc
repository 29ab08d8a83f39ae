// The attention kernels of every ISA level that this CPU has, against the oracle.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"

namespace hybridgen {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr PageFormat kFormats[] = {PageFormat::kStrided, PageFormat::kPackedV1};

class AttendTest : public testing::TestWithParam<KernelSet> {
 protected:
  const KernelSet& kernels() const { return GetParam(); }

  // Calls f(case) for every dtype and format.
  template <typename F>
  void ForEachStorage(F f) {
    for (DType dtype : kDTypes) {
      for (PageFormat format : kFormats) {
        AttendCase c;
        c.dtype = c.output = dtype;
        c.format = format;
        f(c);
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Isa, AttendTest, testing::ValuesIn(RunnableKernelSets()),
                         [](const auto& info) { return std::string(info.param.name); });
INSTANTIATE_TEST_SUITE_P(Emulated, AttendTest, testing::ValuesIn(EmulatedKernelSets()),
                         [](const auto& info) { return std::string(info.param.name); });

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
      c.output = output;
      c.head_size = 40;
      CheckCase(kernels(), c);
    }
  });
}

}  // namespace
}  // namespace hybridgen
