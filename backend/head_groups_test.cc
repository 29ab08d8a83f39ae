// Tests of how many KV head groups there are and which node and CPUs each has, on machines that the test makes up.
#include "backend/head_groups.h"

#include <sched.h>

#include "backend/pool_executor.h"
#include "gtest/gtest.h"

namespace hybridgen {
namespace {

MemoryNode Node(int id, MemoryKind kind, std::vector<int> cpus) {
  MemoryNode node;
  node.id = id;
  node.kind = kind;
  node.has_cpus = cpus.empty() ? NodeCpus::kNone : NodeCpus::kSome;
  node.cpus = std::move(cpus);
  return node;
}

// Two sockets, a CXL node, and HBM.
Topology TwoSockets() {
  Topology topology;
  topology.nodes = {Node(0, MemoryKind::kDram, {3, 1, 0, 2}), Node(1, MemoryKind::kDram, {4, 5, 6, 7}),
                    Node(2, MemoryKind::kCxl, {}), Node(3, MemoryKind::kHbm, {})};
  return topology;
}

HeadGroupRequest Request(int wanted, int num_kv_heads) {
  HeadGroupRequest request;
  request.wanted = wanted;
  request.num_kv_heads = num_kv_heads;
  request.allowed_cpus = {0, 1, 2, 3, 4, 5, 6, 7};
  return request;
}

TEST(HeadGroupsTest, OnePerDramNodeWithCpus) {
  const HeadGroups groups = ChooseHeadGroups(Request(0, 8), TwoSockets()).value();
  EXPECT_EQ(groups.count, 2);
  EXPECT_FALSE(groups.emulated);
  EXPECT_EQ(groups.nodes, (std::vector<int>{0, 1}));
  EXPECT_EQ(groups.cpus, (std::vector<std::vector<int>>{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(ChooseHeadGroups(Request(2, 8), TwoSockets())->nodes, groups.nodes) << "the same when asked for";
}

TEST(HeadGroupsTest, NodesWhoseCpusAreNotAllowedDoNotCount) {
  HeadGroupRequest request = Request(0, 8);
  request.allowed_cpus = {1, 2};
  const HeadGroups groups = ChooseHeadGroups(request, TwoSockets()).value();
  EXPECT_EQ(groups.count, 1);
  EXPECT_EQ(groups.nodes, std::vector<int>{-1});
  request.allowed_cpus = {1, 7};
  EXPECT_EQ(ChooseHeadGroups(request, TwoSockets())->cpus, (std::vector<std::vector<int>>{{1}, {7}}));
}

TEST(HeadGroupsTest, OneGroupWhereSeveralMakeNoSense) {
  EXPECT_EQ(ChooseHeadGroups(Request(1, 8), TwoSockets())->count, 1);
  const HeadGroups odd = ChooseHeadGroups(Request(0, 7), TwoSockets()).value();
  EXPECT_EQ(odd.count, 1);
  EXPECT_EQ(odd.reason, "7 KV heads cannot be divided among 2 DRAM nodes");
  HeadGroupRequest named = Request(0, 8);
  named.dram_node = 1;
  EXPECT_EQ(ChooseHeadGroups(named, TwoSockets())->nodes, std::vector<int>{1});
  EXPECT_EQ(ChooseHeadGroups(Request(0, 8), Topology())->count, 1) << "the kernel tells no nodes";
}

TEST(HeadGroupsTest, GroupsThatTheMachineLacksAreEmulated) {
  const HeadGroups groups = ChooseHeadGroups(Request(4, 8), TwoSockets()).value();
  EXPECT_EQ(groups.count, 4);
  EXPECT_TRUE(groups.emulated);
  EXPECT_EQ(groups.nodes, std::vector<int>(4, -1));
  EXPECT_EQ(groups.cpus[1], (std::vector<int>{1, 5}));
}

TEST(HeadGroupsTest, WhatCannotBeIsRefused) {
  EXPECT_EQ(ChooseHeadGroups(Request(3, 8), TwoSockets()).status().message(),
            "create backend: head_groups is 3; accepted: 0 to 16, dividing num_kv_heads = 8");
  EXPECT_FALSE(ChooseHeadGroups(Request(32, 32), TwoSockets()).ok());
  HeadGroupRequest named = Request(2, 8);
  named.dram_node = 0;
  EXPECT_EQ(ChooseHeadGroups(named, TwoSockets()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(HeadGroupsTest, TheCpusOfAnExecutorAreThoseOfItsWorkers) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  const int cpu = sched_getcpu();
  PoolExecutorOptions options;
  options.num_workers = 2;
  options.cpus = {{cpu}};
  const std::unique_ptr<Executor> pool = CreatePoolExecutor(options).value();
  const std::vector<int> all = CpusOf(*pool);
  EXPECT_EQ(static_cast<int>(all.size()), CPU_COUNT(&allowed)) << "the caller's, who is a worker";
  // The caller pinned as the engine pins its threads.
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(CpusOf(*pool), std::vector<int>{cpu});
  ASSERT_EQ(sched_setaffinity(0, sizeof(allowed), &allowed), 0);
}

TEST(HeadGroupsTest, AThreadBelongsWhereItRuns) {
  HeadGroups groups;
  groups.count = 3;
  EXPECT_EQ(groups.OfThisThread(5), 2) << "no group has CPUs";
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  const int cpu = sched_getcpu();
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  groups.cpus = {{cpu + 1, cpu + 2}, {}, {cpu}};
  EXPECT_EQ(groups.OfThisThread(0), 2);
  groups.cpus = {{cpu + 1}, {cpu + 2}, {}};
  EXPECT_EQ(groups.OfThisThread(1), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

}  // namespace
}  // namespace hybridgen
