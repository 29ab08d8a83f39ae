// Tests of the advice: recorded machines, measurements that change it, what is unknown, and 1,000 damaged trees.
#include "backend/tier_advice.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "memory/fake_tree.h"
#include "memory/topology.h"
#include "memory/tree_mutator.h"

namespace hybridgen {
namespace {

using Ids = std::vector<int>;
using Settings = std::vector<std::pair<std::string, std::string>>;

struct Machine {
  Topology topology;
  NodeStates states;
};

Machine Read(const TreeEntries& entries, const std::string& overrides = "") {
  FakeTree tree;
  WriteTree(entries, tree);
  Machine machine;
  const absl::StatusOr<Topology> topology = ReadTopology(tree.roots(), overrides);
  EXPECT_TRUE(topology.ok()) << topology.status();
  if (topology.ok()) machine.topology = *topology;
  for (const MemoryNode& node : machine.topology.nodes) {
    machine.states[node.id].budget = ReadMemoryBudget(node.id, tree.roots());
  }
  return machine;
}

Machine Read(const std::string& name, const std::string& overrides = "") {
  return Read(ReadRecordedTree(name), overrides);
}

Advice Advise(const Machine& machine) { return Advise(machine.topology, machine.states); }

ReadSpeed Speed(double gigabytes_per_second, double nanoseconds) {
  ReadSpeed speed;
  speed.bytes_per_second = gigabytes_per_second * 1e9;
  speed.nanoseconds = nanoseconds;
  speed.threads = 8;
  speed.samples = 9;
  speed.clean_samples = 9;
  return speed;
}

// True if some warning holds all the words.
bool Warns(const Advice& advice, const std::vector<std::string>& words) {
  return std::any_of(advice.warnings.begin(), advice.warnings.end(), [&](const std::string& warning) {
    return std::all_of(words.begin(), words.end(),
                       [&](const std::string& word) { return absl::StrContains(warning, word); });
  });
}

std::string Text(const Advice& advice) { return absl::StrJoin(advice.warnings, "\n"); }

TEST(TierAdviceTest, OneNodeNeedsNothing) {
  for (const char* name : {"one-6.1", "one-6.12"}) {
    const Machine machine = Read(name);
    const Advice advice = Advise(machine);
    EXPECT_EQ(advice.dram.nodes, Ids{0});
    EXPECT_EQ(advice.dram.bytes, *machine.states.at(0).budget.bytes / 2);
    EXPECT_EQ(advice.dram.source, SpeedSource::kUnknown);
    EXPECT_TRUE(advice.cxl.nodes.empty() && advice.cxl.device.empty());
    EXPECT_EQ(advice.cxl.why, "no memory is known to be CXL");
    EXPECT_FALSE(advice.spread.has_value());
    EXPECT_TRUE(advice.settings.empty());
    EXPECT_EQ(advice.warnings.size(), 1u) << Text(advice);
    EXPECT_TRUE(Warns(advice, {"transparent huge pages are off", "madvise"}));
  }
}

TEST(TierAdviceTest, SlowMemoryOfUnknownKindIsNotUsed) {
  for (const char* name : {"nohmat-6.1", "nohmat-6.12", "cxl-6.1", "cxl-6.12"}) {
    const Advice advice = Advise(Read(name));
    const bool slower = absl::StartsWith(name, "cxl");
    EXPECT_EQ(advice.dram.nodes, Ids{0}) << name;
    EXPECT_TRUE(advice.cxl.nodes.empty()) << name;
    EXPECT_FALSE(advice.value_share_on_cxl.has_value());
    EXPECT_TRUE(Warns(advice, {"node 1 is not used", slower ? "slower" : "unknown)", "HYBRIDGEN_TOPOLOGY=1:cxl"}))
        << name << ": " << Text(advice);
    EXPECT_EQ(advice.settings, (Settings{{"HYBRIDGEN_DRAM_NODE", "0"}}));
  }
}

TEST(TierAdviceTest, TheOperatorsWordMakesATier) {
  const Machine machine = Read("cxl-6.12", "1:cxl");
  const Advice advice = Advise(machine);
  EXPECT_EQ(advice.cxl.nodes, Ids{1});
  EXPECT_EQ(advice.cxl.why, "set by the operator");
  EXPECT_EQ(advice.cxl.source, SpeedSource::kFirmware);
  EXPECT_EQ(advice.cxl.bytes_per_second, 25600e6);
  EXPECT_EQ(advice.cxl.nanoseconds, 250);
  EXPECT_EQ(advice.cxl.bytes, *machine.states.at(1).budget.bytes / 2);
  EXPECT_EQ(advice.spread, SpreadKind::kProportional);
  EXPECT_NEAR(*advice.value_share_on_cxl, 2 * 25.6 / (25.6 + 204.8), 1e-12);
  EXPECT_FALSE(Warns(advice, {"movable"})) << Text(advice);
  EXPECT_TRUE(absl::StrContains(advice.spread_why, "firmware")) << advice.spread_why;
  EXPECT_TRUE(absl::StrContains(advice.spread_why, "1.12 times")) << "(25.6 + 204.8) / 204.8: " << advice.spread_why;
  const std::string size = absl::StrCat(*advice.cxl.bytes >> 20, "M");
  EXPECT_EQ(advice.settings,
            (Settings{{"HYBRIDGEN_DRAM_NODE", "0"}, {"HYBRIDGEN_CXL_NODE", "1"}, {"HYBRIDGEN_CXL", size}}));
  // Without firmware's numbers the same memory is placed by role.
  const Advice silent = Advise(Read("nohmat-6.12", "1:cxl"));
  EXPECT_EQ(silent.cxl.nodes, Ids{1});
  EXPECT_EQ(silent.cxl.source, SpeedSource::kUnknown);
  EXPECT_EQ(silent.spread, SpreadKind::kRolePriority);
  EXPECT_FALSE(silent.value_share_on_cxl.has_value());
}

TEST(TierAdviceTest, HbmIsNoTier) {
  for (const char* name : {"hbm-cxl-6.1", "hbm-cxl-6.12"}) {
    const Advice advice = Advise(Read(name));
    EXPECT_EQ(advice.dram.nodes, Ids{0});
    EXPECT_TRUE(advice.cxl.nodes.empty());
    EXPECT_TRUE(Warns(advice, {"node 2 is not used"}));
    EXPECT_FALSE(Warns(advice, {"node 1"})) << "its kind is known: " << Text(advice);
  }
}

TEST(TierAdviceTest, TwoSockets) {
  const Machine machine = Read("2s-cxl-6.12", "2:cxl");
  Advice advice = Advise(machine);
  EXPECT_EQ(advice.dram.nodes, (Ids{0, 1}));
  EXPECT_EQ(advice.dram.bytes_per_second, 2 * 204800e6);
  EXPECT_TRUE(Warns(advice, {"DRAM is on nodes 0, 1", "HYBRIDGEN_DRAM_NODE"}));
  EXPECT_EQ(advice.settings[0].first, "HYBRIDGEN_CXL_NODE");
  EXPECT_NEAR(*advice.value_share_on_cxl, 2 * 25.6 / (25.6 + 2 * 204.8), 1e-12);

  Machine half_known = machine;
  half_known.topology.nodes[1].performance = Performance();
  advice = Advise(half_known);
  EXPECT_EQ(advice.dram.source, SpeedSource::kUnknown) << "half of a tier's rate is none";
  EXPECT_EQ(advice.spread, SpreadKind::kRolePriority);

  Machine with_gpu = machine;
  with_gpu.topology.gpus = {{"0000:99:00.0", "0x1a03", "0x2000", 0}, {"0000:18:00.0", "0x10de", "0x2330", 1}};
  advice = Advise(with_gpu);
  EXPECT_EQ(advice.dram.nodes, Ids{1}) << "next to the GPU; a management console is none";
  EXPECT_TRUE(absl::StrContains(advice.dram.why, "0000:18:00.0"));
  EXPECT_EQ(advice.settings[0], (std::pair<std::string, std::string>("HYBRIDGEN_DRAM_NODE", "1")));
  with_gpu.topology.gpus.push_back({"0000:3a:00.0", "0x10de", "0x2330", 0});
  EXPECT_EQ(Advise(with_gpu).dram.nodes, (Ids{0, 1})) << "a GPU on each";
  with_gpu.topology.gpus = {{"0000:18:00.0", "0x10de", "0x2330", 2}};
  EXPECT_TRUE(Warns(Advise(with_gpu), {"GPU 0000:18:00.0 is on node 2, the DRAM tier on nodes 0, 1"}));
}

TEST(TierAdviceTest, ACxlDeviceAsNodeAndMapped) {
  const Machine machine = Read("cxltype3-6.12");
  Advice advice = Advise(machine);
  EXPECT_EQ(advice.cxl.nodes, Ids{1});
  EXPECT_TRUE(absl::StrContains(advice.cxl.why, "ACPI0017"));
  EXPECT_NEAR(*advice.value_share_on_cxl, 2 * 16.0 / (16.0 + 204.8), 1e-12);
  EXPECT_TRUE(Warns(advice, {"only movable", "daxctl online-memory --no-movable dax0.0"})) << Text(advice);
  EXPECT_EQ(advice.settings[1], (std::pair<std::string, std::string>("HYBRIDGEN_CXL_NODE", "1")));

  advice = Advise(Read("cxltype3-kernel-6.12"));
  EXPECT_EQ(advice.cxl.nodes, Ids{1});
  EXPECT_FALSE(Warns(advice, {"movable"})) << Text(advice);
  EXPECT_TRUE(Advise(Read("cxltype3-persistent-6.12")).cxl.nodes.empty()) << "is no tier";

  Machine mapped = Read("cxltype3-devdax-6.12");
  advice = Advise(mapped);
  EXPECT_TRUE(advice.cxl.nodes.empty());
  EXPECT_EQ(advice.cxl.device, "dax0.0");
  EXPECT_EQ(advice.cxl.bytes, *mapped.topology.dax_devices[0].bytes / 2);
  EXPECT_EQ(advice.spread, SpreadKind::kRolePriority) << "nobody knows how fast it reads before it is bound";
  const std::string size = absl::StrCat(*advice.cxl.bytes >> 20, "M");
  EXPECT_EQ(advice.settings, (Settings{{"HYBRIDGEN_CXL_DEVICE", "/dev/dax0.0"}, {"HYBRIDGEN_CXL", size}}));
  mapped.states[0].speed = Speed(150, 95);
  advice = Advise(mapped.topology, mapped.states, {{"dax0.0", Speed(15, 310)}});
  EXPECT_EQ(advice.cxl.source, SpeedSource::kMeasured);
  EXPECT_EQ(advice.cxl.nanoseconds, 310);
  EXPECT_NEAR(*advice.value_share_on_cxl, 2 * 15.0 / (15.0 + 150), 1e-12);
  advice = Advise(mapped.topology, mapped.states, {{"dax0.0", absl::FailedPreconditionError("held")}});
  EXPECT_TRUE(Warns(advice, {"/dev/dax0.0 was not measured: held"}));
  EXPECT_EQ(advice.spread, SpreadKind::kRolePriority);
  mapped.topology.dax_devices[0].performance = {16000, 302, "access1/"};
  advice = Advise(mapped);
  EXPECT_EQ(advice.cxl.nanoseconds, 302);
  EXPECT_NEAR(*advice.value_share_on_cxl, 2 * 16.0 / (16.0 + 204.8), 1e-12);

  mapped.topology.dax_devices[0].use = DaxUse::kUnknown;
  advice = Advise(mapped);
  EXPECT_TRUE(advice.cxl.device.empty());
  EXPECT_TRUE(Warns(advice, {"/dev/dax0.0 is CXL but has no driver"}));
  mapped.topology.dax_devices[0].use = DaxUse::kMapped;
  mapped.topology.dax_devices[0].kind = MemoryKind::kPersistent;
  EXPECT_TRUE(Advise(mapped).cxl.device.empty());
  mapped.topology.dax_devices[0].kind = MemoryKind::kUnknown;
  EXPECT_TRUE(Advise(mapped).cxl.device.empty());
  EXPECT_TRUE(Warns(Advise(mapped), {"/dev/dax0.0 is not used, its kind is unknown"}));
}

TEST(TierAdviceTest, OfSeveralCxlMemoriesTheFastestIsTaken) {
  Machine machine = Read("hbm-cxl-6.12", "1:cxl,2:cxl");  // node 1 reads at 819.2 GB/s
  Advice advice = Advise(machine);
  EXPECT_EQ(advice.cxl.nodes, Ids{1});
  EXPECT_TRUE(Warns(advice, {"node 1 is taken, node 2 not"})) << Text(advice);
  machine.states[1].speed = Speed(5, 400);
  EXPECT_EQ(Advise(machine).cxl.nodes, Ids{1}) << "firmware's word for node 2 is no measurement: the nearest";
  machine.states[2].speed = Speed(20, 250);
  EXPECT_EQ(Advise(machine).cxl.nodes, Ids{2}) << "what was measured counts before what firmware says";
  machine = Read("hbm-cxl-6.12", "1:cxl,2:cxl");
  for (MemoryNode& node : machine.topology.nodes) node.performance = Performance();
  EXPECT_EQ(Advise(machine).cxl.nodes, Ids{1}) << "13 from DRAM, not 24";
  machine.topology.nodes[1].distances[0] = 30;
  EXPECT_EQ(Advise(machine).cxl.nodes, Ids{2});
}

TEST(TierAdviceTest, MeasurementsReplaceFirmware) {
  Machine machine = Read("cxltype3-6.12");
  machine.states[0].speed = Speed(150, 95);
  Advice advice = Advise(machine);
  EXPECT_EQ(advice.dram.source, SpeedSource::kMeasured);
  EXPECT_EQ(advice.cxl.source, SpeedSource::kFirmware);
  EXPECT_NEAR(*advice.value_share_on_cxl, 2 * 16.0 / (16.0 + 204.8), 1e-12) << "one source for both";
  machine.states[1].speed = Speed(10, 320);
  advice = Advise(machine);
  EXPECT_EQ(advice.cxl.source, SpeedSource::kMeasured);
  EXPECT_EQ(advice.cxl.bytes_per_second, 10e9);
  EXPECT_EQ(advice.cxl.nanoseconds, 320);
  EXPECT_NEAR(*advice.value_share_on_cxl, 2 * 10.0 / (10.0 + 150), 1e-12);
  EXPECT_TRUE(absl::StrContains(advice.spread_why, "measured"));
  EXPECT_FALSE(Warns(advice, {"firmware says"})) << "within a factor of two: " << Text(advice);
}

TEST(TierAdviceTest, MeasurementsThatSurpriseAreTold) {
  Machine machine = Read("cxltype3-6.12");
  ReadSpeed slow = Speed(90, 100);
  slow.disturbed = true;
  slow.clean_samples = 2;
  machine.states[0].speed = slow;
  machine.states[1].speed = Speed(85, 130);
  Advice advice = Advise(machine);
  EXPECT_TRUE(Warns(advice, {"DRAM node 0 was measured at 90.0 GB/s with 8 threads, firmware says 204.8 GB/s"}));
  EXPECT_TRUE(Warns(advice, {"disturbed the measurement of DRAM node 0: 2 of 9"}));
  EXPECT_TRUE(Warns(advice, {"CXL node 1 was measured as fast as DRAM"}));
  machine.states[1].speed = absl::ResourceExhaustedError("no room");
  advice = Advise(machine);
  EXPECT_TRUE(Warns(advice, {"CXL node 1 was not measured: no room"}));
  EXPECT_EQ(advice.cxl.source, SpeedSource::kFirmware);
  Machine unknown = Read("nohmat-6.12");
  unknown.states[1].speed = Speed(12, 260);
  advice = Advise(unknown);
  EXPECT_TRUE(Warns(advice, {"node 1 is not used", "measured: 12.0 GB/s, 260 ns"})) << Text(advice);
  EXPECT_TRUE(advice.cxl.nodes.empty()) << "slow is not CXL";
}

TEST(TierAdviceTest, UnknownSizesStayUnknown) {
  Machine machine = Read("cxl-6.12", "1:cxl");
  machine.topology.nodes[1].free_bytes = std::nullopt;
  Advice advice = Advise(machine);
  EXPECT_FALSE(advice.cxl.bytes.has_value()) << "the machine's free memory may lie elsewhere";
  EXPECT_EQ(advice.settings.back().first, "HYBRIDGEN_CXL_NODE");
  machine.states.clear();
  EXPECT_FALSE(Advise(machine).dram.bytes.has_value());
}

TEST(TierAdviceTest, AnUnknownMachine) {
  Advice advice = Advise(Topology(), {});
  EXPECT_TRUE(advice.dram.nodes.empty());
  EXPECT_EQ(advice.dram.why, "the kernel lists no memory nodes");
  EXPECT_TRUE(advice.settings.empty());
  Topology topology;
  topology.nodes.emplace_back();
  advice = Advise(topology, {});
  EXPECT_EQ(advice.dram.why, "no node is known to be DRAM");
  EXPECT_TRUE(Warns(advice, {"node 0 is not used"}));
}

// What is told of a damaged machine next to the whole one's truth.
void ExpectNoLie(const Machine& told, const Machine& truth) {
  const Advice advice = Advise(told);
  const auto real = [&truth](int id) {
    return std::find_if(truth.topology.nodes.begin(), truth.topology.nodes.end(),
                        [id](const MemoryNode& node) { return node.id == id; });
  };
  const auto expect = [&](const TierAdvice& tier, MemoryKind kind, double& rate) {
    for (const int node : tier.nodes) {
      ASSERT_NE(real(node), truth.topology.nodes.end());
      EXPECT_EQ(real(node)->kind, kind);
      rate += real(node)->performance.read_megabytes_per_second.value_or(0) * 1e6;
    }
    if (!tier.device.empty()) {
      EXPECT_EQ(truth.topology.dax_devices.at(0).kind, kind);
      rate += truth.topology.dax_devices[0].performance.read_megabytes_per_second.value_or(0) * 1e6;
    }
    EXPECT_EQ(tier.bytes_per_second.has_value(), tier.source != SpeedSource::kUnknown);
    EXPECT_NE(tier.source, SpeedSource::kMeasured) << "nothing was measured";
    if (tier.bytes_per_second) {
      EXPECT_EQ(*tier.bytes_per_second, rate);
    }
    if (tier.bytes) {
      EXPECT_LE(2 * *tier.bytes, *truth.topology.machine_total_bytes);
    }
    EXPECT_FALSE(tier.why.empty());
  };
  double dram = 0;
  double cxl = 0;
  expect(advice.dram, MemoryKind::kDram, dram);
  expect(advice.cxl, MemoryKind::kCxl, cxl);
  EXPECT_EQ(advice.spread == SpreadKind::kProportional, advice.value_share_on_cxl.has_value());
  if (advice.value_share_on_cxl) {
    EXPECT_NEAR(*advice.value_share_on_cxl, 2 * cxl / (cxl + dram), 1e-9);
  }
  for (const auto& [name, value] : advice.settings) {
    EXPECT_TRUE(absl::StartsWith(name, "HYBRIDGEN_") && !value.empty()) << name << "=" << value;
  }
}

TEST(TierAdviceTest, DamagedTreesNeverMislead) {
  const uint64_t seed = MutationSeed("//backend:tier_advice_test");
  const std::vector<TreeEntries> originals = TreesToDamage();
  std::vector<Machine> truths;
  for (const TreeEntries& entries : originals) truths.push_back(Read(entries));
  TreeMutator mutator(seed);
  int with_cxl = 0;
  int without = 0;
  for (int i = 0; i < 1000; ++i) {
    // Every second one of the last four, which have a CXL device.
    const size_t which = i % 2 == 0 ? mutator.Below(originals.size()) : originals.size() - 1 - mutator.Below(4);
    TreeEntries entries = originals[which];
    std::string history = absl::StrCat("tree ", i, " of original ", which);
    for (size_t damages = 1 + mutator.Below(6); damages > 0; --damages) {
      absl::StrAppend(&history, "\n  ", mutator.Damage(entries));
    }
    SCOPED_TRACE(history);
    const Machine told = Read(entries);
    ExpectNoLie(told, truths[which]);
    const Advice advice = Advise(told);
    ++(advice.cxl.nodes.empty() && advice.cxl.device.empty() ? without : with_cxl);
    if (HasFailure()) FAIL() << "seed " << seed;
  }
  EXPECT_GT(with_cxl, 50) << "the damage leaves enough to advise";
  EXPECT_GT(without, 300);
}

}  // namespace
}  // namespace hybridgen
