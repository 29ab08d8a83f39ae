// The prefill kernel, run on the host, against the double-precision oracle.
#include <vector>

#include "gtest/gtest.h"
#include "tests/simt/device_case.h"

namespace hybridgen::simt {
namespace {

constexpr int kHeadSizes[] = {64, 96, 128, 256};
constexpr int kGroups[] = {1, 4, 8};
constexpr int kPageTokens[] = {16, 32, 128};
constexpr int kNumTokens[] = {1, 15, 16, 17, 33, 65};  // round the rows of a warp and of a block
constexpr int kBefore[] = {0, 1, 40, 70};              // tokens before the chunk
constexpr int kWindows[] = {0, 1, 17, 50};
constexpr Layout kLayouts[] = {Layout::kHeadMajor, Layout::kTokenMajor, Layout::kApart};

TEST(PrefillTest, PairwiseCoverOfAllParameters) {
  const uint32_t seed = TestSeed("//tests/simt:prefill_test", 1);
  const auto rows = PairwiseCover({6, 4, 3, 3, 6, 4, 4, 2, 3, 8, 2, 2, 2}, seed);
#ifdef HYBRIDGEN_SANITIZER
  constexpr size_t kStep = 3;  // every third case: a sanitizer looks for other things than a wrong sum
#else
  constexpr size_t kStep = 1;
#endif
  for (size_t i = 0; i < rows.size(); i += kStep) {
    const std::vector<int>& row = rows[i];
    DeviceCase c;
    c.kernel = DeviceCase::Kernel::kPrefill;
    c.attend.kv_heads = 1;
    SetTypes(c.attend, kDevicePairs[row[0]]);
    c.attend.head_size = kHeadSizes[row[1]];
    c.attend.group = kGroups[row[2]];
    c.attend.page_tokens = kPageTokens[row[3]];
    c.attend.num_tokens = kNumTokens[row[4]];
    c.attend.length = kBefore[row[5]] + c.attend.num_tokens;
    c.attend.window = kWindows[row[6]];
    c.splits = 1 + row[7];
    c.layout = kLayouts[row[8]];
    c.attend.soft_cap = row[9] & 1 ? 1.5f : 0.0f;
    c.attend.alibi = row[9] & 2;
    c.attend.sinks = row[9] & 4;
    c.attend.mask = row[10] == 0 ? OracleInput::Mask::kCausal : OracleInput::Mask::kNone;
    c.sequences = 1 + row[11];
    c.pages = row[12] == 0 ? DeviceCase::Pages::kDevice : DeviceCase::Pages::kStreamed;
    c.attend.seed = seed + static_cast<uint32_t>(i);
    CheckAttend(c);
    if (HasFatalFailure() || HasFailure()) return;
  }
  std::printf("%zu cases, every %zu. run\n", rows.size(), kStep);
}

}  // namespace
}  // namespace hybridgen::simt
