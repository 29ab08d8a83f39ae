// 1,000 damaged trees: nothing crashes, and what is told is true or unknown, never false.
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/expected_machines.h"
#include "memory/fake_tree.h"
#include "memory/recorded_tree.h"
#include "memory/topology.h"

namespace hybridgen {
namespace {

using Entries = std::vector<TreeEntry>;

// No entry is a plausible answer in any file, which no reader could tell from the truth.
const std::string kGarbage[] = {
    "",
    "garbage\n",
    std::string("\xff\xfe\0\x01", 4),
    "-1\n",
    "0x\n",
    "1.5\n",
    "NaN\n",
    "{}\n",
    "5-3\n",
    "0-99999999999\n",
    "1,,2\n",
    "9223372036854775807\n",
    "18446744073709551615\n",
    "99999999999999999999999999\n",
    "0x7fffffffffffffff\n",
    "Node 0 MemTotal: 9223372036854775807 kB\nNode 0 MemFree: 9223372036854775807 kB\n",
    "Node 0 MemTotal: -5 kB\nNode 0 MemFree: kB\nMemTotal:\nMemFree",
    std::string(100'000, 'A'),
    std::string(100'000, '9'),
};

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : rng_(seed) {}

  size_t Below(size_t bound) { return std::uniform_int_distribution<size_t>(0, bound - 1)(rng_); }

  // One damage; what it was, for messages.
  std::string Damage(Entries& entries) {
    if (entries.empty()) return "nothing left";
    TreeEntry& entry = entries[Below(entries.size())];
    switch (Below(6)) {
      case 0: {
        const std::string what = absl::StrCat("deleted ", entry.path);
        entries.erase(entries.begin() + (&entry - entries.data()));
        return what;
      }
      case 1: {  // a whole directory
        const std::string directory = entry.path.substr(0, entry.path.rfind('/') + 1);
        Entries kept;
        for (const TreeEntry& other : entries) {
          if (!absl::StartsWith(other.path, directory)) kept.push_back(other);
        }
        entries = std::move(kept);
        return absl::StrCat("deleted ", directory);
      }
      case 2:  // a link that leads nowhere or to itself; a directory where a file was
        if (entry.type == TreeEntry::Type::kLink) {
          entry.content = Below(2) == 0 ? "nowhere" : entry.path.substr(entry.path.rfind('/') + 1);
        } else {
          entry.path += "/unexpected";
        }
        return absl::StrCat("of another type: ", entry.path);
      case 3:
        return TakeOffline(entries);
      default: {
        const size_t garbage = Below(std::size(kGarbage));
        entry.content = entry.type == TreeEntry::Type::kFile ? kGarbage[garbage] : "garbage";
        return absl::StrCat("garbage ", garbage, " in ", entry.path);
      }
    }
  }

 private:
  // Drops the first or the last node from the list of nodes with memory or online, or announces nodes that are absent.
  std::string TakeOffline(Entries& entries) {
    const std::string list = Below(2) == 0 ? "has_memory" : "online";
    for (TreeEntry& entry : entries) {
      if (!absl::EndsWith(entry.path, "/node/" + list)) continue;
      const std::string lists[] = {"0\n", "1\n", "1-2\n", "0-1023\n", "\n", "700\n"};
      entry.content = lists[Below(std::size(lists))];
      return absl::StrCat(list, " = ", entry.content);
    }
    return "no node list left";
  }

  std::mt19937_64 rng_;
};

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

Topology Read(const Entries& entries) {
  FakeTree tree;
  WriteTree(entries, tree);
  return ReadTopology(tree.roots());
}

// The recorded trees with a GPU each.
std::vector<Entries> Originals() {
  std::vector<Entries> trees;
  for (const ExpectedMachine& machine : ExpectedMachines()) trees.push_back(ReadRecordedTree(machine.name));
  for (Entries& entries : trees) {
    for (const auto& [file, content] :
         {std::pair("class", "0x030200\n"), std::pair("vendor", "0x10de\n"), std::pair("numa_node", "0\n")}) {
      entries.push_back({TreeEntry::Type::kFile, absl::StrCat("sys/bus/pci/devices/0000:18:00.0/", file), content});
    }
  }
  return trees;
}

TEST(TopologyMutationTest, DamagedTreesNeverMislead) {
  const char* set = std::getenv("HYBRIDGEN_TEST_SEED");
  const uint64_t seed = set == nullptr ? 1 : std::strtoull(set, nullptr, 10);
  std::cout << "replay: bazel test //memory:topology_mutation_test --test_env=HYBRIDGEN_TEST_SEED=" << seed << "\n";
  const std::vector<Entries> originals = Originals();
  std::vector<Topology> truths;
  for (const Entries& entries : originals) truths.push_back(Read(entries));

  Mutator mutator(seed);
  int known = 0;
  int unknown = 0;
  for (int i = 0; i < 1000; ++i) {
    const size_t which = mutator.Below(originals.size());
    Entries entries = originals[which];
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
