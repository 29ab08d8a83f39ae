// 1,000 damaged trees: nothing crashes, and what is told is true or unknown, never false.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/fake_tree.h"
#include "memory/topology.h"
#include "memory/tree_mutator.h"

namespace hybridgen {
namespace {

template <typename T>
void ExpectTrueOrUnknown(const T& told, const T& truth, const T& unknown, const char* what) {
  EXPECT_TRUE(told == truth || told == unknown) << what;
}

void ExpectTrueOrUnknown(const Performance& told, const Performance& truth) {
  ExpectTrueOrUnknown<std::optional<int64_t>>(told.read_megabytes_per_second, truth.read_megabytes_per_second,
                                              std::nullopt, "bandwidth");
  ExpectTrueOrUnknown<std::optional<int64_t>>(told.read_nanoseconds, truth.read_nanoseconds, std::nullopt, "latency");
}

void ExpectNoLie(const MemoryNode& told, const MemoryNode& truth) {
  EXPECT_TRUE(told.kind == truth.kind || told.kind == MemoryKind::kUnknown)
      << MemoryKindName(told.kind) << " because " << told.kind_why;
  EXPECT_TRUE(told.speed == truth.speed || told.speed == RelativeSpeed::kUnknown)
      << RelativeSpeedName(told.speed) << " because " << told.speed_why;
  EXPECT_FALSE(told.kind_why.empty());
  EXPECT_FALSE(told.speed_why.empty());
  ExpectTrueOrUnknown(told.has_cpus, truth.has_cpus, NodeCpus::kUnknown, "has CPUs");
  EXPECT_EQ(told.cpus, told.has_cpus == NodeCpus::kSome ? truth.cpus : std::vector<int>());
  ExpectTrueOrUnknown<std::optional<int64_t>>(told.total_bytes, truth.total_bytes, std::nullopt, "total");
  ExpectTrueOrUnknown<std::optional<int64_t>>(told.free_bytes, truth.free_bytes, std::nullopt, "free");
  ExpectTrueOrUnknown<std::map<int, int>>(told.distances, truth.distances, {}, "distances");
  ExpectTrueOrUnknown<std::optional<int>>(told.kernel_tier, truth.kernel_tier, std::nullopt, "tier");
  ExpectTrueOrUnknown(told.movable_only, truth.movable_only, MovableOnly::kUnknown, "movable only");
  ExpectTrueOrUnknown(told.performance, truth.performance);
  for (const HugePagePool& pool : told.huge_pages) {
    for (const HugePagePool& real : truth.huge_pages) {
      if (pool.page_bytes != real.page_bytes) continue;
      ExpectTrueOrUnknown<std::optional<int64_t>>(pool.total_pages, real.total_pages, std::nullopt, "huge pages");
      ExpectTrueOrUnknown<std::optional<int64_t>>(pool.free_pages, real.free_pages, std::nullopt, "free huge pages");
    }
  }
}

void ExpectNoLie(const Topology& told, const Topology& truth) {
  for (const MemoryNode& node : told.nodes) {
    SCOPED_TRACE(absl::StrCat("node ", node.id));
    const auto real = std::find_if(truth.nodes.begin(), truth.nodes.end(),
                                   [&node](const MemoryNode& other) { return other.id == node.id; });
    ASSERT_NE(real, truth.nodes.end()) << "there is no such node";
    ExpectNoLie(node, *real);
  }
  for (const DaxDevice& device : told.dax_devices) {
    ASSERT_EQ(truth.dax_devices.size(), 1u);
    const DaxDevice& real = truth.dax_devices[0];
    EXPECT_EQ(device.name, real.name);
    ExpectTrueOrUnknown(device.kind, real.kind, MemoryKind::kUnknown, "DAX kind");
    ExpectTrueOrUnknown(device.use, real.use, DaxUse::kUnknown, "DAX use");
    ExpectTrueOrUnknown<std::optional<int>>(device.target_node, real.target_node, std::nullopt, "target node");
    ExpectTrueOrUnknown<std::optional<int64_t>>(device.bytes, real.bytes, std::nullopt, "DAX size");
    ExpectTrueOrUnknown(device.performance, real.performance);
  }
  for (const CxlRegion& region : told.cxl_regions) {
    ASSERT_EQ(truth.cxl_regions.size(), 1u);
    ExpectTrueOrUnknown(region.kind, truth.cxl_regions[0].kind, MemoryKind::kUnknown, "region kind");
    ExpectTrueOrUnknown<std::optional<int64_t>>(region.start, truth.cxl_regions[0].start, std::nullopt, "start");
    ExpectTrueOrUnknown<std::optional<int64_t>>(region.bytes, truth.cxl_regions[0].bytes, std::nullopt, "size");
  }
  for (const Gpu& gpu : told.gpus) {
    ASSERT_EQ(truth.gpus.size(), 1u);
    ExpectTrueOrUnknown<std::optional<int>>(gpu.node, truth.gpus[0].node, std::nullopt, "GPU node");
    ExpectTrueOrUnknown<std::string>(gpu.vendor, truth.gpus[0].vendor, "", "GPU vendor");
  }
  ExpectTrueOrUnknown(told.transparent_huge_pages, truth.transparent_huge_pages, TransparentHugePages::kUnknown, "THP");
  ExpectTrueOrUnknown<std::optional<int64_t>>(told.machine_total_bytes, truth.machine_total_bytes, std::nullopt,
                                              "machine total");
}

Topology Read(const TreeEntries& entries) {
  FakeTree tree;
  WriteTree(entries, tree);
  return ReadTopology(tree.roots());
}

TEST(TopologyMutationTest, DamagedTreesNeverMislead) {
  const uint64_t seed = MutationSeed("//memory:topology_mutation_test");
  const std::vector<TreeEntries> originals = TreesToDamage();
  std::vector<Topology> truths;
  for (const TreeEntries& entries : originals) truths.push_back(Read(entries));

  TreeMutator mutator(seed);
  int known = 0;
  int unknown = 0;
  for (int i = 0; i < 1000; ++i) {
    const size_t which = mutator.Below(originals.size());
    TreeEntries entries = originals[which];
    std::string history = absl::StrCat("tree ", i, " of original ", which);
    for (size_t damages = 1 + mutator.Below(6); damages > 0; --damages) {
      absl::StrAppend(&history, "\n  ", mutator.Damage(entries));
    }
    SCOPED_TRACE(history);
    const Topology told = Read(entries);
    ExpectNoLie(told, truths[which]);
    for (const MemoryNode& node : told.nodes) ++(node.kind == MemoryKind::kUnknown ? unknown : known);
    if (HasFailure()) FAIL() << "seed " << seed;
  }
  EXPECT_GT(known, 300) << "the damage leaves enough to be told";
  EXPECT_GT(unknown, 300);
}

}  // namespace
}  // namespace hybridgen
