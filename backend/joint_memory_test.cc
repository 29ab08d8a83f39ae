// Tests of the joint's memory: layout, and which transitions of the answer words are possible.
#include "backend/joint_memory.h"

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace hybridgen {
namespace {

std::unique_ptr<JointMemory> Memory(const JointCallBytes& bytes = {40, 20, 4}) {
  return *JointMemory::Create(bytes, AllocatePlainJointMemory);
}

TEST(JointMemoryTest, SizesAndAllocatorsAreChecked) {
  for (const JointCallBytes& bytes : {JointCallBytes{0, 4, 4}, {4, -1, 4}, {4, 4, int64_t{1} << 41}}) {
    EXPECT_EQ(JointMemory::Create(bytes, AllocatePlainJointMemory).status().code(), absl::StatusCode::kInvalidArgument);
  }
  const JointAllocator none = [](size_t) { return absl::ResourceExhaustedError("no"); };
  EXPECT_EQ(JointMemory::Create({4, 4, 4}, none).status().code(), absl::StatusCode::kResourceExhausted);
  alignas(kJointLine) static char odd[4096];
  const JointAllocator misaligned = [](size_t) { return std::shared_ptr<void>(odd + 8, [](void*) {}); };
  EXPECT_EQ(JointMemory::Create({4, 4, 4}, misaligned).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(JointMemoryTest, PartsLieOnLinesOfTheirOwn) {
  size_t allocated = 0;
  char* base = nullptr;
  const JointCallBytes bytes{kJointLine + 1, 4, kJointLine};
  std::unique_ptr<JointMemory> memory = *JointMemory::Create(bytes, [&](size_t size) {
    auto region = *AllocatePlainJointMemory(size);
    allocated = size;
    base = static_cast<char*>(region.get());
    return absl::StatusOr<std::shared_ptr<void>>(region);
  });
  std::vector<std::pair<const void*, int64_t>> parts = {{memory->table().control, sizeof(JointControl)},
                                                        {&memory->plan(0), sizeof(JointPlan)},
                                                        {&memory->plan(1), sizeof(JointPlan)},
                                                        {&memory->idle_plan(), sizeof(JointPlan)}};
  for (uint64_t sequence : {2, 3}) {
    parts.push_back({memory->Query(sequence), bytes.query});
    parts.push_back({memory->PartialO(sequence), bytes.o});
    parts.push_back({memory->PartialLse(sequence), bytes.lse});
  }
  std::vector<int> owner(allocated / kJointLine, -1);
  for (size_t p = 0; p < parts.size(); ++p) {
    const size_t begin = static_cast<const char*>(parts[p].first) - base;
    ASSERT_EQ(begin % kJointLine, 0u) << p;
    ASSERT_LE(begin + parts[p].second, allocated) << p;
    for (size_t line = begin / kJointLine; line <= (begin + parts[p].second - 1) / kJointLine; ++line) {
      EXPECT_EQ(owner[line], -1) << "parts " << p << " and " << owner[line];
      owner[line] = static_cast<int>(p);
    }
  }
  EXPECT_EQ(memory->Query(4), memory->Query(2));
  EXPECT_EQ(&memory->plan(2), &memory->plan(0));
  EXPECT_EQ(memory->idle_plan().first_sequence, kJointIdle);
}

TEST(JointMemoryTest, AnswersComeInOrderAndOnce) {
  std::unique_ptr<JointMemory> memory = Memory();
  EXPECT_EQ(memory->Published(), kJointFirstSequence - 1);
  EXPECT_EQ(memory->Answered(), kJointFirstSequence - 1);
  for (uint64_t s = kJointFirstSequence; s < 20; ++s) {
    EXPECT_FALSE(memory->Answer(s + 2)) << "its slot still waits for call s";
    EXPECT_TRUE(memory->Answer(s));
    EXPECT_FALSE(memory->Answer(s));
    EXPECT_EQ(memory->Answered(), s);
    EXPECT_EQ(memory->table().control->answer[s & 1].value, JointWord(JointState::kAnswered, s));
  }
}

TEST(JointMemoryTest, RetiredSlotsTakeNoAnswer) {
  std::unique_ptr<JointMemory> memory = Memory();
  ASSERT_TRUE(memory->Answer(2));
  EXPECT_FALSE(memory->Retire(2)) << "answered";
  ASSERT_TRUE(memory->Retire(3));
  EXPECT_FALSE(memory->Retire(3));
  for (uint64_t s = 2; s < 10; ++s) EXPECT_FALSE(memory->Answer(s));
  for (const JointFlag& flag : memory->table().control->answer) {
    EXPECT_EQ(flag.value, JointWord(JointState::kError, 3));
  }
}

}  // namespace
}  // namespace hybridgen
