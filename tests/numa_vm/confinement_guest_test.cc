// In a guest: processes that may not use every node, or may not ask the kernel about nodes at all.
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/arena.h"
#include "tests/numa_vm/guest.h"

namespace hybridgen {
namespace {

constexpr int64_t kBytes = int64_t{4} << 20;

std::string MakeArena(int node, NodeBinding binding) {
  ArenaOptions options;
  options.name = "guest";
  options.node = node;
  options.binding = binding;
  const auto arena = Arena::Create(kBytes, options);
  return arena.ok() ? absl::StrCat("made", (*arena)->note().empty() ? "" : ": ", (*arena)->note())
                    : arena.status().ToString();
}

TEST(ConfinementGuestTest, ANodeOutsideTheCpusetIsRefusedByName) {
  if (FarNode() == kNoNode) GTEST_SKIP() << "one memory node";
  const std::string root = "/sys/fs/cgroup";
  const std::string group = root + "/home_node_only";
  WriteFile(root + "/cgroup.subtree_control", "+cpuset");
  ASSERT_EQ(mkdir(group.c_str(), 0755), 0) << strerror(errno);
  WriteFile(group + "/cpuset.mems", std::to_string(HomeNode()));
  for (const NodeBinding binding : {NodeBinding::kAdvisory, NodeBinding::kStrict}) {
    const std::string said = InChild([&group, binding] {
      WriteFile(group + "/cgroup.procs", std::to_string(getpid()));
      return MakeArena(HomeNode(), binding) + "; " + MakeArena(FarNode(), binding);
    });
    EXPECT_TRUE(absl::StartsWith(said, "made; INVALID_ARGUMENT")) << said;
    EXPECT_TRUE(absl::StrContains(said, absl::StrCat("node ", FarNode()))) << said;
    EXPECT_TRUE(absl::StrContains(said, "cpuset")) << said;
  }
  EXPECT_EQ(rmdir(group.c_str()), 0) << strerror(errno);
}

TEST(ConfinementGuestTest, WithoutPermissionAnAdvisoryArenaIsUnboundAndSaysSoInOneLine) {
  const int node = FarNode() != kNoNode ? FarNode() : HomeNode();
  const std::string advisory = InChild([node] {
    ForbidMemoryPolicy();
    return MakeArena(node, NodeBinding::kAdvisory);
  });
  EXPECT_TRUE(absl::StartsWith(advisory, "made: ")) << advisory;
  EXPECT_TRUE(absl::StrContains(advisory, "no NUMA control")) << advisory;
  EXPECT_FALSE(absl::StrContains(advisory, "\n")) << advisory;
  const std::string strict = InChild([node] {
    ForbidMemoryPolicy();
    return MakeArena(node, NodeBinding::kStrict);
  });
  EXPECT_TRUE(absl::StartsWith(strict, "FAILED_PRECONDITION")) << strict;
  EXPECT_TRUE(absl::StrContains(strict, "Operation not permitted")) << strict;
}

}  // namespace
}  // namespace hybridgen
