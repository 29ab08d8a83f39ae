// In a guest: what a node does not have is refused by a status, and nobody is killed for want of memory.
#include <numa.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
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
    numa_set_bind_policy(0);  // preferred: a hard binding would end this process itself
    std::mt19937_64 random(seed);
    std::vector<void*> held;
    int64_t left = most_left;  // bytes that it leaves free: a random walk
    while (true) {
      left += static_cast<int64_t>(random() % 33) * kMiB - 16 * kMiB;
      left = std::clamp(left, 3 * kMiB, most_left);
      while (FreeBytes(node) > left + kStep) {
        held.push_back(numa_alloc_onnode(kStep, node));
        memset(held.back(), 1, kStep);
      }
      while (FreeBytes(node) < left && !held.empty()) {
        numa_free(held.back(), kStep);
        held.pop_back();
      }
      usleep(5000);
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
    while (FreeBytes(node) > most_left) usleep(1000);
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
