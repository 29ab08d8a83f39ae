// hg_topology_json needs no backend; its arguments are checked all the same.
#include <string>

#include "tests/abi/client.h"

namespace hybridgen {
namespace {

TEST(TopologyTest, ThisMachine) {
  size_t needed = 0;
  ASSERT_TRUE(Succeeds(TheLibrary().topology_json(nullptr, nullptr, nullptr, 0, &needed)));
  std::string json(needed + 4096, 'x');
  ASSERT_TRUE(Succeeds(TheLibrary().topology_json(nullptr, nullptr, json.data(), json.size(), &needed)));
  ASSERT_LE(needed, json.size());
  EXPECT_EQ(json[0], '{');
  EXPECT_EQ(json[needed - 1], '\0');
  EXPECT_EQ(json[needed], 'x');
}

TEST(TopologyTest, SmallBuffersHoldWhatFits) {
  size_t needed = 0;
  std::string small(8, 'x');
  EXPECT_TRUE(Succeeds(TheLibrary().topology_json(nullptr, nullptr, small.data(), 4, &needed)));
  EXPECT_GT(needed, 4u);
  EXPECT_EQ(small[3], '\0');
  EXPECT_EQ(small.substr(4), "xxxx");
}

TEST(TopologyTest, BadArguments) {
  size_t needed = 0;
  EXPECT_TRUE(Fails(TheLibrary().topology_json(nullptr, nullptr, nullptr, 0, nullptr), HG_INVALID_ARGUMENT,
                    {"needed", "null"}));
  EXPECT_TRUE(Fails(TheLibrary().topology_json(nullptr, nullptr, nullptr, 9, &needed), HG_INVALID_ARGUMENT,
                    {"buffer", "null"}));
  for (const char* kinds : {"2", "cxl", "0:tape", "x:cxl", "-1:cxl", "99999999999999999999:cxl", ":", ",,,"}) {
    SCOPED_TRACE(kinds);
    EXPECT_TRUE(
        Fails(TheLibrary().topology_json(nullptr, kinds, nullptr, 0, &needed), HG_INVALID_ARGUMENT, {"accepted"}));
  }
}

TEST(TopologyTest, MeasuredIsTheSameAndMore) {
  size_t needed = 0;
  EXPECT_TRUE(Fails(TheLibrary().topology_measured_json(nullptr, nullptr, 0, nullptr), HG_INVALID_ARGUMENT,
                    {"needed", "null"}));
  EXPECT_TRUE(Fails(TheLibrary().topology_measured_json(nullptr, nullptr, 9, &needed), HG_INVALID_ARGUMENT,
                    {"buffer", "null"}));
  EXPECT_TRUE(
      Fails(TheLibrary().topology_measured_json("0:tape", nullptr, 0, &needed), HG_INVALID_ARGUMENT, {"accepted"}));
  std::string json(1 << 20, 'x');
  ASSERT_TRUE(Succeeds(TheLibrary().topology_measured_json(nullptr, json.data(), json.size(), &needed)));
  ASSERT_LE(needed, json.size());
  EXPECT_NE(json.find("\"advice\""), std::string::npos);
}

// A root with nothing in it is a machine about which nothing is known, or an error; never a crash.
TEST(TopologyTest, EmptyRoot) {
  size_t needed = 0;
  const hg_status status = TheLibrary().topology_json("/nonexistent", nullptr, nullptr, 0, &needed);
  EXPECT_TRUE(status == HG_OK || std::string(TheLibrary().last_error()).size() > 20);
}

}  // namespace
}  // namespace hybridgen
