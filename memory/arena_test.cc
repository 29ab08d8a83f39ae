// Tests of arenas on this machine's real memory, with replaced budgets.
#include "memory/arena.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/topology.h"

namespace hybridgen {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

ArenaOptions Options() {
  ArenaOptions options;
  options.name = "test tier";
  return options;
}

// Pages of [data, data + bytes) that have memory; -1 if part of the range is not mapped.
int64_t ResidentPages(const void* data, int64_t bytes) {
  std::vector<unsigned char> resident(bytes / sysconf(_SC_PAGESIZE));
  if (mincore(const_cast<void*>(data), bytes, resident.data()) != 0) return -1;
  int64_t count = 0;
  for (const unsigned char page : resident) count += page & 1;
  return count;
}

TEST(ArenaTest, ReservesInFullAlignedAndZeroed) {
  const auto arena = Arena::Create(3 * kHugePage - 5, Options()).value();
  EXPECT_EQ(arena->bytes(), 3 * kHugePage);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(arena->data()) % kHugePage, 0u);
  EXPECT_EQ(ResidentPages(arena->data(), arena->bytes()), arena->bytes() / sysconf(_SC_PAGESIZE));
  EXPECT_EQ(arena->node(), -1);
  EXPECT_EQ(arena->binding(), NodeBinding::kNone);
  for (const int64_t at : {int64_t{0}, kHugePage - 1, kHugePage, arena->bytes() - 1}) {
    EXPECT_EQ(arena->data()[at], std::byte{0});
    arena->data()[at] = std::byte{0x5a};
    EXPECT_EQ(arena->data()[at], std::byte{0x5a});
  }
}

TEST(ArenaTest, DestructionUnmaps) {
  auto arena = Arena::Create(1, Options()).value();
  const std::byte* const data = arena->data();
  EXPECT_EQ(arena->bytes(), kHugePage);
  arena.reset();
  EXPECT_EQ(ResidentPages(data, kHugePage), -1);
}

TEST(ArenaTest, SizesOutOfRangeAreRefused) {
  for (const int64_t bytes : {int64_t{0}, int64_t{-1}, int64_t{1} << 62}) {
    const absl::Status status = Arena::Create(bytes, Options()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(std::string(status.message()).find("test tier"), std::string::npos);
  }
}

TEST(ArenaTest, MoreThanTheBudgetIsRefusedBeforeAnyPageIsTouched) {
  ArenaOptions options = Options();
  options.node = 0;
  int asked = 0;
  options.budget = [&asked](int node) {
    EXPECT_EQ(node, 0);
    ++asked;
    return MemoryBudget{kHugePage, "node 0"};
  };
  const absl::Status status = Arena::Create(2 * kHugePage, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const char* part : {"test tier", "wanted 4194304", "available 2097152", "node 0"}) {
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << part << " not in: " << status;
  }
  EXPECT_EQ(asked, 1);
}

TEST(ArenaTest, MoreThanTheMachineHasIsRefused) {
  const absl::Status status = Arena::Create(int64_t{1} << 45, Options()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

TEST(ArenaTest, ABudgetThatShrinksWhilePopulatingStopsIt) {
  ArenaOptions options = Options();
  int asked = 0;
  options.budget = [&asked](int) { return MemoryBudget{++asked < 4 ? 8 * kHugePage : kHugePage - 1, "a neighbour"}; };
  const absl::Status status = Arena::Create(8 * kHugePage, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(status.message()).find("wanted 12582912 bytes more"), std::string::npos) << status;
  EXPECT_EQ(asked, 4);
}

TEST(ArenaTest, AnUnknownBudgetRefusesNothing) {
  ArenaOptions options = Options();
  options.budget = [](int) { return MemoryBudget(); };
  EXPECT_TRUE(Arena::Create(kHugePage, options).ok());
}

TEST(ArenaTest, PagesLieOnTheNodeAskedFor) {
  const Topology topology = ReadTopology();
  if (topology.nodes.empty()) GTEST_SKIP() << "sysfs lists no memory nodes here";
  for (const MemoryNode& node : topology.nodes) {
    ArenaOptions options = Options();
    options.node = node.id;
    options.binding = NodeBinding::kStrict;
    const absl::StatusOr<std::unique_ptr<Arena>> arena = Arena::Create(2 * kHugePage, options);
    if (arena.status().code() == absl::StatusCode::kFailedPrecondition) GTEST_SKIP() << arena.status();
    ASSERT_TRUE(arena.ok()) << arena.status();
    EXPECT_EQ((*arena)->node(), node.id);
    EXPECT_EQ((*arena)->binding(), NodeBinding::kStrict);
    const PlacementReport all = (*arena)->VerifyPlacement(0).value();
    const int64_t pages = 2 * kHugePage / sysconf(_SC_PAGESIZE);
    EXPECT_EQ(all.pages_on_node, (std::map<int, int64_t>{{node.id, pages}}));
    EXPECT_EQ(all.pages_unknown, 0);
    EXPECT_EQ((*arena)->VerifyPlacement(7)->pages_on_node.at(node.id), 7);
    EXPECT_EQ((*arena)->VerifyPlacement(int64_t{1} << 40)->pages_on_node.at(node.id), pages);
  }
}

TEST(ArenaTest, PagesWithoutMemoryHaveNoKnownNode) {
  const auto arena = Arena::Create(kHugePage, Options()).value();
  if (!arena->VerifyPlacement(1).ok()) GTEST_SKIP() << arena->VerifyPlacement(1).status();
  ASSERT_EQ(madvise(arena->data(), kHugePage, MADV_DONTNEED), 0);
  const PlacementReport report = arena->VerifyPlacement(0).value();
  EXPECT_EQ(report.pages_unknown, kHugePage / sysconf(_SC_PAGESIZE));
  EXPECT_TRUE(report.pages_on_node.empty());
}

TEST(ArenaTest, AnAbsentNodeIsRefusedByName) {
  for (const int node : {777, 5000}) {
    for (const NodeBinding binding : {NodeBinding::kAdvisory, NodeBinding::kStrict}) {
      ArenaOptions options = Options();
      options.node = node;
      options.binding = binding;
      const absl::StatusOr<std::unique_ptr<Arena>> arena = Arena::Create(kHugePage, options);
      if (arena.ok() && (*arena)->binding() == NodeBinding::kNone) GTEST_SKIP() << "the kernel permits no mbind here";
      EXPECT_EQ(arena.status().code(), absl::StatusCode::kInvalidArgument) << arena.status();
      EXPECT_NE(std::string(arena.status().message()).find(absl::StrCat("node ", node)), std::string::npos);
    }
  }
}

TEST(ArenaTest, NoBindingIgnoresTheNode) {
  ArenaOptions options = Options();
  options.node = 777;
  options.binding = NodeBinding::kNone;
  const auto arena = Arena::Create(kHugePage, options).value();
  EXPECT_EQ(arena->node(), -1);
}

TEST(ArenaTest, LockingIsReported) {
#ifdef HYBRIDGEN_SANITIZER
  GTEST_SKIP() << "AddressSanitizer replaces mlock by nothing";
#endif
  ArenaOptions options = Options();
  EXPECT_FALSE(Arena::Create(kHugePage, options).value()->locked());
  options.locking = Locking::kBestEffort;
  const auto arena = Arena::Create(kHugePage, options).value();
  int64_t locked_kilobytes = 0;
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word == "VmLck:") status >> locked_kilobytes;
  }
  EXPECT_EQ(locked_kilobytes * 1024 >= kHugePage, arena->locked());
}

TEST(ArenaTest, AForkedChildDoesNotInheritTheMemory) {
  const auto arena = Arena::Create(kHugePage, Options()).value();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {  // the range is not mapped: touching it would be a fault, asking is an error
    _exit(msync(arena->data(), kHugePage, MS_ASYNC) != 0 && errno == ENOMEM ? 0 : 1);
  }
  int result = -1;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  EXPECT_TRUE(WIFEXITED(result) && WEXITSTATUS(result) == 0) << result;
  arena->data()[0] = std::byte{1};  // the parent keeps it
}

}  // namespace
}  // namespace hybridgen
