// Tests of page digests: where their memory lies, and which publishes of which content they are built from.
#include "backend/block_digests.h"

#include <memory>
#include <string>
#include <vector>

#include "backend/digest_check.h"
#include "backend/planned_tiers.h"
#include "gtest/gtest.h"
#include "kernels/kernel_table.h"
#include "memory/fake_memory_policy.h"
#include "memory/fake_tree.h"

namespace hybridgen {
namespace {

// Elements that differ.
float Counting() {
  static float last = 0;
  return ++last;
}

// A device of four pages that is full but for one block: that is published as soon as it is dead.
TierSetting FullDevice() {
  TierSetting s;
  s.kind = DeviceKind::kEmulated;
  s.kv_heads = 1;
  s.device_pages = 4;
  s.num_blocks = 9;
  return s;
}

TEST(BlockDigestsTest, APartlyFilledBlockThatLivesAgainHasNewDigests) {
  PlannedTiers tiers(FullDevice());
  ASSERT_TRUE(tiers.ok());
  constexpr int32_t kBlock = 7;
  std::vector<float> written[kStoredLayers][2];  // [role] of kBlock
  const auto step = [&](uint64_t request, int computed, int count) {
    float next = static_cast<float>(100 * (computed + 1));  // positive: unused slots of a page are zeros
    std::vector<float> all;
    const absl::Status status = tiers.Step({{request, computed, count}}, [&] {
      all.push_back(next);
      return next++;
    });
    ASSERT_TRUE(status.ok()) << status;
    auto from = all.begin();
    for (auto& layer : written) {
      for (std::vector<float>& role : layer) {
        role.resize(computed * kHeadSize);
        role.insert(role.end(), from, from + count * kHeadSize);
        from += count * kHeadSize;
      }
    }
  };
  const auto end = [&](uint64_t request) {
    tiers.mirror().Remove(request);
    ASSERT_TRUE(tiers.Plan({}).ok());
    ASSERT_TRUE(tiers.Drain().ok());
    ASSERT_TRUE(tiers.Plan({}).ok());
    ASSERT_EQ(tiers.StateOf(kBlock), BlockState::kPublished);
  };
  const auto expect_digests_of = [&](int tokens) {
    for (int layer = 0; layer < kStoredLayers; ++layer) {
      const void* digest = tiers.digests().Find(layer, 0, kBlock, tiers.blocks().generation(kBlock));
      ASSERT_NE(digest, nullptr);
      ExpectDigestOf(
          digest, 1, 0, kHeadSize, tokens, [&](int t, int dim) { return written[layer][0][t * kHeadSize + dim]; },
          [&](int t, int dim) { return written[layer][1][t * kHeadSize + dim]; });
    }
  };
  ASSERT_TRUE(tiers.mirror().Set(1, {1, 2, 3}).ok());
  ASSERT_TRUE(tiers.Step({{1, 0, 3 * kBlockSize}}, Counting).ok());
  ASSERT_TRUE(tiers.mirror().Set(2, {kBlock}).ok());
  step(2, 0, 5);
  EXPECT_TRUE(tiers.Found(kBlock).empty());
  end(2);
  expect_digests_of(5);
  // The next request goes on in the block, which its first write makes another content.
  ASSERT_TRUE(tiers.mirror().Set(3, {kBlock}).ok());
  step(3, 5, 4);
  ASSERT_EQ(tiers.StateOf(kBlock), BlockState::kDeviceDirty);
  EXPECT_TRUE(tiers.Found(kBlock).empty());
  end(3);
  expect_digests_of(9);
  // Another one rejects tokens: the content is cut.
  ASSERT_TRUE(tiers.mirror().Set(4, {kBlock}).ok());
  step(4, 2, 1);
  EXPECT_TRUE(tiers.Found(kBlock).empty());
  end(4);
  expect_digests_of(3);
  // And one reuses the block.
  ASSERT_TRUE(tiers.mirror().Set(5, {kBlock}).ok());
  step(5, 0, 1);
  EXPECT_TRUE(tiers.Found(kBlock).empty());
  EXPECT_EQ(tiers.digests().statistics().blocks, 3);
}

// One dead block on the device of the cpu kind, whose publish is held back.
class HeldPublishTest : public testing::Test {
 protected:
  static constexpr int32_t kBlock = 3;
  static TierSetting Held() {
    TierSetting s;
    s.held_copies = true;
    return s;
  }
  void SetUp() override {
    ASSERT_TRUE(tiers_.ok());
    ASSERT_TRUE(tiers_.mirror().Set(1, {kBlock}).ok());
    ASSERT_TRUE(tiers_.Step({{1, 0, 4}}, Counting).ok());
    tiers_.held().held = true;
    tiers_.mirror().Remove(1);
    ASSERT_TRUE(tiers_.Plan({}).ok());
    ASSERT_EQ(tiers_.StateOf(kBlock), BlockState::kPublishing);
  }
  PlannedTiers tiers_{Held()};
};

TEST_F(HeldPublishTest, DigestsAreThereOnceThePublishIsApplied) {
  EXPECT_TRUE(tiers_.Found(kBlock).empty());
  tiers_.held().held = false;
  ASSERT_TRUE(tiers_.Plan({}).ok());
  ASSERT_EQ(tiers_.StateOf(kBlock), BlockState::kHostOnly);
  EXPECT_EQ(tiers_.Found(kBlock), tiers_.FromHostPages(kBlock));
}

TEST_F(HeldPublishTest, NoneAreBuiltOfContentThatHasChangedMeanwhile) {
  ASSERT_TRUE(tiers_.mirror().Set(2, {kBlock}).ok());
  ASSERT_TRUE(tiers_.Step({{2, 4, 1}}, Counting).ok());
  tiers_.held().held = false;
  ASSERT_TRUE(tiers_.Step({{2, 5, 1}}, Counting).ok());
  EXPECT_EQ(tiers_.blocks().Stats().publishes_dropped, 1);
  EXPECT_EQ(tiers_.digests().statistics().blocks, 0);
  EXPECT_TRUE(tiers_.Found(kBlock).empty());
}

TEST_F(HeldPublishTest, NoneAreBuiltOfAnAbandonedCopy) {
  tiers_.held().held = false;
  tiers_.held().outcome = CopyOutcome::kAbandoned;
  ASSERT_TRUE(tiers_.Plan({}).ok());
  EXPECT_GE(tiers_.blocks().Stats().publishes_dropped, 1);
  EXPECT_EQ(tiers_.digests().statistics().blocks, 0);
  EXPECT_TRUE(tiers_.Found(kBlock).empty());
}

// Memory on a pretended machine of two nodes.
class DigestMemoryTest : public testing::Test {
 protected:
  DigestMemoryTest() {
    tree_.Write("sys/devices/system/node/has_memory", "0-1\n");
    HostTiersOptions tiers;
    tiers.page_bytes[0] = tiers.page_bytes[1] = 1 << 12;
    tiers.dram_pages[0] = tiers.dram_pages[1] = 4;
    tiers.dram_nodes = {1, 0};
    tiers.arena.calls = &policy_;
    tiers.arena.roots = tree_.roots();
    tiers.arena.budget = [this](int) { return budget_; };
    host_ = HostTiers::Create(tiers).value();
    for (LayerPages& layer : layers_) {
      layer.host.format = PageFormat::kPackedV1;
      layer.host.kv_heads = 4;
      layer.host.head_size = 128;
      layer.head_groups = 2;
    }
  }
  absl::StatusOr<std::unique_ptr<BlockDigests>> Create() {
    return BlockDigests::Create(SelectKernels(CpuFeatures()), host_.get(), layers_, kBlocks);
  }

  static constexpr int64_t kBlocks = 1000;
  static constexpr int64_t kDigestBytes = 64 + 4 * 128 * (2 * 2 + 4);
  FakeTree tree_;
  FakeMemoryPolicy policy_;
  MemoryBudget budget_;
  std::unique_ptr<HostTiers> host_;
  std::vector<LayerPages> layers_ = std::vector<LayerPages>(3);
};

TEST_F(DigestMemoryTest, IsReservedByHeadGroupOnItsNode) {
  const absl::StatusOr<std::unique_ptr<BlockDigests>> digests = Create();
  ASSERT_TRUE(digests.ok()) << digests.status();
  constexpr int64_t kHuge = 2 << 20;
  constexpr int64_t kGroup = (kBlocks * 3 * kDigestBytes + kHuge - 1) / kHuge * kHuge;
  EXPECT_EQ((*digests)->statistics().reserved_bytes, 2 * kGroup);
  EXPECT_EQ((*digests)->statistics().blocks, 0);
  for (int32_t block : {0, 1, 999}) {
    for (int group = 0; group < 2; ++group) EXPECT_EQ((*digests)->Find(0, group, block, 0), nullptr);
  }
}

TEST_F(DigestMemoryTest, IsRefusedByNameWhereThereIsNoRoom) {
  budget_.bytes = 11 << 20;
  budget_.limited_by = "node 1";
  const absl::Status status = Create().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  for (const char* part : {"page_digests takes 12480000 bytes", "1000 blocks, 3 layers, 4160 bytes",
                           "page digests of head group 0", "11534336", "lower dram_bytes"}) {
    EXPECT_NE(status.message().find(part), std::string::npos) << part << " in " << status;
  }
}

}  // namespace
}  // namespace hybridgen
