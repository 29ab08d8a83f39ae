// Tests of the sysfs and procfs parsers.
#include "memory/system_files.h"

#include "gtest/gtest.h"

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
}

}  // namespace
}  // namespace hybridgen
