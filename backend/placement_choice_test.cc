// Tests of the choice of a placement policy.
#include "backend/placement_choice.h"

#include <string>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

BackendOptions TwoTiers(PlacementChoice placement) {
  BackendOptions options;
  options.dram_bytes = options.cxl_bytes = 1 << 30;
  options.placement = placement;
  return options;
}

// DRAM 300 GB/s, CXL 30 GB/s.
absl::StatusOr<double> Fast(Tier tier) { return tier == Tier::kDram ? 300e9 : 30e9; }

absl::StatusOr<double> NotAsked(Tier tier) {
  ADD_FAILURE() << "measures " << TierName(tier) << " although nothing depends on it";
  return absl::InternalError("not asked");
}

TEST(PlacementChoiceTest, WhatIsConfiguredIsTakenUnmeasured) {
  EXPECT_EQ(ChoosePlacement(TwoTiers(PlacementChoice::kRole), 1, 1, NotAsked)->policy, PlacementPolicy::kRolePriority);
  BackendOptions options = TwoTiers(PlacementChoice::kInterleave);
  options.interleave_dram_weight = 3;
  const ChosenPlacement interleave = ChoosePlacement(options, 1, 1, NotAsked).value();
  EXPECT_EQ(interleave.policy, PlacementPolicy::kInterleave);
  EXPECT_EQ(interleave.reason, "weights 3 (DRAM) and 1 (CXL)");
}

TEST(PlacementChoiceTest, OneTierHasNothingToChoose) {
  for (const PlacementChoice placement : {PlacementChoice::kAuto, PlacementChoice::kProportional}) {
    BackendOptions options = TwoTiers(placement);
    options.cxl_bytes = 0;
    EXPECT_EQ(ChoosePlacement(options, 1, 1, NotAsked)->policy, PlacementPolicy::kRolePriority);
    options.cxl_bytes = 1;
    options.dram_bytes = 0;
    EXPECT_EQ(ChoosePlacement(options, 1, 1, NotAsked)->policy, PlacementPolicy::kRolePriority);
  }
}

TEST(PlacementChoiceTest, ARealTierIsMeasuredAndSpread) {
  for (const PlacementChoice placement : {PlacementChoice::kAuto, PlacementChoice::kProportional}) {
    for (const bool device : {false, true}) {
      BackendOptions options = TwoTiers(placement);
      if (device) {
        options.cxl_device = "/dev/dax0.0";
      } else {
        options.cxl_node = 1;
      }
      const ChosenPlacement chosen = ChoosePlacement(options, 100, 100, Fast).value();
      EXPECT_EQ(chosen.policy, PlacementPolicy::kProportional);
      EXPECT_NEAR(chosen.value_share_on_cxl, 2.0 * 30 / 330, 1e-12);
      EXPECT_EQ(chosen.reason, "DRAM 300.0 GB/s measured, CXL 30.0 GB/s measured");
    }
  }
}

TEST(PlacementChoiceTest, PacedRatesAreTakenAsGiven) {
  BackendOptions options = TwoTiers(PlacementChoice::kAuto);
  options.dram_gigabytes_per_second = 8;
  options.cxl_gigabytes_per_second = 2;
  const ChosenPlacement chosen = ChoosePlacement(options, 100, 100, NotAsked).value();
  EXPECT_NEAR(chosen.value_share_on_cxl, 0.4, 1e-12);
  EXPECT_EQ(chosen.reason, "DRAM 8.0 GB/s paced, CXL 2.0 GB/s paced");
}

TEST(PlacementChoiceTest, PlainMemoryHasNoSpeedOfItsOwn) {
  const ChosenPlacement chosen = ChoosePlacement(TwoTiers(PlacementChoice::kAuto), 1, 1, NotAsked).value();
  EXPECT_EQ(chosen.policy, PlacementPolicy::kRolePriority);
  EXPECT_NE(chosen.reason.find("plain memory"), std::string::npos) << chosen.reason;
  const absl::Status status = ChoosePlacement(TwoTiers(PlacementChoice::kProportional), 1, 1, NotAsked).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("accepted: a CXL node or device, or cxl_gigabytes_per_second"), std::string::npos);
}

TEST(PlacementChoiceTest, WhatCannotBeMeasuredIsAnErrorOnlyWhereItWasAskedFor) {
  const MeasureTier broken = [](Tier) { return absl::ResourceExhaustedError("no room on node 1"); };
  BackendOptions options = TwoTiers(PlacementChoice::kAuto);
  options.cxl_node = 1;
  const ChosenPlacement chosen = ChoosePlacement(options, 1, 1, broken).value();
  EXPECT_EQ(chosen.policy, PlacementPolicy::kRolePriority);
  EXPECT_EQ(chosen.reason, "bandwidths unknown: no room on node 1");
  options.placement = PlacementChoice::kProportional;
  EXPECT_EQ(ChoosePlacement(options, 1, 1, broken).status().code(), absl::StatusCode::kResourceExhausted);
}

// Real memory: a few MiB of this machine.
TEST(PlacementChoiceTest, MeasuresThisMachine) {
  BackendOptions options = TwoTiers(PlacementChoice::kProportional);
  options.num_threads = 1;
  HeadGroups emulated;  // two groups on one memory: it is counted once
  emulated.count = 2;
  emulated.emulated = true;
  emulated.nodes = {-1, -1};
  for (const HeadGroups& groups : {HeadGroups(), emulated}) {
    const absl::StatusOr<double> rate = MeasureTierSpeed(options, groups, Tier::kDram);
    ASSERT_TRUE(rate.ok()) << rate.status();
    EXPECT_GT(*rate, 0);
  }
  HeadGroups nodes;
  nodes.count = 2;
  nodes.nodes = {0, 1000};
  nodes.cpus = {{0}, {0}};
  EXPECT_FALSE(MeasureTierSpeed(options, nodes, Tier::kDram).ok()) << "every node is measured, also an absent one";
}

}  // namespace
}  // namespace hybridgen
