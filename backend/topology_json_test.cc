// Tests of the topology's JSON, and of the C function that hands it out.
#include "backend/topology_json.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "backend/hybridgen.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace hybridgen {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

TEST(TopologyJsonTest, UnknownIsNull) {
  Topology topology;
  topology.nodes.emplace_back();
  topology.dax_devices.emplace_back();
  topology.cxl_regions.emplace_back();
  topology.gpus.emplace_back();
  topology.nodes[0].huge_pages = {{2 << 20, std::nullopt, std::nullopt}};
  const Json json = Json::parse(ToJson(topology, {}));
  const Json& node = json["nodes"][0];
  for (const char* key : {"cpus", "total_bytes", "free_bytes", "read_megabytes_per_second", "read_nanoseconds",
                          "kernel_tier", "movable_only"}) {
    EXPECT_TRUE(node.at(key).is_null()) << key;
  }
  EXPECT_EQ(node["kind"], "unknown");
  EXPECT_EQ(node["speed"], "unknown");
  EXPECT_EQ(node["distances"], Json::object());
  EXPECT_TRUE(node["huge_pages"][0]["free_pages"].is_null());
  for (const char* key : {"target_node", "bytes", "read_nanoseconds"}) {
    EXPECT_TRUE(json["dax_devices"][0].at(key).is_null()) << key;
  }
  EXPECT_EQ(json["dax_devices"][0]["use"], "unknown");
  EXPECT_TRUE(json["cxl_regions"][0].at("start").is_null());
  EXPECT_TRUE(json["gpus"][0].at("node").is_null());
  EXPECT_TRUE(json["machine"].at("total_bytes").is_null());
}

TEST(TopologyJsonTest, WhatIsKnownIsTold) {
  Topology topology;
  MemoryNode node;
  node.id = 3;
  node.kind = MemoryKind::kCxl;
  node.kind_why = "memory of dax0.0";
  node.speed = RelativeSpeed::kSlower;
  node.has_cpus = NodeCpus::kNone;
  node.total_bytes = 4096;
  node.free_bytes = 0;
  node.distances = {{0, 20}, {3, 10}};
  node.performance = {16000, 302, "access1/"};
  node.kernel_tier = 27;
  node.movable_only = MovableOnly::kYes;
  topology.nodes = {node};
  topology.dax_devices = {{"dax0.0", MemoryKind::kCxl, "\xff", DaxUse::kMapped, 3, 8192, {}, {}}};
  topology.gpus = {{"0000:18:00.0", "0x10de", "0x2330", 1}};
  const Json json = Json::parse(ToJson(topology, {}));
  EXPECT_EQ(json["version"], 1);
  const Json& told = json["nodes"][0];
  EXPECT_EQ(told["kind"], "cxl");
  EXPECT_EQ(told["kind_evidence"], "memory of dax0.0");
  EXPECT_EQ(told["speed"], "slower");
  EXPECT_EQ(told["cpus"], Json::array()) << "known to have none";
  EXPECT_EQ(told["free_bytes"], 0) << "known to be full";
  EXPECT_EQ(told["distances"], (Json{{"0", 20}, {"3", 10}}));
  EXPECT_EQ(told["read_megabytes_per_second"], 16000);
  EXPECT_EQ(told["kernel_tier"], 27);
  EXPECT_EQ(told["movable_only"], true);
  EXPECT_EQ(json["dax_devices"][0]["use"], "mapped");
  EXPECT_EQ(json["dax_devices"][0]["target_node"], 3);
  EXPECT_EQ(json["gpus"][0]["node"], 1);
}

TEST(TopologyJsonTest, MeasurementsAndAdvice) {
  Topology topology;
  for (const MemoryKind kind : {MemoryKind::kDram, MemoryKind::kCxl, MemoryKind::kDram}) {
    MemoryNode node;
    node.id = static_cast<int>(topology.nodes.size());
    node.kind = kind;
    node.free_bytes = 1 << 30;
    topology.nodes.push_back(node);
  }
  topology.nodes[2].kind = MemoryKind::kHbm;
  NodeStates states;
  ReadSpeed speed;
  speed.bytes_per_second = 300.0004e9;
  speed.nanoseconds = 99.6;
  speed.range_bytes = 1 << 26;
  speed.threads = 32;
  speed.samples = 9;
  speed.clean_samples = 8;
  speed.seconds = 0.25;
  states[0].speed = speed;
  states[0].budget.bytes = 8 << 20;
  speed.bytes_per_second = 30e9;
  speed.disturbed = true;
  states[1].speed = speed;
  states[2].speed = absl::ResourceExhaustedError("no room");
  topology.dax_devices = {{"dax0.0", MemoryKind::kCxl, "", DaxUse::kMapped, 3, 8192, {}, {}},
                          {"dax0.1", MemoryKind::kCxl, "", DaxUse::kMapped, 3, 8192, {}, {}}};
  speed.bytes_per_second = 20e9;
  speed.disturbed = false;
  const DeviceSpeeds devices = {{"dax0.0", speed}, {"dax0.1", absl::FailedPreconditionError("held")}};
  const Json json = Json::parse(ToJson(topology, states, devices));
  EXPECT_EQ(json["dax_devices"][0]["measured"]["read_megabytes_per_second"], 20000);
  EXPECT_TRUE(json["dax_devices"][1]["measured"].is_null());
  EXPECT_EQ(json["nodes"][0]["measured"], (Json{{"read_megabytes_per_second", 300000},
                                                {"read_nanoseconds", 100},
                                                {"threads", 32},
                                                {"range_bytes", 1 << 26},
                                                {"samples", 9},
                                                {"clean_samples", 8},
                                                {"disturbed", false},
                                                {"seconds", 0.25}}));
  EXPECT_EQ(json["nodes"][1]["measured"]["disturbed"], true);
  EXPECT_TRUE(json["nodes"][2]["measured"].is_null());
  EXPECT_EQ(json["measurement"],
            "DRAM node 0: 300.0 GB/s, 100 ns; CXL node 1: 30.0 GB/s, 100 ns (disturbed); CXL device dax0.0: 20.0 "
            "GB/s, 100 ns; measured in 0.75 s with 32 threads");
  const Json& advice = json["advice"];
  EXPECT_EQ(advice["dram"]["nodes"], Json({0}));
  EXPECT_EQ(advice["dram"]["bytes"], 4 << 20);
  EXPECT_EQ(advice["dram"]["source"], "measured");
  EXPECT_TRUE(advice["dram"]["device"].is_null());
  EXPECT_EQ(advice["cxl"]["nodes"], Json({1}));
  EXPECT_TRUE(advice["cxl"]["bytes"].is_null());
  EXPECT_EQ(advice["cxl"]["read_megabytes_per_second"], 30000);
  EXPECT_EQ(advice["placement"], "proportional");
  EXPECT_NEAR(advice["value_share_on_cxl"].get<double>(), 60.0 / 330, 1e-6);
  EXPECT_EQ(advice["settings"], (Json{{"HYBRIDGEN_DRAM_NODE", "0"}, {"HYBRIDGEN_CXL_NODE", "1"}}));
  EXPECT_EQ(advice["warnings"].size(), 4u)
      << "one of three is taken; node 1 disturbed; node 2 and dax0.1 not measured: " << advice["warnings"];
}

TEST(TopologyJsonTest, AdviceOnAnUnknownMachineIsNull) {
  const Json json = Json::parse(ToJson(Topology(), {}));
  EXPECT_TRUE(json.at("measurement").is_null());
  const Json& advice = json["advice"];
  for (const char* key : {"placement", "value_share_on_cxl"}) EXPECT_TRUE(advice.at(key).is_null()) << key;
  for (const char* tier : {"dram", "cxl"}) {
    EXPECT_EQ(advice[tier]["nodes"], Json::array());
    EXPECT_EQ(advice[tier]["source"], "unknown");
    EXPECT_TRUE(advice[tier].at("bytes").is_null());
    EXPECT_FALSE(advice[tier]["evidence"].get<std::string>().empty());
  }
  EXPECT_EQ(advice["settings"], Json::object());
}

// A root with one node of DRAM and one without CPUs.
class TopologyAbiTest : public ::testing::Test {
 protected:
  TopologyAbiTest() {
    std::string pattern = ::testing::TempDir() + "/topology_XXXXXX";
    root_ = mkdtemp(pattern.data());
    Write("has_memory", "0-1\n");
    for (const char* node : {"node0", "node1"}) fs::create_directories(root_ + "/sys/devices/system/node/" + node);
    Write("node0/cpulist", "0-3\n");
    Write("node1/cpulist", "\n");
  }
  ~TopologyAbiTest() override { fs::remove_all(root_); }

  void Write(const std::string& file, const std::string& content) {
    const fs::path path = root_ + "/sys/devices/system/node/" + file;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << content;
  }

  std::string root_;
};

TEST_F(TopologyAbiTest, TheBufferConvention) {
  size_t needed = 0;
  ASSERT_EQ(hg_topology_json(root_.c_str(), "1:cxl", nullptr, 0, &needed), HG_OK) << hg_last_error();
  std::string text(needed, 'x');
  ASSERT_EQ(hg_topology_json(root_.c_str(), "1:cxl", text.data(), text.size(), &needed), HG_OK);
  EXPECT_EQ(needed, text.size());
  EXPECT_EQ(text.back(), '\0');
  text.pop_back();
  const Json json = Json::parse(text);
  EXPECT_EQ(json["nodes"][0]["kind"], "dram");
  EXPECT_EQ(json["nodes"][1]["kind"], "cxl");
  std::string small(8, 'x');
  ASSERT_EQ(hg_topology_json(root_.c_str(), "1:cxl", small.data(), 5, &needed), HG_OK);
  EXPECT_EQ(small, text.substr(0, 4) + std::string("\0xxx", 4)) << "no byte after the capacity";
  EXPECT_EQ(needed, text.size() + 1);
}

TEST_F(TopologyAbiTest, WrongArgumentsAreRefusedByName) {
  size_t needed = 0;
  const auto refused = [](hg_status status, const char* words) {
    return status == HG_INVALID_ARGUMENT && std::string(hg_last_error()).find(words) != std::string::npos;
  };
  EXPECT_TRUE(refused(hg_topology_json(root_.c_str(), nullptr, nullptr, 0, nullptr), "needed is null"));
  EXPECT_TRUE(refused(hg_topology_json(root_.c_str(), nullptr, nullptr, 9, &needed), "buffer is null"));
  EXPECT_TRUE(refused(hg_topology_json("/nonexistent", nullptr, nullptr, 0, &needed), "root is '/nonexistent'"));
  EXPECT_TRUE(refused(hg_topology_json(root_.c_str(), "1:tape", nullptr, 0, &needed), "item '1:tape'"));
  EXPECT_TRUE(refused(hg_topology_json(root_.c_str(), "4:cxl", nullptr, 0, &needed), "node 4 is named"));
}

TEST(TopologyJsonTest, ThisMachine) {
  size_t needed = 0;
  ASSERT_EQ(hg_topology_json(nullptr, nullptr, nullptr, 0, &needed), HG_OK) << hg_last_error();
  EXPECT_GT(needed, 1u);
}

}  // namespace
}  // namespace hybridgen
