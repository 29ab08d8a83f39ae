// 10,000 random sequences of steps through the joint, on a device and a CPU whose stores show only when the protocol
// makes them: every token equals the oracle's, nothing is lost, nothing hangs.
#include <cstdlib>
#include <iostream>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "backend/pool_executor.h"
#include "gtest/gtest.h"
#include "tests/joint/hybrid_model.h"

namespace hybridgen {
namespace {

uint64_t EnvironmentNumber(const char* name, uint64_t fallback) {
  const char* text = std::getenv(name);
  uint64_t value = fallback;
  if (text != nullptr && !absl::SimpleAtoi(text, &value)) ADD_FAILURE() << name << "=" << text << " is not a number";
  return value;
}

TEST(JointRandomTest, TokensEqualTheOracles) {
#ifdef HYBRIDGEN_SANITIZER
  constexpr uint64_t kSequences = 1000;
#else
  constexpr uint64_t kSequences = 10000;
#endif
  const uint64_t seed = EnvironmentNumber("HYBRIDGEN_TEST_SEED", 1);
  const uint64_t sequences = EnvironmentNumber("HYBRIDGEN_TEST_SEQUENCES", kSequences);
  std::cout << "replay: bazel test //tests/joint:random_test --test_env=HYBRIDGEN_TEST_SEED=" << seed
            << " --test_env=HYBRIDGEN_TEST_SEQUENCES=" << sequences << "\n";

  PoolExecutorOptions pool;
  pool.num_workers = 2;
  std::unique_ptr<Executor> executor = *CreatePoolExecutor(pool);
  int64_t tokens = 0;
  int64_t overlaps = 0;
  for (uint64_t s = seed; s < seed + sequences; ++s) {
    const HybridCase c = RandomCase(s);
    HybridOptions options;
    options.executor = executor.get();
    HybridRun run(c, std::move(options));
    run.LaunchAll();
    const bool good = run.Synchronize();
    const std::string replay =
        absl::StrCat(c.ToString(), "\nreplay: bazel test //tests/joint:random_test --test_env=HYBRIDGEN_TEST_SEED=", s,
                     " --test_env=HYBRIDGEN_TEST_SEQUENCES=1");
    ASSERT_TRUE(good) << run.status() << ", outcome " << static_cast<int>(run.last_outcome()) << "\n" << replay;
    ASSERT_TRUE(run.status().ok()) << run.status() << "\n" << replay;
    ASSERT_EQ(run.tokens(), OracleTokens(c)) << replay;
    tokens += static_cast<int64_t>(run.tokens().size());
    overlaps += run.overlaps();
  }
  std::cout << sequences << " sequences, " << tokens << " steps, " << overlaps << " begun with another in flight\n";
  // The run went where the defects are. (Short replays need not.)
  if (sequences >= 1000) {
    EXPECT_GT(overlaps, 0);
  }
}

}  // namespace
}  // namespace hybridgen
