// What the attention contract says beyond plain cases: splits, mixed formats, odd ranges, non-finite numbers, equal
// bits on repetition, agreement of ISA levels, and random cases.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/testing/kernel_set_test.h"

namespace hybridgen {
namespace {

class AttendContractTest : public KernelSetTest {};

INSTANTIATE_TEST_SUITE_P(Isa, AttendContractTest, testing::ValuesIn(RunnableKernelSets()), KernelSetName);
INSTANTIATE_TEST_SUITE_P(Emulated, AttendContractTest, testing::ValuesIn(EmulatedKernelSets()), KernelSetName);

std::vector<KvPage> Slice(const std::vector<KvPage>& pages, size_t begin, size_t end) {
  return {pages.begin() + begin, pages.begin() + end};
}

// Every cut of the page list, the ends included: one side of the split is then empty.
TEST_P(AttendContractTest, TwoPartialsMergeToTheWhole) {
  for (PageFormat format : kExactFormats) {
    AttendCase c;
    c.format = format;
    c.kv_heads = 1;
    c.group = 2;
    c.num_tokens = 3;
    c.length = 100;
    c.window = 60;
    c.sinks = true;
    AttendData data(c);
    const float* sinks = data.oracle(0).sinks.data();
    for (size_t cut = 0; cut <= data.pages().size(); ++cut) {
      SCOPED_TRACE(absl::StrCat("cut after page ", cut));
      const AttendResult a = RunSteps(kernels(), {{&data, Slice(data.pages(), 0, cut)}}, 0, sinks, DType::kFloat32);
      const AttendResult b =
          RunSteps(kernels(), {{&data, Slice(data.pages(), cut, data.pages().size())}}, 0, nullptr, DType::kFloat32);
      AttendResult merged;
      merged.o.resize(a.o.size());
      for (size_t row = 0; row < a.lse.size(); ++row) {
        const float* o[] = {&a.o[row * c.head_size], &b.o[row * c.head_size]};
        const float lse[] = {a.lse[row], b.lse[row]};
        merged.lse.push_back(
            kernels().merge_rows(o, lse, 2, c.head_size, &merged.o[row * c.head_size], DType::kFloat32));
      }
      ExpectMatchesOracle(data, 0, merged, 2);
    }
  }
}

// The same sequence, first pages in one format and the rest in the other, folded into one state.
TEST_P(AttendContractTest, PageListsOfTwoFormatsContinueOneState) {
  for (DType kv : kKvDTypes) {
    AttendCase c;
    c.SetStorage(kv);
    c.output = c.dtype;
    c.group = 5;
    c.num_tokens = 2;
    c.length = 150;
    AttendData strided(c), packed(c);
    strided.BuildPages(PageFormat::kStrided);
    packed.BuildPages(PageFormat::kPackedV1);
    const size_t pages = strided.pages().size();
    for (size_t cut = 0; cut <= pages; ++cut) {
      for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
        const std::vector<AttendStep> steps = {{&strided, Slice(strided.pages(), 0, cut)},
                                               {&packed, Slice(packed.pages(), cut, pages)}};
        ExpectMatchesOracle(strided, kv_head, RunSteps(kernels(), steps, kv_head, nullptr, c.dtype), 2);
      }
    }
  }
}

// The pages hold other data until write_kv has replaced all of it, a few tokens at a time.
TEST_P(AttendContractTest, ReadsWhatWriteKvWrote) {
  for (DType kv : kKvDTypes) {
    for (PageFormat format : kExactFormats) {
      AttendCase c;
      c.SetStorage(kv);
      c.format = format;
      c.group = 2;
      c.head_size = 40;
      c.length = 75;
      c.page_tokens = 32;
      AttendData data(c);
      const int64_t head_stride = c.head_size + 1;
      const int64_t token_stride = c.kv_heads * head_stride;
      for (const KvPage& page : data.pages()) {
        for (int offset = 0; offset < page.num_tokens;) {
          const int count = std::min(1 + offset % 5, page.num_tokens - offset);
          WriteArgs args;
          args.geometry = data.geometry();
          args.dtype = c.dtype;
          if (IsFloat8(kv)) {
            args.k_scale = 0.3f;
            args.v_scale = 1.7f;
          }
          std::vector<uint8_t> key(count * token_stride * DTypeSize(c.dtype)), value(key.size());
          for (int t = 0; t < count; ++t) {
            for (int head = 0; head < c.kv_heads; ++head) {
              for (int dim = 0; dim < c.head_size; ++dim) {
                const int position = page.first_position + offset + t;
                float& k = data.key(position, head, dim);
                float& v = data.value(position, head, dim);
                const float new_k = RoundTo(c.dtype, -0.5f * k);
                const float new_v = RoundTo(c.dtype, 2.0f * v);
                WriteElement(c.dtype, key.data(), t * token_stride + head * head_stride + dim, new_k);
                WriteElement(c.dtype, value.data(), t * token_stride + head * head_stride + dim, new_v);
                k = RoundTo(kv, new_k / args.k_scale);
                v = RoundTo(kv, new_v / args.v_scale);
              }
            }
          }
          args.k_page = page.k;
          args.v_page = page.v;
          args.offset = offset;
          args.num_tokens = count;
          args.key = key.data();
          args.value = value.data();
          args.key_token_stride = args.value_token_stride = token_stride;
          args.key_head_stride = args.value_head_stride = head_stride;
          kernels().write_kv(args);
          offset += count;
        }
      }
      for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
        ExpectMatchesOracle(data, kv_head, RunCase(kernels(), data, kv_head));
      }
    }
  }
}

// Ranges that no causal mask gives: disjoint, empty, beyond the sequence, the largest integers; token order reversed.
TEST_P(AttendContractTest, EveryTokenHasItsOwnRange) {
  for (PageFormat format : kExactFormats) {
    AttendCase c;
    c.format = format;
    c.group = 3;
    c.num_tokens = 8;
    c.length = 200;
    AttendData data(c);
    constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
    constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
    for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
      data.oracle(kv_head).kv_begin = {190, 0, 70, 70, 5, 33, 96, 17};
      data.oracle(kv_head).kv_end = {200, 3, 70, 20, 18, 34, 128, 32};
    }
    data.BuildPages(format);  // the pages that nobody sees now fault
    for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
      const AttendResult result = RunCase(kernels(), data, kv_head);
      ExpectMatchesOracle(data, kv_head, result);
      EXPECT_EQ(result.lse[2 * c.group], -kInf) << "token 2 sees nothing";
    }
    // What lies beyond the sequence does not exist; the oracle is told the clamped ranges.
    OracleInput& in = data.oracle(0);
    in.kv_begin = {0, 0, 0, 0, 0, 0, 0, 150};
    in.kv_end = {200, 200, 200, 200, 200, 200, 200, 200};
    data.BuildPages(format);
    const std::vector<OracleRow> expected = AttendOracle(in);
    in.kv_begin = {kMin, -1, -100000, 0, kMin, 0, 0, 150};
    in.kv_end = {kMax, 201, 208, kMax, 1000, 200, 256, kMax};
    const AttendResult result = RunCase(kernels(), data, 0);
    for (size_t row = 0; row < expected.size(); ++row) {
      EXPECT_NEAR(result.lse[row], expected[row].lse, LseTolerance(expected[row])) << row;
    }
  }
}

TEST_P(AttendContractTest, AnInfiniteLogitIsAnError) {
  for (PageFormat format : kExactFormats) {
    for (int position : {0, 17, 63, 99}) {
      AttendCase c;
      c.format = format;
      c.group = 3;
      c.num_tokens = 4;
      c.length = 100;
      AttendData data(c);
      for (int head = 0; head < data.heads(); ++head) data.query(2, head, 1) = head == 1 ? 1.0f : 0.5f;
      data.key(position, 0, 1) = kInf;
      for (int token = 0; token < c.num_tokens; ++token) {
        if (token == 2) continue;
        for (int head = 0; head < data.heads(); ++head) data.query(token, head, 1) = -0.5f;  // logit -inf: no error
      }
      data.BuildPages(format);
      const bool seen = position < 99;  // token 2 of 4 stands at position 98
      EXPECT_EQ(RunCase(kernels(), data, 0).status, seen ? KernelResult::kInfiniteLogit : KernelResult::kOk)
          << position;
      EXPECT_EQ(RunCase(kernels(), data, 1).status, KernelResult::kOk) << "the other KV head";
    }
  }
}

TEST_P(AttendContractTest, LogitsOfMinusInfinityWeighNothing) {
  for (PageFormat format : kExactFormats) {
    AttendCase c;
    c.format = format;
    c.kv_heads = 1;
    c.length = 70;
    c.num_tokens = 2;
    AttendData data(c);
    for (int token = 0; token < 2; ++token) data.query(token, 0, 0) = 1.0f;
    // First some, then all of them: the row is then empty, not NaN.
    for (int count : {1, 16, 40, 70}) {
      for (int position = 0; position < count; ++position) data.key(position, 0, 0) = -kInf;
      data.BuildPages(format);
      const AttendResult result = RunCase(kernels(), data, 0);
      ASSERT_EQ(result.status, KernelResult::kOk);
      if (count == 70) {
        for (float lse : result.lse) EXPECT_EQ(lse, -kInf);
        for (float o : result.o) EXPECT_EQ(o, 0.0f);
        continue;
      }
      // The same rows with those positions taken out of sight.
      OracleInput in = data.oracle(0);
      in.kv_begin.assign(2, count);
      const std::vector<OracleRow> expected = AttendOracle(in);
      for (int row = 0; row < 2; ++row) {
        EXPECT_NEAR(result.lse[row], expected[row].lse, LseTolerance(expected[row]));
        for (int dim = 0; dim < c.head_size; ++dim) {
          EXPECT_NEAR(result.o[row * c.head_size + dim], expected[row].o[dim],
                      OutputTolerance(expected[row], DType::kFloat32));
        }
      }
    }
  }
}

// A NaN in K or V reaches the rows that see it and no other, in whatever block of rows they are computed.
TEST_P(AttendContractTest, ANaNStaysWithTheRowsThatSeeIt) {
  for (DType kv : kKvDTypes) {
    for (PageFormat format : kExactFormats) {
      for (int position : {60, 64, 67, 79}) {
        for (bool in_key : {true, false}) {
          AttendCase c;
          c.SetStorage(kv);
          c.format = format;
          c.kv_heads = 1;
          c.group = 3;
          c.num_tokens = 21;
          c.length = 81;
          AttendData data(c);
          (in_key ? data.key(position, 0, 5) : data.value(position, 0, 5)) = kNaN;
          data.BuildPages(format);
          const AttendResult result = RunCase(kernels(), data, 0);
          for (int row = 0; row < 63; ++row) {
            const bool seen = position <= 60 + row / 3;
            for (int dim = 0; dim < c.head_size; ++dim) {
              const bool nan = seen && (in_key || dim == 5);
              ASSERT_EQ(std::isnan(result.o[row * c.head_size + dim]), nan)
                  << "row " << row << " dim " << dim << " NaN at " << position << " " << c.ToString();
            }
            ASSERT_EQ(std::isnan(result.lse[row]), seen && in_key);
          }
        }
      }
    }
  }
}

// A copy of memory that ends where the process may not read on.
class Guarded {
 public:
  Guarded(uint64_t from, size_t bytes) {
    const size_t page = sysconf(_SC_PAGESIZE);
    const size_t whole = (bytes + page - 1) / page * page;
    size_ = whole + page;
    map_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (map_ == MAP_FAILED || mprotect(map_ + whole, page, PROT_NONE) != 0) std::abort();
    begin_ = map_ + whole - bytes;
    std::memcpy(begin_, reinterpret_cast<const void*>(from), bytes);
  }
  ~Guarded() { munmap(map_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  uint64_t address() const { return reinterpret_cast<uint64_t>(begin_); }

 private:
  char* map_;
  char* begin_;
  size_t size_;
};

// Strided tokens that do not exist are not read: another thread may be writing them, or the tensor ends there. Few rows
// (K read as it lies) and many (K transposed).
TEST_P(AttendContractTest, NothingBehindTheLastStridedTokenIsRead) {
  for (DType kv : kKvDTypes) {
    for (int length : {1, 2, 7, 15}) {
      for (int group : {1, 3, 8, 12}) {
        for (int head_size : {8, 16, 24}) {
          AttendCase c;
          c.SetStorage(kv);
          c.format = PageFormat::kStrided;
          c.length = length;
          c.group = group;
          c.head_size = head_size;
          AttendData data(c);
          const PageGeometry& g = data.geometry();
          KvPage page = data.pages()[0];
          const auto bytes = [&](int64_t token_stride, int64_t head_stride) {
            return ((length - 1) * token_stride + (c.kv_heads - 1) * head_stride + head_size) * DTypeSize(kv);
          };
          const Guarded k(page.k, bytes(g.k_token_stride, g.k_head_stride));
          const Guarded v(page.v, bytes(g.v_token_stride, g.v_head_stride));
          page.k = k.address();
          page.v = v.address();
          for (int kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
            ExpectMatchesOracle(data, kv_head,
                                RunSteps(kernels(), {{&data, {page}}}, kv_head, nullptr, DType::kFloat32));
          }
        }
      }
    }
  }
}

TEST_P(AttendContractTest, ExtremeLogitsNeitherOverflowNorVanish) {
  for (float scale : {1e-30f, 1.0f, 1e3f, 1e5f}) {
    AttendCase c;
    c.kv_heads = 1;
    c.length = 90;
    c.scale = scale;
    AttendData data(c);
    const AttendResult result = RunCase(kernels(), data, 0);
    if (scale <= 1.0f) {
      ExpectMatchesOracle(data, 0, result);
      continue;
    }
    // The largest logit takes all the weight; its neighbours are further away than float32 errors reach.
    const OracleRow expected = AttendOracle(data.oracle(0))[0];
    EXPECT_NEAR(result.lse[0], expected.lse, LseTolerance(expected));
    for (float o : result.o) EXPECT_TRUE(std::isfinite(o));
  }
}

TEST_P(AttendContractTest, RepeatedRunsGiveTheSameBits) {
  for (DType kv : kKvDTypes) {
    for (PageFormat format : kExactFormats) {
      AttendCase c;
      c.SetStorage(kv);
      c.format = format;
      c.group = 7;
      c.num_tokens = 9;
      c.length = 333;
      AttendData data(c);
      const AttendResult first = RunCase(kernels(), data, 1);
      for (int i = 0; i < 3; ++i) {
        const AttendResult again = RunCase(kernels(), data, 1);
        EXPECT_TRUE(SameBits(first.o, again.o) && SameBits(first.lse, again.lse));
      }
    }
  }
}

TEST_P(AttendContractTest, AgreesWithThePortableRow) {
  for (DType kv : kKvDTypes) {
    for (PageFormat format : kExactFormats) {
      AttendCase c;
      c.SetStorage(kv);
      c.format = format;
      c.kv_heads = 1;
      c.group = 4;
      c.num_tokens = 5;
      c.length = 200;
      c.soft_cap = 3.0f;
      AttendData data(c);
      const AttendResult mine = RunCase(kernels(), data, 0);
      const AttendResult portable = RunCase(RunnableKernelSets()[0], data, 0);
      const std::vector<OracleRow> rows = AttendOracle(data.oracle(0));
      for (size_t row = 0; row < rows.size(); ++row) {
        EXPECT_NEAR(mine.lse[row], portable.lse[row], 2 * LseTolerance(rows[row]));
        for (int dim = 0; dim < c.head_size; ++dim) {
          const size_t i = row * c.head_size + dim;
          EXPECT_NEAR(mine.o[i], portable.o[i], 2 * OutputTolerance(rows[row], DType::kFloat32));
        }
      }
    }
  }
}

TEST_P(AttendContractTest, RandomCases) {
  const uint32_t seed = TestSeed("//kernels/cpu:attend_contract_test", 20240917);
  std::mt19937 random(seed);
  const auto pick = [&](int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(random); };
  for (int i = 0; i < 200; ++i) {
    AttendCase c;
    c.SetStorage(kKvDTypes[pick(0, 4)]);
    if (c.kv_dtype.has_value()) c.dtype = kDTypes[pick(0, 2)];
    c.output = kDTypes[pick(0, 2)];
    c.format = kExactFormats[pick(0, 1)];
    DrawShape(random, 300, c);
    c.sinks = pick(0, 3) == 0;
    c.seed = random();
    CheckCase(kernels(), c);
    ASSERT_FALSE(HasFailure()) << "case " << i << " of seed " << seed;
  }
}

}  // namespace
}  // namespace hybridgen
