// Recorded trees (testdata/*.tree, written by testdata/record_tree.sh): read, changed and written out for tests.
#ifndef MEMORY_RECORDED_TREE_H_
#define MEMORY_RECORDED_TREE_H_

#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "memory/fake_tree.h"

namespace hybridgen {

struct TreeEntry {
  enum class Type { kFile, kLink };
  Type type;
  std::string path;
  std::string content;  // of a file; of a link, its target
};

// Entries of testdata/NAME.tree.
inline std::vector<TreeEntry> ReadRecordedTree(const std::string& name) {
  std::ifstream file("memory/testdata/" + name + ".tree");
  EXPECT_TRUE(file.good()) << name;
  std::vector<TreeEntry> entries;
  for (std::string line; std::getline(file, line);) {
    for (const auto& [sign, type] : {std::pair<std::string, TreeEntry::Type>(" = ", TreeEntry::Type::kFile),
                                     std::pair<std::string, TreeEntry::Type>(" -> ", TreeEntry::Type::kLink)}) {
      const size_t at = line.find(sign);
      if (at == std::string::npos) continue;
      entries.push_back(
          {type, line.substr(0, at), absl::StrReplaceAll(line.substr(at + sign.size()), {{"\\n", "\n"}})});
      break;
    }
  }
  EXPECT_FALSE(entries.empty()) << name;
  return entries;
}

inline void WriteTree(const std::vector<TreeEntry>& entries, FakeTree& tree) {
  for (const TreeEntry& entry : entries) {
    if (entry.type == TreeEntry::Type::kFile) {
      tree.Write(entry.path, entry.content);
    } else {
      tree.Link(entry.path, entry.content);
    }
  }
}

}  // namespace hybridgen

#endif  // MEMORY_RECORDED_TREE_H_
