// Tests of the sysfs and procfs parsers.
#include "memory/system_files.h"

#include <filesystem>

#include "gtest/gtest.h"
#include "memory/fake_tree.h"

namespace hybridgen {
namespace {

TEST(SystemFilesTest, ACountIsANumberAlone) {
  EXPECT_EQ(ParseCount("42\n"), 42);
  EXPECT_EQ(ParseCount("0"), 0);
  EXPECT_EQ(ParseCount("9223372036854771712\n"), 9223372036854771712);
  for (const char* bad : {"", "\n", "max\n", "-1", "12 kB", "0x10", "18446744073709551615", "1e3"}) {
    EXPECT_FALSE(ParseCount(bad).has_value()) << bad;
  }
}

TEST(SystemFilesTest, FieldsOfMeminfoAndOfMemoryStat) {
  const char* meminfo = "MemTotal:       24684084 kB\nMemAvailable:   21875936 kB\nHugePages_Total:       3\n";
  EXPECT_EQ(ParseField(meminfo, "MemAvailable:"), 21875936);
  EXPECT_EQ(ParseField(meminfo, "HugePages_Total:"), 3);
  EXPECT_FALSE(ParseField(meminfo, "Mem").has_value());
  const char* node = "Node 1 MemTotal:  219040 kB\nNode 1 Inactive(file):  12 kB\n";
  EXPECT_EQ(ParseField(node, "Inactive(file):"), 12);
  EXPECT_EQ(ParseField("anon 5\ninactive_file 4096\n", "inactive_file"), 4096);
  EXPECT_FALSE(ParseField("MemAvailable: lots kB\n", "MemAvailable:").has_value());
  EXPECT_FALSE(ParseField("MemAvailable:", "MemAvailable:").has_value());
  EXPECT_FALSE(ParseField("", "MemAvailable:").has_value());
}

TEST(SystemFilesTest, Hexadecimal) {
  EXPECT_EQ(ParseHex("8000000\n"), 0x8000000);
  EXPECT_EQ(ParseHex("0x110000000\n"), 0x110000000);
  EXPECT_EQ(ParseHex("0"), 0);
  EXPECT_EQ(ParseHex("0xffffffffffffff"), kMostBytes - 1);
  for (const char* bad : {"", "\n", "0x", "-1", "size", "12 kB", "0x100000000000000", "0xffffffffffffffffff"}) {
    EXPECT_FALSE(ParseHex(bad).has_value()) << bad;
  }
}

TEST(SystemFilesTest, KibibytesDoNotOverflow) {
  EXPECT_EQ(ParseKibibytes("MemTotal: 3 kB\n", "MemTotal:"), 3072);
  EXPECT_EQ(ParseKibibytes("MemTotal: 70368744177663 kB\n", "MemTotal:"), kMostBytes - 1024);
  EXPECT_FALSE(ParseKibibytes("MemTotal: 70368744177664 kB\n", "MemTotal:").has_value());
  EXPECT_FALSE(ParseKibibytes("MemTotal: 9223372036854775807 kB\n", "MemTotal:").has_value());
  EXPECT_FALSE(ParseKibibytes("MemTotal: -3 kB\n", "MemTotal:").has_value());
}

TEST(SystemFilesTest, IdLists) {
  EXPECT_EQ(ParseIdList("0\n"), (std::vector<int>{0}));
  EXPECT_EQ(ParseIdList("0-2,5\n"), (std::vector<int>{0, 1, 2, 5}));
  EXPECT_EQ(ParseIdList("5,0-1,1\n"), (std::vector<int>{0, 1, 5}));
  EXPECT_EQ(ParseIdList("\n"), std::vector<int>());
  for (const char* bad : {"a", "0-", "-1", "2-1", "0,,1", "0-99999999999", "1024", "0 1"}) {
    EXPECT_FALSE(ParseIdList(bad).has_value()) << bad;
  }
}

TEST(SystemFilesTest, AMissingFileIsUnknown) {
  EXPECT_FALSE(ReadSystemFile("/nonexistent/file").has_value());
  EXPECT_FALSE(ReadCount("/nonexistent/file").has_value());
  EXPECT_FALSE(ReadSystemFile(::testing::TempDir()).has_value()) << "a directory";
  EXPECT_FALSE(ReadIdList("/nonexistent/file").has_value());
  EXPECT_FALSE(LinkName("/nonexistent/file").has_value());
  EXPECT_FALSE(RealPath("/nonexistent/file").has_value());
  EXPECT_TRUE(ListDirectory("/nonexistent").empty());
}

TEST(SystemFilesTest, AnEmptyListEndsWithALineFeed) {
  FakeTree tree;
  tree.Write("sys/list", "\n");
  EXPECT_EQ(ReadIdList(tree.roots().sysfs + "/list"), std::vector<int>());
  tree.Write("sys/list", "");
  EXPECT_FALSE(ReadIdList(tree.roots().sysfs + "/list").has_value());
}

TEST(SystemFilesTest, DirectoriesAndLinks) {
  FakeTree tree;
  tree.Write("sys/b/file", "");
  tree.Write("sys/a", "");
  tree.Link("sys/link", "b");
  tree.Link("sys/dangling", "../bus/drivers/kmem");
  const std::string sys = tree.roots().sysfs;
  EXPECT_EQ(ListDirectory(sys), (std::vector<std::string>{"a", "b", "dangling", "link"}));
  EXPECT_TRUE(ListDirectory(sys + "/a").empty()) << "a file";
  EXPECT_EQ(LinkName(sys + "/dangling"), "kmem");
  EXPECT_FALSE(LinkName(sys + "/a").has_value());
  EXPECT_EQ(RealPath(sys + "/link/file"), std::filesystem::canonical(sys + "/b/file").string());
  EXPECT_FALSE(RealPath(sys + "/dangling").has_value());
}

}  // namespace
}  // namespace hybridgen
