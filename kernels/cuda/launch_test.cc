// The launchers as linked for a GPU: they refuse by name before they touch CUDA, and a machine without a driver gets an
// error, not a crash.
#include "kernels/cuda/launch.h"

#include "gtest/gtest.h"

namespace hybridgen::cuda {
namespace {

AttendParams Attend() {
  AttendParams p;
  p.dtype = p.geometry.dtype = DType::kBFloat16;
  p.geometry.page_tokens = 16;
  p.geometry.kv_heads = 1;
  p.geometry.head_size = 128;
  p.query_heads = 4;
  p.num_items = 1;
  p.max_item_tokens = 1;
  return p;
}

TEST(LaunchTest, RefusesBeforeCudaIsAsked) {
  AttendParams p = Attend();
  p.geometry.head_size = 80;
  EXPECT_EQ(LaunchDecode(p, nullptr), LaunchStatus::kUnsupportedHeadSize);
  RepackParams repack;
  repack.geometry = Attend().geometry;
  repack.geometry.page_tokens = 8;
  EXPECT_EQ(LaunchPackPages(repack, nullptr), LaunchStatus::kUnsupportedPage);
  EXPECT_EQ(LaunchUnpackPages(repack, nullptr), LaunchStatus::kUnsupportedPage);
  WriteKvParams write;
  EXPECT_EQ(LaunchWriteKv(write, nullptr), LaunchStatus::kUnsupportedDType);
  MergeParams merge;
  EXPECT_EQ(LaunchMerge(merge, nullptr), LaunchStatus::kUnsupportedHeadSize);
}

TEST(LaunchTest, NothingToDoIsFine) {
  AttendParams p = Attend();
  p.num_items = 0;
  EXPECT_EQ(LaunchDecode(p, nullptr), LaunchStatus::kOk);
}

TEST(LaunchTest, WithoutADriverTheRuntimeSaysSo) {
  const LaunchStatus loaded = LoadKernels();
  if (loaded == LaunchStatus::kOk) GTEST_SKIP() << "there is a GPU here; tests of the machine without one need none";
  EXPECT_EQ(loaded, LaunchStatus::kDriver);
  EXPECT_EQ(LaunchDecode(Attend(), nullptr), LaunchStatus::kDriver);
}

}  // namespace
}  // namespace hybridgen::cuda
