// Tests of the check's command line and of what it writes.
#include "tests/gpu/report.h"

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace hybridgen {
namespace {

std::string Parse(std::vector<const char*> arguments, CheckOptions& options) {
  arguments.insert(arguments.begin(), "check");
  return ParseArguments(static_cast<int>(arguments.size()), arguments.data(), options);
}

TEST(ArgumentsTest, AFullRunAndAShortOne) {
  CheckOptions options;
  EXPECT_EQ(Parse({"--fact=driver=a=b", "out", "--fact=empty="}, options), "");
  EXPECT_FALSE(options.few);
  EXPECT_EQ(options.out, "out");
  ASSERT_EQ(options.facts.size(), 2u);
  EXPECT_EQ(options.facts[0].first, "driver");
  EXPECT_EQ(options.facts[0].second, "a=b");
  EXPECT_EQ(options.facts[1].second, "");
  CheckOptions few;
  EXPECT_EQ(Parse({"--few"}, few), "");
  EXPECT_TRUE(few.few);
}

TEST(ArgumentsTest, WhatIsWrongIsNamed) {
  for (const std::vector<const char*>& wrong : std::vector<std::vector<const char*>>{{},
                                                                                     {"--few", "out"},
                                                                                     {"a", "b"},
                                                                                     {"--fact=x", "out"},
                                                                                     {"--fact==x", "out"},
                                                                                     {"--fast", "out"},
                                                                                     {"--sdpa=/nowhere", "out"}}) {
    CheckOptions options;
    EXPECT_NE(Parse(wrong, options), "") << (wrong.empty() ? "" : wrong[0]);
  }
}

TEST(ArgumentsTest, TorchsTimes) {
  const std::string path = std::string(testing::TempDir()) + "/sdpa.txt";
  std::ofstream(path) << "1 0.001\n8 2.5e-05\n";
  CheckOptions options;
  EXPECT_EQ(Parse({("--sdpa=" + path).c_str(), "out"}, options), "");
  ASSERT_EQ(options.sdpa.size(), 2u);
  EXPECT_EQ(options.sdpa[1].first, 8);
  EXPECT_EQ(options.sdpa[1].second, 2.5e-05);
  std::vector<std::pair<int, double>> sdpa;
  for (const char* wrong : {"", "1\n", "x 1\n", "1 0.5 3\n", "1 -1\n", "0 1\n", "1 nan\n", "1 1\n\n"}) {
    EXPECT_FALSE(ParseSdpa(wrong, sdpa)) << "'" << wrong << "'";
  }
}

TEST(ReportTest, JsonHoldsWhatWasAdded) {
  Report report;
  report.Fact("GPU", "a \"b\" \\ c\n|\x01");
  report.Add({"first", 1234.5, "us", "", 7});
  report.Add({"second | one", 1e-9, "GB/s", "copy", 0.25});
  report.Add({"third", NAN, "us", "copy", INFINITY});
  const nlohmann::json json = nlohmann::json::parse(report.Json());
  EXPECT_EQ(json["facts"]["GPU"], "a \"b\" \\ c\n|\x01");
  ASSERT_EQ(json["figures"].size(), 3u);
  EXPECT_EQ(json["figures"][0], (nlohmann::json{{"name", "first"}, {"value", 1234.5}, {"unit", "us"}}));
  EXPECT_EQ(json["figures"][1]["value"], 1e-9);
  EXPECT_EQ(json["figures"][1]["of"], "copy");
  EXPECT_EQ(json["figures"][1]["fraction"], 0.25);
  EXPECT_TRUE(json["figures"][2]["value"].is_null() && json["figures"][2]["fraction"].is_null());
  EXPECT_EQ(nlohmann::json::parse(Report().Json()),
            (nlohmann::json{{"facts", {}}, {"figures", nlohmann::json::array()}})
                .patch(R"([{"op":"replace","path":"/facts","value":{}}])"_json));
}

TEST(ReportTest, MarkdownHasARowForEach) {
  Report report;
  report.Fact("GPU", "x|y");
  report.Add({"first", 1234.5, "us", "", 7});
  report.Add({"second", 2, "GB/s", "copy", 0.25});
  EXPECT_EQ(report.Markdown(),
            "| fact | |\n|---|---|\n| GPU | x\\|y |\n\n"
            "| measured | value | unit | of | fraction |\n|---|---|---|---|---|\n"
            "| first | 1234.5 | us |  |  |\n| second | 2 | GB/s | copy | 0.25 |\n");
}

}  // namespace
}  // namespace hybridgen
