// Tests of DAX devices by fake sysfs trees, with regular files in place of the devices.
#include "memory/dax_file.h"

#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "memory/fake_dax_device.h"
#include "memory/fake_tree.h"

namespace hybridgen {
namespace {

constexpr int64_t kAlignment = int64_t{2} << 20;
constexpr int64_t kBytes = 8 * kAlignment;

void ExpectError(const absl::Status& status, absl::StatusCode code, const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& part : parts) {
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << part << " not in: " << status;
  }
}

TEST(DaxFileTest, FactsComeFromSysfs) {
  FakeTree tree;
  const std::string path = MakeDaxDevice(tree, "dax1.0", kBytes, kAlignment, 3);
  MakeDaxDevice(tree, "dax1.1", 2 * kBytes, 4096, -1);
  const auto file = DaxFile::Open(path, tree.roots()).value();
  EXPECT_EQ(file->bytes(), kBytes);
  EXPECT_EQ(file->alignment(), kAlignment);
  EXPECT_EQ(file->node(), 3);
  EXPECT_GE(file->fd(), 0);
  EXPECT_EQ(DaxFile::Open(tree.root() + "/dev/dax1.1", tree.roots()).value()->node(), std::nullopt) << "-1 is unknown";
}

TEST(DaxFileTest, DevicesThatCannotBeMappedAreRefusedByName) {
  FakeTree tree;
  ExpectError(DaxFile::Open("/dev/dax9.0", tree.roots()).status(), absl::StatusCode::kNotFound, {"/dev/dax9.0"});
  ExpectError(DaxFile::Open("", tree.roots()).status(), absl::StatusCode::kNotFound, {"no DAX device"});

  const std::string node = MakeDaxDevice(tree, "dax0.0", kBytes, kAlignment, 1, "kmem");
  ExpectError(DaxFile::Open(node, tree.roots()).status(), absl::StatusCode::kFailedPrecondition,
              {node, "not in devdax mode", "kmem", "daxctl reconfigure-device --mode=devdax dax0.0"});
  const std::string idle = MakeDaxDevice(tree, "dax0.1", kBytes, kAlignment, 1, /*driver=*/"");
  ExpectError(DaxFile::Open(idle, tree.roots()).status(), absl::StatusCode::kFailedPrecondition,
              {idle, "not in devdax mode"});

  const std::string path = MakeDaxDevice(tree, "dax0.2", kBytes, kAlignment, 1);
  for (const std::string file : {"size", "align"}) {
    const std::string at = "sys/bus/dax/devices/dax0.2/" + file;
    for (const std::string content : {"garbage\n", "0\n", "-2097152\n", "99999999999999999999\n"}) {
      tree.Write(at, content);
      ExpectError(DaxFile::Open(path, tree.roots()).status(), absl::StatusCode::kFailedPrecondition,
                  {path, "cannot be read"});
    }
    tree.Write(at, "2097152\n");
    EXPECT_TRUE(DaxFile::Open(path, tree.roots()).ok());
  }
  tree.Write("sys/bus/dax/devices/dax0.2/align", "3000000\n");
  EXPECT_FALSE(DaxFile::Open(path, tree.roots()).ok()) << "no power of two";
  tree.Write("sys/bus/dax/devices/dax0.2/align", "2097152\n");
  tree.Remove("dev/dax0.2");
  ExpectError(DaxFile::Open(path, tree.roots()).status(), absl::StatusCode::kNotFound, {path, "cannot be opened"});
}

TEST(DaxFileTest, OnlyPartsOfTheDeviceCanBeHeld) {
  FakeTree tree;
  const std::string path = MakeDaxDevice(tree, "dax0.0", kBytes, kAlignment, 1);
  const auto file = DaxFile::Open(path, tree.roots()).value();
  ExpectError(file->Hold(0, kBytes + kAlignment), absl::StatusCode::kResourceExhausted,
              {path, "wanted 18874368", "available 16777216"});
  ExpectError(file->Hold(kBytes, kAlignment), absl::StatusCode::kResourceExhausted, {"available 0"});
  ExpectError(file->Hold(int64_t{1} << 60, int64_t{1} << 60), absl::StatusCode::kResourceExhausted, {"available 0"});
  for (const int64_t offset : {int64_t{-1}, -kAlignment, int64_t{4096}}) {
    ExpectError(file->Hold(offset, kAlignment), absl::StatusCode::kInvalidArgument, {path, "2097152"});
  }
  for (const int64_t bytes : {int64_t{0}, -kAlignment, kAlignment + 4096}) {
    ExpectError(file->Hold(0, bytes), absl::StatusCode::kInvalidArgument, {path});
  }
  EXPECT_TRUE(file->Hold(0, kBytes).ok());
}

TEST(DaxFileTest, OneHolderPerByte) {
  FakeTree tree;
  const std::string path = MakeDaxDevice(tree, "dax0.0", kBytes, kAlignment, 1);
  auto first = DaxFile::Open(path, tree.roots()).value();
  const auto second = DaxFile::Open(path, tree.roots()).value();
  ASSERT_TRUE(first->Hold(0, 3 * kAlignment).ok());
  EXPECT_TRUE(second->Hold(3 * kAlignment, kAlignment).ok()) << "the next bytes are free";
  ExpectError(second->Hold(2 * kAlignment, kAlignment), absl::StatusCode::kFailedPrecondition,
              {path, "[4194304, 6291456)", "held by another"});
  first.reset();
  EXPECT_TRUE(second->Hold(2 * kAlignment, kAlignment).ok()) << "released";
}

TEST(DaxFileTest, OtherProcessesAreKeptOut) {
  FakeTree tree;
  const std::string path = MakeDaxDevice(tree, "dax0.0", kBytes, kAlignment, 1);
  const auto file = DaxFile::Open(path, tree.roots()).value();
  ASSERT_TRUE(file->Hold(0, kAlignment).ok());
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto other = DaxFile::Open(path, tree.roots());
    if (!other.ok()) _exit(1);
    if ((*other)->Hold(0, kBytes).code() != absl::StatusCode::kFailedPrecondition) _exit(2);
    _exit((*other)->Hold(kAlignment, kAlignment).ok() ? 0 : 3);
  }
  int result = -1;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  EXPECT_TRUE(WIFEXITED(result) && WEXITSTATUS(result) == 0) << result;
}

}  // namespace
}  // namespace hybridgen
