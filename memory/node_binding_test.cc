// Tests of binding and of the reasons for its refusal, on pretended machines.
#include "memory/node_binding.h"

#include <cerrno>

#include "gtest/gtest.h"
#include "memory/fake_memory_policy.h"
#include "memory/fake_tree.h"

namespace hybridgen {
namespace {

// Never touched: the fakes only count.
absl::Span<std::byte> Range() {
  alignas(4096) static std::byte memory[4 * 4096];
  return absl::MakeSpan(memory);
}

TEST(CheckNodeTest, AbsentAndOutsideTheCpusetAreToldApart) {
  FakeTree tree;
  tree.Write("sys/devices/system/node/has_memory", "0-2\n");
  FakeMemoryPolicy calls;
  calls.allowed = {0, 2};
  EXPECT_TRUE(CheckNode(0, calls, tree.roots()).ok());
  EXPECT_TRUE(CheckNode(2, calls, tree.roots()).ok());
  EXPECT_EQ(CheckNode(1, calls, tree.roots()),
            absl::InvalidArgumentError("node 1 is outside this process's cpuset (cpuset.mems); allowed nodes: 0, 2"));
  EXPECT_EQ(CheckNode(3, calls, tree.roots()),
            absl::InvalidArgumentError("node 3 is absent or has no memory; nodes with memory: 0, 1, 2"));
  for (const int node : {-1, kMaxNodes, 1 << 30}) {
    EXPECT_EQ(CheckNode(node, calls, tree.roots()).code(), absl::StatusCode::kInvalidArgument) << node;
  }
}

TEST(CheckNodeTest, WhatCannotBeReadRefusesNothing) {
  FakeTree tree;
  FakeMemoryPolicy calls;
  calls.allowed = {0};
  EXPECT_EQ(CheckNode(1, calls, tree.roots()),
            absl::InvalidArgumentError("node 1 is absent or outside this process's cpuset (cpuset.mems); allowed "
                                       "nodes: 0"))
      << "without sysfs";
  calls.allowed_error = EPERM;
  EXPECT_TRUE(CheckNode(1, calls, tree.roots()).ok()) << "with neither";
  tree.Write("sys/devices/system/node/has_memory", "0\n");
  EXPECT_EQ(CheckNode(1, calls, tree.roots()).code(), absl::StatusCode::kInvalidArgument) << "sysfs alone";
  tree.Write("sys/devices/system/node/has_memory", "some\n");
  EXPECT_TRUE(CheckNode(1, calls, tree.roots()).ok());
}

TEST(BindToNodeTest, BindsAsAsked) {
  for (const NodeBinding binding : {NodeBinding::kAdvisory, NodeBinding::kStrict}) {
    FakeMemoryPolicy calls;
    const BindOutcome outcome = BindToNode(Range(), 1, binding, calls).value();
    EXPECT_EQ(outcome.binding, binding);
    EXPECT_EQ(outcome.note, "");
    std::vector<int> nodes;
    calls.QueryPages({&Range().front(), &Range().back()}, &nodes);
    EXPECT_EQ(nodes, (std::vector<int>{1, 1}));
  }
}

TEST(BindToNodeTest, WithoutPermissionAdvisoryIsANoteAndStrictAnError) {
  for (const int error : {EPERM, ENOSYS, EACCES}) {
    FakeMemoryPolicy calls;
    calls.prefer_error = error;
    const BindOutcome outcome = BindToNode(Range(), 1, NodeBinding::kAdvisory, calls).value();
    EXPECT_EQ(outcome.binding, NodeBinding::kNone);
    EXPECT_EQ(outcome.note,
              "no NUMA control, pages lie where the kernel puts them: mbind to node 1 failed: " + ErrorText(error));
    const absl::Status strict = BindToNode(Range(), 1, NodeBinding::kStrict, calls).status();
    EXPECT_EQ(strict.code(), absl::StatusCode::kFailedPrecondition) << strict;
  }
}

TEST(BindToNodeTest, ARefusedNodeIsAnErrorWhateverTheBinding) {
  FakeMemoryPolicy calls;
  calls.prefer_error = EINVAL;
  for (const NodeBinding binding : {NodeBinding::kAdvisory, NodeBinding::kStrict}) {
    const absl::Status status = BindToNode(Range(), 1, binding, calls).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  }
}

}  // namespace
}  // namespace hybridgen
