// A directory of small files for tests that read a fake sysfs or procfs. Removed with the object.
#ifndef MEMORY_FAKE_TREE_H_
#define MEMORY_FAKE_TREE_H_

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "memory/system_files.h"

namespace hybridgen {

class FakeTree {
 public:
  FakeTree() {
    // Thousands of small files: ten times as fast in memory.
    const std::string memory = "/dev/shm";
    std::string pattern = (access(memory.c_str(), W_OK) == 0 ? memory : ::testing::TempDir()) + "/fake_tree_XXXXXX";
    const char* made = mkdtemp(pattern.data());
    EXPECT_NE(made, nullptr);
    root_ = pattern;
  }
  ~FakeTree() {
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }
  FakeTree(const FakeTree&) = delete;
  FakeTree& operator=(const FakeTree&) = delete;

  // Writes `content` to `path`, e.g. "sys/devices/system/node/online".
  void Write(const std::string& path, const std::string& content) {
    const std::filesystem::path full = std::filesystem::path(root_) / path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << content;
  }

  // Makes `path` a symbolic link to `target`, which need not exist.
  void Link(const std::string& path, const std::string& target) {
    const std::filesystem::path full = std::filesystem::path(root_) / path;
    std::filesystem::create_directories(full.parent_path());
    std::filesystem::create_symlink(target, full);
  }

  void Remove(const std::string& path) { std::filesystem::remove_all(std::filesystem::path(root_) / path); }

  const std::string& root() const { return root_; }
  SystemRoots roots() const { return {root_ + "/sys", root_ + "/proc"}; }

 private:
  std::string root_;
};

}  // namespace hybridgen

#endif  // MEMORY_FAKE_TREE_H_
