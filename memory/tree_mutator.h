// Damages recorded trees at random: files missing, garbage, nodes offline.
#ifndef MEMORY_TREE_MUTATOR_H_
#define MEMORY_TREE_MUTATOR_H_

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "memory/expected_machines.h"
#include "memory/recorded_tree.h"

namespace hybridgen {

using TreeEntries = std::vector<TreeEntry>;

// No entry is a plausible answer in any file, which no reader could tell from the truth.
inline const std::string kGarbage[] = {
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

// The seed of a test's damage: $HYBRIDGEN_TEST_SEED, or 1. Prints the command that repeats the run.
inline uint64_t MutationSeed(const char* target) {
  const char* const set = std::getenv("HYBRIDGEN_TEST_SEED");
  const uint64_t seed = set == nullptr ? 1 : std::strtoull(set, nullptr, 10);
  std::cout << "replay: bazel test " << target << " --test_env=HYBRIDGEN_TEST_SEED=" << seed << "\n";
  return seed;
}

class TreeMutator {
 public:
  explicit TreeMutator(uint64_t seed) : rng_(seed) {}

  size_t Below(size_t bound) { return std::uniform_int_distribution<size_t>(0, bound - 1)(rng_); }

  // One damage; what it was, for messages.
  std::string Damage(TreeEntries& entries) {
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
        TreeEntries kept;
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
  std::string TakeOffline(TreeEntries& entries) {
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

// The recorded trees with a GPU each.
inline std::vector<TreeEntries> TreesToDamage() {
  std::vector<TreeEntries> trees;
  for (const ExpectedMachine& machine : ExpectedMachines()) trees.push_back(ReadRecordedTree(machine.name));
  for (TreeEntries& entries : trees) {
    for (const auto& [file, content] :
         {std::pair("class", "0x030200\n"), std::pair("vendor", "0x10de\n"), std::pair("numa_node", "0\n")}) {
      entries.push_back({TreeEntry::Type::kFile, absl::StrCat("sys/bus/pci/devices/0000:18:00.0/", file), content});
    }
  }
  return trees;
}

}  // namespace hybridgen

#endif  // MEMORY_TREE_MUTATOR_H_
