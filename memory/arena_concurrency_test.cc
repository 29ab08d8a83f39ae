// Arenas created and destroyed by several threads at once, against a budget that counts real memory.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/arena.h"
#include "memory/fake_memory_policy.h"
#include "memory/system_files.h"

namespace hybridgen {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// Bytes of this process's anonymous memory, counted by walking its page tables; -1: the kernel does not tell.
int64_t AnonymousBytes() {
  const std::optional<std::string> text = ReadSystemFile("/proc/self/smaps_rollup");
  return text ? ParseKibibytes(*text, "Anonymous:").value_or(-1) : -1;
}

TEST(ArenaConcurrencyTest, FreeMemoryIsNotSpentTwice) {
  const int64_t at_start = AnonymousBytes();
  if (at_start < 0) GTEST_SKIP() << "no /proc/self/smaps_rollup here";
  constexpr int kThreads = 4;
  constexpr int64_t kArena = 32 * kMiB;
  constexpr int64_t kRoom = 2 * kArena + kArena / 2;  // half an arena for whatever else the process allocates
  ArenaOptions options;
  options.budget = [at_start](int) {
    MemoryBudget budget;
    budget.bytes = std::max<int64_t>(0, kRoom - (AnonymousBytes() - at_start));
    budget.limited_by = "this test";
    return budget;
  };
  for (int round = 0; round < 3; ++round) {
    std::vector<absl::StatusOr<std::unique_ptr<Arena>>> arenas(kThreads);
    std::vector<std::thread> threads;
    for (auto& arena : arenas) threads.emplace_back([&] { arena = Arena::Create(kArena, options); });
    for (std::thread& thread : threads) thread.join();
    int created = 0;
    for (const auto& arena : arenas) {
      created += arena.ok();
      EXPECT_TRUE(arena.ok() || absl::IsResourceExhausted(arena.status())) << arena.status();
    }
    EXPECT_EQ(created, 2) << "of arenas of which two fit";
  }
}

TEST(ArenaConcurrencyTest, CreationVerificationRepairAndDestructionTogether) {
  FakeMemoryPolicy calls;
  ArenaOptions options;
  options.node = 0;
  options.calls = &calls;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&calls, options, t]() mutable {
      options.name = absl::StrCat("arena ", t);
      for (int i = 0; i < 5; ++i) {
        const auto arena = Arena::Create(4 * kMiB, options);
        ASSERT_TRUE(arena.ok()) << arena.status();
        calls.Place((*arena)->data(), 1);
        EXPECT_EQ((*arena)->VerifyPlacement(0)->pages_elsewhere, 1);
        EXPECT_EQ((*arena)->Repair()->repaired, 1);
        (*arena)->data()[i] = std::byte{1};
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace hybridgen
