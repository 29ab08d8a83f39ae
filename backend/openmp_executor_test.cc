// Tests of the OpenMP executor; this binary links no OpenMP, as the library does not, and loads the runtime itself.
#include "backend/openmp_executor.h"

#include <dlfcn.h>

#include <atomic>
#include <vector>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

TEST(OpenMpExecutorTest, RefusedByNameUntilARuntimeIsLoadedThenRunsEveryItem) {
  const absl::StatusOr<std::unique_ptr<Executor>> none = CreateOpenMpExecutor(2);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kUnavailable) << none.status();

  ASSERT_NE(dlopen("libgomp.so.1", RTLD_NOW | RTLD_LOCAL), nullptr) << dlerror();
  absl::StatusOr<std::unique_ptr<Executor>> executor = CreateOpenMpExecutor(3);
  ASSERT_TRUE(executor.ok()) << executor.status();
  EXPECT_EQ((*executor)->num_workers(), 3);
  EXPECT_NE(std::string((*executor)->description()).find("libgomp"), std::string::npos);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::atomic<int>> seen(100);
    std::vector<std::atomic<int>> workers(3);
    ASSERT_TRUE((*executor)->Run([&](int worker) { ++workers[worker]; }).ok());
    for (const auto& calls : workers) EXPECT_LE(calls, 1);
    ASSERT_TRUE(ParallelFor(**executor, 100, [&](int, int64_t i) { ++seen[i]; }).ok());
    for (const auto& calls : seen) EXPECT_EQ(calls, 1);
  }
  EXPECT_GE((*CreateOpenMpExecutor(0))->num_workers(), 1);
}

}  // namespace
}  // namespace hybridgen
