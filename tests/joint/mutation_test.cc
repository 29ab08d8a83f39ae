// The joint with one fence, one flag or one address taken out: each time the random sequences must fail. What they
// prove when they pass is what fails here.
#include <iostream>

#include "gtest/gtest.h"
#include "tests/joint/hybrid_model.h"

namespace hybridgen {
namespace {

// How a mutation must show.
enum class Sign : uint8_t { kWrongToken, kFailedWait, kEither };

struct MutationCase {
  const char* name;
  Mutation mutation;
  Sign sign;
  JointOutcome outcome;  // of a failed wait
};

const MutationCase kMutations[] = {
    {"NoQueryFence", Mutation::kNoQueryFence, Sign::kWrongToken, {}},
    {"PlainSequenceStore", Mutation::kPlainSequenceStore, Sign::kFailedWait, JointOutcome::kDeadline},
    {"RelaxedAnswerLoad", Mutation::kRelaxedAnswerLoad, Sign::kWrongToken, {}},
    {"NoWorkerFence", Mutation::kNoWorkerFence, Sign::kWrongToken, {}},
    {"FrozenPlan", Mutation::kFrozenPlan, Sign::kFailedWait, JointOutcome::kOutOfOrder},
    // Depends on how far the launching thread is ahead.
    {"OnePlanSource", Mutation::kOnePlanSource, Sign::kEither, JointOutcome::kWorkerFailed},
};

bool Shows(const MutationCase& m, const HybridCase& c) {
  HybridOptions options;
  options.mutation = m.mutation;
  // Deadlines are short only where one is the sign, so that a slow machine is none.
  if (m.outcome == JointOutcome::kDeadline) {
    options.worker_timeout = absl::Milliseconds(50);
    options.device_timeout = absl::Milliseconds(100);
  }
  HybridRun run(c, std::move(options));
  run.LaunchAll();
  if (!run.Synchronize()) return m.sign != Sign::kWrongToken && run.last_outcome() == m.outcome;
  return m.sign != Sign::kFailedWait && run.tokens() != OracleTokens(c);
}

class JointMutationTest : public testing::TestWithParam<MutationCase> {};

TEST_P(JointMutationTest, IsFound) {
  const MutationCase& m = GetParam();
  for (uint64_t seed = 1; seed <= 2000; ++seed) {
    HybridCase c = RandomCase(seed);
    c.executor = false;
    if (Shows(m, c)) {
      std::cout << "found with " << c.ToString() << "\n";
      return;
    }
  }
  FAIL() << "not found in 2000 sequences";
}

INSTANTIATE_TEST_SUITE_P(, JointMutationTest, testing::ValuesIn(kMutations),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace hybridgen
