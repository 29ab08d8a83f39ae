// The kernels of the joint under the executor: what they publish, in which order, and how a wait ends.
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "kernels/cuda/joint.cuh"
#include "kernels/testing/attend_case.h"
#include "kernels/testing/red_zone.h"
#include "tests/simt/executor.h"

namespace hybridgen::simt {
namespace {

constexpr int kRows = 7;  // tokens of a step
constexpr uint64_t kFirst = 10;

// A joint whose slots have red zones, and rows of query, key and value to publish.
class JointKernelsTest : public testing::Test {
 protected:
  JointKernelsTest() : random_(TestSeed("//tests/simt:joint_kernels_test", 1)) {}

  // Query heads, KV heads; the three parts lie behind each other in a slot.
  void Fill(int heads, int kv_heads, int head_size, std::vector<std::vector<int32_t>> tokens) {
    params_.head_size = head_size;
    tokens_ = std::move(tokens);
    uint64_t offset = 0;
    for (int part = 0; part < 3; ++part) {
      const int part_heads = part == 0 ? heads : kv_heads;
      // Rows as an engine has them, with other things between two heads and two tokens.
      const int64_t head_stride = head_size + 8, token_stride = part_heads * head_stride + 16;
      rows_[part].resize(kRows * token_stride);
      for (uint16_t& x : rows_[part]) x = static_cast<uint16_t>(random_());
      params_.parts[part] = {{rows_[part].data(), token_stride, head_stride},
                             tokens_[part].data(),
                             static_cast<int>(tokens_[part].size()),
                             part_heads,
                             offset};
      want_.resize(offset);
      for (const int32_t token : tokens_[part]) {
        for (int head = 0; head < part_heads; ++head) {
          const uint16_t* const row = &rows_[part][token * token_stride + head * head_stride];
          const auto* const bytes = reinterpret_cast<const unsigned char*>(row);
          want_.insert(want_.end(), bytes, bytes + 2 * head_size);
        }
      }
      offset = (want_.size() + 255) / 256 * 256;  // the gaps stay as they were
    }
    slot_bytes_ = (want_.size() + kJointLine - 1) / kJointLine * kJointLine;
    slots_ = std::make_unique<RedZoned<unsigned char>>(2 * slot_bytes_);
    params_.table.control = &control_;
    params_.table.plan = &plan_;
    params_.table.slots = slots_->data();
    params_.table.slot_bytes = slot_bytes_;
    params_.blocks_done = &blocks_done_;
  }

  // Whether a slot holds all that is to be published, and nothing beside it.
  bool Holds(uint64_t sequence) const {
    const unsigned char* const slot = slots_->data() + (sequence & 1) * slot_bytes_;
    size_t at = 0;
    for (int part = 0; part < 3; ++part) {
      const cuda::PublishPart& p = params_.parts[part];
      for (; at < p.offset; ++at) {
        if (slot[at] != 0xff) return false;
      }
      const size_t end = p.offset + static_cast<size_t>(p.num_rows) * p.heads * params_.head_size * 2;
      if (std::memcmp(slot + at, want_.data() + at, end - at) != 0) return false;
      at = end;
    }
    return true;
  }

  absl::Status Publish(uint32_t call) {
    params_.call = call;
    EXPECT_EQ(cuda::Check(params_), cuda::LaunchStatus::kOk);
    cuda::PublishParams p = params_;
    p.num_blocks = cuda::PublishBlocks(p);
    LaunchConfig config;
    config.grid = {p.num_blocks};
    config.threads = cuda::kPublishThreads;
    config.seed = random_();
    config.resident_blocks = 1 + static_cast<int>(random_() % 4);
    config.released = [&](const uint64_t* word, uint64_t value) {
      EXPECT_EQ(word, &control_.published.value);
      EXPECT_TRUE(Holds(value)) << "released before all bytes were there";
      ++releases_;
    };
    return Launch(config, [&] { cuda::PublishKernel(p); });
  }

  absl::Status Await(uint32_t call, int64_t max_switches = int64_t{1} << 40) {
    LaunchConfig config;
    config.seed = random_();
    config.max_switches = max_switches;
    const cuda::AwaitParams p = {params_.table, call};
    return Launch(config, [&] { cuda::AwaitKernel(p); });
  }

  void Answer(uint64_t sequence, JointState state) {
    __atomic_store_n(&control_.answer[sequence & 1].value, JointWord(state, sequence), __ATOMIC_RELEASE);
  }

  void ExpectTrap(const absl::Status& status, uint64_t sequence) {
    EXPECT_TRUE(absl::StrContains(status.message(), "the joint has no answer")) << status;
    EXPECT_EQ(control_.device_failure.value, JointWord(JointState::kError, sequence));
  }

  std::mt19937_64 random_;
  JointControl control_ = {};
  JointPlan plan_ = {kFirst, 10'000, 0};
  uint32_t blocks_done_ = 0;
  cuda::PublishParams params_;
  std::vector<std::vector<int32_t>> tokens_;
  std::vector<uint16_t> rows_[3];
  std::vector<unsigned char> want_;
  size_t slot_bytes_ = 0;
  std::unique_ptr<RedZoned<unsigned char>> slots_;
  int releases_ = 0;
};

TEST_F(JointKernelsTest, PublishesEveryRowBeforeTheSequence) {
  struct Shape {
    int heads, kv_heads, head_size;
    std::vector<std::vector<int32_t>> tokens;
  };
  const std::vector<Shape> shapes = {
      {1, 1, 8, {{0}, {}, {}}},                                         // one unit of 16 bytes
      {4, 2, 64, {{6, 0, 3}, {1}, {1}}},                                // less than a warp's width
      {3, 1, 264, {{2}, {5, 4}, {5, 4}}},                               // units that a warp needs two rounds for
      {16, 2, 96, {{6, 5, 4, 3, 2, 1, 0}, {0, 6}, {0, 6}}},             // as many blocks as there may be
      {64, 8, 128, {{0, 0, 1, 2, 3, 4, 5, 6}, {3}, {3}}},               // more rows than warps
      {2, 1, 128, {{}, {0, 1, 2, 3, 4, 5, 6}, {6, 5, 4, 3, 2, 1, 0}}},  // K/V alone
  };
  for (const Shape& shape : shapes) {
    for (int order = 0; order < 8; ++order) {
      Fill(shape.heads, shape.kv_heads, shape.head_size, shape.tokens);
      SCOPED_TRACE(testing::Message() << shape.heads << " heads of " << shape.head_size << ", order " << order);
      plan_ = {kFirst, 10'000, 0};
      control_ = {};
      want_.resize(slot_bytes_);
      for (uint32_t call = 0; call < 2; ++call) {
        ASSERT_EQ(Publish(call), absl::OkStatus());
        EXPECT_EQ(control_.published.value, kFirst + call);
        EXPECT_EQ(blocks_done_, 0u) << "the counter is not as it was";
        EXPECT_TRUE(Holds(kFirst + call));
        EXPECT_EQ(plan_.runs, 1u);
      }
      EXPECT_TRUE(slots_->Intact());
      ASSERT_FALSE(HasFailure());
    }
  }
  EXPECT_EQ(releases_, static_cast<int>(shapes.size()) * 8 * 2);
}

TEST_F(JointKernelsTest, AnIdlePlanPublishesNothingAndWaitsForNothing) {
  Fill(2, 1, 64, {{1, 2}, {3}, {3}});
  plan_.first_sequence = kJointIdle;
  EXPECT_EQ(Publish(0), absl::OkStatus());
  EXPECT_EQ(Await(0, 100), absl::OkStatus());
  EXPECT_EQ(releases_, 0);
  EXPECT_EQ(control_.device_failure.value, 0u);
  for (size_t i = 0; i < 2 * slot_bytes_; ++i) ASSERT_EQ((*slots_)[i], 0xff) << i;
}

TEST_F(JointKernelsTest, APlanThatRanBeforeIsNotPublishedAndTheWaitTraps) {
  Fill(2, 1, 64, {{1, 2}, {3}, {3}});
  plan_.runs = 1;
  EXPECT_EQ(Publish(0), absl::OkStatus());
  EXPECT_EQ(releases_, 0);
  EXPECT_EQ(control_.published.value, 0u);
  Answer(kFirst, JointState::kAnswered);  // of the run before
  ExpectTrap(Await(0), kFirst);
}

TEST_F(JointKernelsTest, TheWaitSeesAnAnswerThatIsThere) {
  Fill(2, 1, 64, {{1, 2}, {3}, {3}});
  ASSERT_EQ(Publish(0), absl::OkStatus());
  Answer(kFirst, JointState::kAnswered);
  EXPECT_EQ(Await(0, 100), absl::OkStatus());
  EXPECT_EQ(control_.device_failure.value, 0u);
}

TEST_F(JointKernelsTest, TheWaitSeesAnAnswerThatComes) {
  Fill(2, 1, 64, {{1, 2}, {3}, {3}});
  plan_.wait_timeout_ns = UINT64_MAX / 2;
  for (uint32_t call = 0; call < 3; ++call) {
    ASSERT_EQ(Publish(call), absl::OkStatus());
    const uint64_t sequence = kFirst + call;
    std::atomic<bool> answered{false};
    std::thread worker([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      answered = true;
      Answer(sequence, JointState::kAnswered);
    });
    EXPECT_EQ(Await(call), absl::OkStatus());
    EXPECT_TRUE(answered) << "the wait ended before the answer";
    worker.join();
  }
  EXPECT_EQ(control_.device_failure.value, 0u);
}

TEST_F(JointKernelsTest, TheWaitTrapsAtItsDeadlineAndNotBefore) {
  Fill(2, 1, 64, {{1, 2}, {3}, {3}});
  ASSERT_EQ(Publish(0), absl::OkStatus());
  Answer(kFirst - 2, JointState::kAnswered);  // the slot's last call
  // A poll takes kPollNanoseconds and a few switches of the clock, so 10 us are over within 1000 switches.
  ExpectTrap(Await(0, 1000), kFirst);

  control_.device_failure.value = 0;
  plan_.wait_timeout_ns = 1'000'000'000;
  const absl::Status status = Await(0, 1000);
  EXPECT_TRUE(absl::StrContains(status.message(), "no end")) << status;
  EXPECT_EQ(control_.device_failure.value, 0u);
}

TEST_F(JointKernelsTest, TheWaitTrapsAtOnceWhenTheHostSaysSo) {
  Fill(2, 1, 64, {{1, 2}, {3}, {3}});
  plan_.wait_timeout_ns = UINT64_MAX / 2;
  ASSERT_EQ(Publish(0), absl::OkStatus());
  Answer(kFirst, JointState::kError);
  ExpectTrap(Await(0, 100), kFirst);
}

TEST_F(JointKernelsTest, TheWaitTrapsWhenTheSlotHoldsALaterCall) {
  Fill(2, 1, 64, {{1, 2}, {3}, {3}});
  plan_.wait_timeout_ns = UINT64_MAX / 2;
  ASSERT_EQ(Publish(0), absl::OkStatus());
  Answer(kFirst + 2, JointState::kAnswered);
  ExpectTrap(Await(0, 100), kFirst);
}

}  // namespace
}  // namespace hybridgen::simt
