// In a guest: what a node does not have is refused by a status, and nobody is killed for want of memory.
#include <numa.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"
#include "memory/arena.h"
#include "memory/topology.h"
#include "tests/numa_vm/guest.h"

namespace hybridgen {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kStep = 2 * kMiB;

absl::StatusOr<std::unique_ptr<Arena>> MakeArena(int64_t bytes, int node, NodeBinding binding) {
  ArenaOptions options;
  options.name = "guest";
  options.node = node;
  options.binding = binding;
  return Arena::Create(bytes, options);
}

TEST(CapacityGuestTest, MoreThanANodeHasIsRefusedNamingNodeWantedAndFree) {
  const int64_t kills = OutOfMemoryKills();
  const Topology topology = ReadTopology();
  for (const MemoryNode& node : topology.nodes) {
    for (const NodeBinding binding : {NodeBinding::kAdvisory, NodeBinding::kStrict}) {
      for (const int64_t bytes : {FreeBytes(node.id) + 32 * kMiB, int64_t{1} << 40}) {
        const absl::Status status = MakeArena(bytes, node.id, binding).status();
        EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
        for (const std::string& part :
             {absl::StrCat("node ", node.id), std::string("wanted "), std::string("available ")}) {
          EXPECT_TRUE(absl::StrContains(status.message(), part)) << part << " is not in: " << status;
        }
      }
    }
  }
  EXPECT_EQ(OutOfMemoryKills(), kills);
}

// Holds memory of a node, taken without looking at what is left for others.
class Hold {
 public:
  explicit Hold(int node) : node_(node), steps_(numa_node_size64(node, nullptr) / kStep) {
    numa_set_bind_policy(0);  // preferred: near the node's end a hard binding would end this process
    // One step more, so that the start can be aligned.
    map_ = static_cast<std::byte*>(mmap(nullptr, (steps_ + 1) * kStep, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    EXPECT_NE(map_, MAP_FAILED);
    numa_tonode_memory(map_, (steps_ + 1) * kStep, node);
    begin_ = map_ + kStep - reinterpret_cast<uintptr_t>(map_) % kStep;
    madvise(begin_, steps_ * kStep, MADV_HUGEPAGE);  // for quick filling
  }
  ~Hold() { munmap(map_, (steps_ + 1) * kStep); }

  // Until no more than `left` bytes are free, or as much is held as the node has: the kernel gave other nodes' memory.
  void TakeUntil(int64_t left) {
    for (; held_ < steps_ && FreeBytes(node_) > left; ++held_) {
      for (int64_t at = 0; at < kStep; at += 4096) begin_[held_ * kStep + at] = std::byte{1};
    }
  }
  // Until `left` bytes are free, or nothing is held.
  void GiveUntil(int64_t left) {
    while (held_ > 0 && FreeBytes(node_) < left) madvise(begin_ + --held_ * kStep, kStep, MADV_DONTNEED);
  }

 private:
  const int node_;
  const int64_t steps_;
  std::byte* map_;
  std::byte* begin_;
  int64_t held_ = 0;
};

TEST(CapacityGuestTest, RepairMovesNothingToANodeWithoutRoom) {
  if (FarNode() == kNoNode) GTEST_SKIP() << "one memory node";
  constexpr int64_t kBytes = 4 * kMiB;
  const int64_t pages = CountPages(kBytes);
  const int64_t kills = OutOfMemoryKills();
  const auto arena = MakeArena(kBytes, FarNode(), NodeBinding::kAdvisory).value();
  MovePages(arena->data(), kBytes, HomeNode());
  Hold hold(FarNode());
  hold.TakeUntil(numa_node_size64(FarNode(), nullptr) / 16);  // what arenas leave to others
  RepairReport report = arena->Repair().value();
  EXPECT_EQ(report.misplaced, pages);
  EXPECT_EQ(report.no_room, pages);
  EXPECT_EQ(PagesByNode(arena->data(), kBytes), (std::map<int, int64_t>{{HomeNode(), pages}}));
  hold.GiveUntil(64 * kMiB);
  report = arena->Repair().value();
  EXPECT_EQ(report.repaired, pages);
  EXPECT_EQ(PagesByNode(arena->data(), kBytes), (std::map<int, int64_t>{{FarNode(), pages}}));
  EXPECT_EQ(OutOfMemoryKills(), kills);
}

// Another process that takes and gives back memory of a node at random, near the node's end, until it is killed.
class Neighbour {
 public:
  Neighbour(int node, int64_t most_left, uint32_t seed) : child_(fork()) {
    if (child_ == 0) Run(node, most_left, seed);
  }
  ~Neighbour() {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }
  bool alive() const { return waitpid(child_, nullptr, WNOHANG) == 0; }

 private:
  [[noreturn]] static void Run(int node, int64_t most_left, uint32_t seed) {
    std::mt19937_64 random(seed);
    Hold hold(node);
    // On a machine with one node there is nothing to spill to, and the kernel would search for ever.
    const int64_t least_left = (FarNode() == kNoNode ? 24 : 3) * kMiB;
    for (int64_t left = most_left;; usleep(5000)) {  // bytes that it leaves free: a random walk
      hold.TakeUntil(left);
      hold.GiveUntil(left);
      left += static_cast<int64_t>(random() % 33) * kMiB - 16 * kMiB;
      left = std::clamp(left, least_left, most_left);
    }
  }

  const pid_t child_;
};

TEST(CapacityGuestTest, NobodyIsKilledIn100AttemptsBesideAGrowingNeighbour) {
  const uint32_t seed = TestSeed(GuestTarget().c_str(), 20);
  const int64_t kills = OutOfMemoryKills();
  const int node = FarNode() != kNoNode ? FarNode() : HomeNode();
  int made = 0, refused = 0;
  {
    // Arenas leave a sixteenth of the node to others: at times there is room for one, at times none.
    const int64_t most_left = numa_node_size64(node, nullptr) / 8 + 24 * kMiB;
    const Neighbour neighbour(node, most_left, seed);
    while (neighbour.alive() && FreeBytes(node) > most_left + kStep) usleep(1000);
    std::mt19937_64 random(seed);
    for (int attempt = 0; attempt < 100; ++attempt) {
      const int64_t bytes = static_cast<int64_t>(1 + random() % 4) * kStep;
      const auto arena = MakeArena(bytes, node, attempt % 2 == 0 ? NodeBinding::kStrict : NodeBinding::kAdvisory);
      if (arena.ok()) {
        ++made;
        if ((*arena)->binding() == NodeBinding::kStrict) {
          EXPECT_EQ(PagesByNode((*arena)->data(), bytes), (std::map<int, int64_t>{{node, CountPages(bytes)}}));
        }
      } else {
        ++refused;
        EXPECT_EQ(arena.status().code(), absl::StatusCode::kResourceExhausted) << arena.status();
        EXPECT_TRUE(absl::StrContains(arena.status().message(), absl::StrCat("node ", node))) << arena.status();
      }
    }
    EXPECT_TRUE(neighbour.alive());
  }
  EXPECT_EQ(OutOfMemoryKills(), kills);
  EXPECT_TRUE(made > 0 && refused > 0) << made << " arenas made, " << refused << " refused";
}

}  // namespace
}  // namespace hybridgen
