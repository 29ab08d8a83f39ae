// Tests of the memory accounting over fake trees.
#include "memory/memory_budget.h"

#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/fake_tree.h"

namespace hybridgen {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kGiB = int64_t{1} << 30;

std::string Meminfo(int64_t total, int64_t available) {
  return absl::StrCat("MemTotal:       ", total / 1024, " kB\nMemFree:   1 kB\nMemAvailable:   ", available / 1024,
                      " kB\n");
}

std::string NodeMeminfo(int node, int64_t total, int64_t free, int64_t cache) {
  return absl::StrCat("Node ", node, " MemTotal:  ", total / 1024, " kB\nNode ", node, " MemFree:  ", free / 1024,
                      " kB\nNode ", node, " Inactive(file):  ", cache / 1024, " kB\n");
}

TEST(MemoryBudgetTest, NothingReadableIsUnknown) {
  FakeTree tree;
  const MemoryBudget budget = ReadMemoryBudget(0, tree.roots());
  EXPECT_FALSE(budget.bytes.has_value());
  EXPECT_EQ(budget.limited_by, "");
}

TEST(MemoryBudgetTest, GarbageStaysUnknown) {
  FakeTree tree;
  tree.Write("proc/meminfo", "MemTotal: many kB\nMemAvailable: \n\xff\xfe");
  tree.Write("proc/self/cgroup", "::::\n0\n\n0::\nmemory:memory\n7:memory:relative\n");
  tree.Write("sys/devices/system/node/has_memory", "all of them");
  tree.Write("sys/devices/system/node/node0/meminfo", "Node 0 MemFree: -5 kB\nNode 0 MemTotal: 0x10 kB\n");
  tree.Write("sys/fs/cgroup/memory.max", "12 bytes\n");
  tree.Write("sys/fs/cgroup/memory.current", "\n");
  EXPECT_FALSE(ReadMemoryBudget(0, tree.roots()).bytes.has_value());
  tree.Write("proc/meminfo", "MemTotal: 9223372036854775807 kB\nMemAvailable: 9223372036854775807 kB\n");
  EXPECT_FALSE(ReadMemoryBudget(0, tree.roots()).bytes.has_value()) << "more bytes than a number holds";
}

TEST(MemoryBudgetTest, TheMachineLeavesSomethingOver) {
  FakeTree tree;
  tree.Write("proc/meminfo", Meminfo(64 * kGiB, 10 * kGiB));
  MemoryBudget budget = ReadMemoryBudget(-1, tree.roots());
  EXPECT_EQ(budget.bytes, 10 * kGiB - 256 * kMiB);
  EXPECT_EQ(budget.limited_by, "machine");
  tree.Write("proc/meminfo", Meminfo(kGiB, kGiB / 2));  // a small machine: a sixteenth
  EXPECT_EQ(ReadMemoryBudget(-1, tree.roots()).bytes, kGiB / 2 - kGiB / 16);
  tree.Write("proc/meminfo", Meminfo(kGiB, kMiB));
  EXPECT_EQ(ReadMemoryBudget(-1, tree.roots()).bytes, 0) << "never negative";
}

TEST(MemoryBudgetTest, ANodeLimitsOnlyItsOwnReservations) {
  FakeTree tree;
  tree.Write("proc/meminfo", Meminfo(64 * kGiB, 10 * kGiB));
  tree.Write("sys/devices/system/node/has_memory", "0-1\n");
  tree.Write("sys/devices/system/node/node1/meminfo", NodeMeminfo(1, 16 * kGiB, 2 * kGiB, kGiB));
  EXPECT_EQ(ReadMemoryBudget(-1, tree.roots()).limited_by, "machine");
  MemoryBudget budget = ReadMemoryBudget(0, tree.roots());
  EXPECT_EQ(budget.limited_by, "machine") << "node 0 tells nothing";
  EXPECT_EQ(budget.free_bytes, 10 * kGiB);
  EXPECT_FALSE(budget.node_bytes.has_value());
  budget = ReadMemoryBudget(1, tree.roots());
  EXPECT_EQ(budget.bytes, 2 * kGiB - 256 * kMiB) << "page cache is no room on a node";
  EXPECT_EQ(budget.limited_by, "node 1");
  EXPECT_EQ(budget.free_bytes, 2 * kGiB);
  EXPECT_EQ(budget.node_bytes, budget.bytes);

  tree.Write("proc/meminfo", Meminfo(64 * kGiB, kGiB));
  budget = ReadMemoryBudget(1, tree.roots());
  EXPECT_EQ(budget.limited_by, "machine");
  EXPECT_EQ(budget.node_bytes, 2 * kGiB - 256 * kMiB) << "of the node alone";
}

// A zone as /proc/zoneinfo writes it, with what surrounds the numbers that count.
std::string Zone(int node, const std::string& name, int64_t high, int64_t managed, const std::string& protection) {
  return absl::StrCat("Node ", node, ", zone ", name, "\n  per-node stats\n      nr_inactive_anon 66908\n  pages free ",
                      managed / 2, "\n        boost    0\n        min      1\n        low      2\n        high     ",
                      high, "\n        promo    9\n        managed  ", managed, "\n        protection: (", protection,
                      ")\n  pagesets\n    cpu: 0\n              count:    5\n              high:     7777\n");
}

TEST(MemoryBudgetTest, WatermarksAndLowmemReservesOfANodesZonesAreKept) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  FakeTree tree;
  tree.Write("sys/devices/system/node/has_memory", "0-2\n");
  for (const int node : {0, 1, 2}) {
    tree.Write(absl::StrCat("sys/devices/system/node/node", node, "/meminfo"),
               NodeMeminfo(node, 16 * kGiB, 2 * kGiB, 0));
  }
  tree.Write("proc/zoneinfo", Zone(0, "DMA", 31, 3840, "0, 11, 9000, 9000, 9000") +
                                  Zone(0, "DMA32", 200, 700000, "0, 0, 1500, 1500, 2500") +
                                  Zone(0, "Normal", 1000, 2000000, "0, 0, 0, 32000, 0") +
                                  Zone(1, "Movable", 500, 4000000, "0, 0, 0, 0, 0"));
  // DMA would keep 31 + 9000 pages but has 3840.
  EXPECT_EQ(ReadMemoryBudget(0, tree.roots()).bytes, 2 * kGiB - 256 * kMiB - (3840 + 200 + 2500 + 1000) * page);
  EXPECT_EQ(ReadMemoryBudget(1, tree.roots()).bytes, 2 * kGiB - 256 * kMiB - 500 * page);
  EXPECT_EQ(ReadMemoryBudget(2, tree.roots()).bytes, 2 * kGiB - 256 * kMiB) << "not listed";

  MemoryBudgetReader reader(tree.roots());
  EXPECT_EQ(reader(1).bytes, 2 * kGiB - 256 * kMiB - 500 * page);
  tree.Write("sys/devices/system/node/node1/meminfo", NodeMeminfo(1, 16 * kGiB, kGiB, 0));
  EXPECT_EQ(reader(1).bytes, kGiB - 256 * kMiB - 500 * page) << "free memory is read anew";

  tree.Write("proc/zoneinfo",
             "Node 1, zone Movable\n high 9223372036854775807\n managed 9223372036854775807\n"
             "Node 99999999999, zone\nNode\nNode 0, zone X\n high -3\n protection: ()\n managed x\n");
  EXPECT_EQ(ReadMemoryBudget(1, tree.roots()).bytes, 0) << "a zone that keeps everything";
  EXPECT_EQ(ReadMemoryBudget(0, tree.roots()).bytes, 2 * kGiB - 256 * kMiB) << "garbage keeps nothing";
}

TEST(MemoryBudgetTest, MemoryOfAnyNodeIsThatOfTheCpuset) {
  FakeTree tree;
  tree.Write("proc/meminfo", Meminfo(64 * kGiB, 40 * kGiB));
  tree.Write("sys/devices/system/node/has_memory", "0-2\n");
  for (const int node : {0, 1, 2}) {
    tree.Write(absl::StrCat("sys/devices/system/node/node", node, "/meminfo"),
               NodeMeminfo(node, 16 * kGiB, 2 * kGiB, kGiB));
  }
  tree.Write("proc/self/status", "Mems_allowed:\t00000007\nMems_allowed_list:\t0-2\n");
  EXPECT_EQ(ReadMemoryBudget(-1, tree.roots()).limited_by, "machine") << "all nodes are allowed";
  tree.Write("proc/self/status", "Mems_allowed:\t00000005\nMems_allowed_list:\t0,2\nvoluntary_ctxt_switches:\t1\n");
  const MemoryBudget budget = ReadMemoryBudget(-1, tree.roots());
  EXPECT_EQ(budget.bytes, 2 * 3 * kGiB - 256 * kMiB) << "page cache is room where any node will do";
  EXPECT_EQ(budget.limited_by, "cpuset nodes 0, 2");
  tree.Write("proc/self/status", "Mems_allowed_list:\tall\n");
  EXPECT_EQ(ReadMemoryBudget(-1, tree.roots()).limited_by, "machine");
  tree.Write("proc/self/status", "Mems_allowed_list:\t7\n");
  EXPECT_EQ(ReadMemoryBudget(-1, tree.roots()).limited_by, "machine") << "contradicts the nodes: believed by nobody";
}

TEST(MemoryBudgetTest, TheOnlyNodeIsTheMachine) {
  FakeTree tree;
  tree.Write("proc/meminfo", Meminfo(64 * kGiB, 10 * kGiB));
  tree.Write("sys/devices/system/node/has_memory", "0\n");
  tree.Write("sys/devices/system/node/node0/meminfo", NodeMeminfo(0, 16 * kGiB, kGiB, 0));
  EXPECT_EQ(ReadMemoryBudget(0, tree.roots()).limited_by, "machine");
}

TEST(MemoryBudgetTest, CgroupV2UpTheHierarchy) {
  FakeTree tree;
  tree.Write("proc/meminfo", Meminfo(64 * kGiB, 40 * kGiB));
  tree.Write("proc/self/cgroup", "0::/a/b\n");
  const auto group = [&tree](const std::string& path, const std::string& max, const std::string& high,
                             int64_t current) {
    tree.Write("sys/fs/cgroup" + path + "/memory.max", max + "\n");
    tree.Write("sys/fs/cgroup" + path + "/memory.high", high + "\n");
    tree.Write("sys/fs/cgroup" + path + "/memory.current", absl::StrCat(current, "\n"));
  };
  group("/a/b", "max", "max", kGiB);
  group("/a", "max", "max", kGiB);
  EXPECT_EQ(ReadMemoryBudget(-1, tree.roots()).limited_by, "machine") << "no limit is set";

  group("/a/b", absl::StrCat(8 * kGiB), "max", 5 * kGiB);
  MemoryBudget budget = ReadMemoryBudget(-1, tree.roots());
  EXPECT_EQ(budget.bytes, 3 * kGiB - 256 * kMiB);
  EXPECT_EQ(budget.limited_by, "cgroup /a/b");

  tree.Write("sys/fs/cgroup/a/b/memory.stat", absl::StrCat("anon 7\ninactive_file ", kGiB, "\n"));
  EXPECT_EQ(ReadMemoryBudget(-1, tree.roots()).bytes, 4 * kGiB - 256 * kMiB) << "page cache is room";

  group("/a", "max", absl::StrCat(7 * kGiB), 6 * kGiB);  // memory.high of the parent is nearer
  budget = ReadMemoryBudget(-1, tree.roots());
  EXPECT_EQ(budget.bytes, kGiB - 256 * kMiB);
  EXPECT_EQ(budget.limited_by, "cgroup /a");

  group("", absl::StrCat(2 * kGiB), "max", 2 * kGiB);  // a container sees its own limit at the top
  budget = ReadMemoryBudget(-1, tree.roots());
  EXPECT_EQ(budget.bytes, 0);
  EXPECT_EQ(budget.limited_by, "cgroup /");
}

TEST(MemoryBudgetTest, CgroupV1) {
  FakeTree tree;
  tree.Write("proc/self/cgroup", "4:cpu,memory:/x/y\n3:cpuset:/z\n0::/\n");
  tree.Write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", absl::StrCat(4 * kGiB, "\n"));
  tree.Write("sys/fs/cgroup/memory/x/memory.usage_in_bytes", absl::StrCat(3 * kGiB, "\n"));
  tree.Write("sys/fs/cgroup/memory/x/memory.stat", absl::StrCat("total_inactive_file ", kGiB, "\n"));
  tree.Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");  // v1's "no limit"
  tree.Write("sys/fs/cgroup/memory/memory.usage_in_bytes", absl::StrCat(5 * kGiB, "\n"));
  const MemoryBudget budget = ReadMemoryBudget(-1, tree.roots());
  EXPECT_EQ(budget.bytes, 2 * kGiB - 256 * kMiB);
  EXPECT_EQ(budget.limited_by, "cgroup /x");
}

TEST(MemoryBudgetTest, APathOutsideTheNamespaceMeansTheTop) {
  FakeTree tree;
  tree.Write("proc/self/cgroup", "0::/../../other\n");
  tree.Write("sys/fs/cgroup/memory.max", absl::StrCat(kGiB));
  tree.Write("sys/fs/cgroup/memory.current", "0");
  tree.Write("sys/other/memory.max", "1");  // where the path would lead
  tree.Write("sys/other/memory.current", "0");
  EXPECT_EQ(ReadMemoryBudget(-1, tree.roots()).bytes, kGiB - kGiB / 16);
}

TEST(MemoryBudgetTest, ThisMachineHasABudget) {
  const MemoryBudget budget = ReadMemoryBudget(-1);
  ASSERT_TRUE(budget.bytes.has_value()) << "Linux always has /proc/meminfo";
  EXPECT_GT(*budget.bytes, 0);
}

}  // namespace
}  // namespace hybridgen
