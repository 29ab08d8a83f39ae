// Random traffic over the tiers: after each plan the digests of every block are what the kernel makes of the host pages
// that it was published to, whatever then happened to the pages, and there are none of any other content.
#include <deque>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backend/planned_tiers.h"
#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"

namespace hybridgen {
namespace {

// The traffic, and what every block's digests must be after each plan.
class Traffic {
 public:
  Traffic(const TierSetting& s, uint32_t seed) : s_(s), tiers_(s), random_(seed), known_(s.num_blocks) {
    for (int32_t block = 1; block < s.num_blocks; ++block) free_.push_back(block);
  }

  PlannedTiers& tiers() { return tiers_; }
  int resumed() const { return resumed_; }          // sequences that went on in blocks that were dead
  int published() const { return published_; }      // contents that were seen published
  int republished() const { return republished_; }  // host copies made again of the same content

  void Step() {
    Arrive();
    std::vector<PlannedTiers::Tokens> tokens;
    for (auto& [request, sequence] : live_) {
      const int count = sequence.computed == 0 ? Uniform(1, 70) : Uniform(1, 3);
      if (!Grow(request, sequence, sequence.computed + count)) continue;
      tokens.push_back({request, sequence.computed, count});
      sequence.computed += count;
    }
    absl::Status status = tiers_.Plan(tokens);
    ASSERT_TRUE(status.ok()) << status;
    CheckAll();
    if (testing::Test::HasFatalFailure()) return;
    std::uniform_real_distribution<float> element(-2, 2);
    status = tiers_.Write([&] { return element(random_); });
    ASSERT_TRUE(status.ok()) << status;
    MovePages();
  }

 private:
  struct Sequence {
    std::vector<int32_t> blocks;
    int computed = 0;
  };
  // Of a block.
  struct Known {
    int64_t on_device = -1;  // generation that was last seen on the device alone
    int64_t published = -1;  // generation that `digests` are of
    bool host_copy = false;  // when it was last looked at
    std::vector<std::string> digests;
  };

  int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  // Sequences come, end, and pause: their blocks are then dead, but nobody else's.
  void Arrive() {
    if (live_.size() < 4) {
      const uint64_t request = next_++;
      live_[request] = {};
      ASSERT_TRUE(tiers_.mirror().Set(request, {}).ok());
    }
    if (!live_.empty() && Uniform(0, 5) == 0) {
      const auto it = std::next(live_.begin(), Uniform(0, static_cast<int>(live_.size()) - 1));
      tiers_.mirror().Remove(it->first);
      if (Uniform(0, 1) == 0) {
        paused_.push_back(it->second);
      } else {
        free_.insert(free_.end(), it->second.blocks.begin(), it->second.blocks.end());
      }
      live_.erase(it);
    }
    if (!paused_.empty() && Uniform(0, 3) == 0) {
      const uint64_t request = next_++;
      live_[request] = std::move(paused_.front());
      paused_.pop_front();
      ASSERT_TRUE(tiers_.mirror().Set(request, live_[request].blocks).ok());
      ++resumed_;
    }
  }

  bool Grow(uint64_t request, Sequence& sequence, int tokens) {
    std::vector<int32_t> added;
    const size_t wanted = (tokens + kBlockSize - 1) / kBlockSize;
    if (free_.size() + sequence.blocks.size() < wanted) return false;
    while (sequence.blocks.size() < wanted) {
      added.push_back(free_.front());
      sequence.blocks.push_back(free_.front());
      free_.pop_front();
    }
    EXPECT_TRUE(tiers_.mirror().Append(request, added).ok());
    return true;
  }

  // What is in host pages and was on the device alone before, of the same generation, has been published.
  void CheckAll() {
    for (int32_t block = 1; block < s_.num_blocks; ++block) {
      Known& known = known_[block];
      const int64_t generation = tiers_.blocks().generation(block);
      const BlockState state = tiers_.StateOf(block);
      const bool host_copy = tiers_.blocks().Where(block).k.index >= 0;
      if (state == BlockState::kDeviceDirty || state == BlockState::kPublishing) known.on_device = generation;
      if (host_copy && known.on_device == generation && known.published != generation) {
        known.published = generation;
        known.digests = tiers_.FromHostPages(block);
        ++published_;
      } else if (host_copy && !known.host_copy && known.published == generation) {
        ++republished_;
      }
      known.host_copy = host_copy;
      const std::vector<std::string> found = tiers_.Found(block);
      if (known.published != generation) {
        ASSERT_TRUE(found.empty()) << "block " << block << ", " << BlockStateName(state) << ", was not published";
        continue;
      }
      ASSERT_TRUE(found == known.digests) << "block " << block << ", " << BlockStateName(state);
      if (host_copy) {
        ASSERT_TRUE(found == tiers_.FromHostPages(block)) << "block " << block << ", " << BlockStateName(state);
      }
    }
  }

  // Moves some host pages to the other tier; in the cpu kind, where planning recalls nothing, brings some blocks back.
  void MovePages() {
    const int32_t block = Uniform(1, s_.num_blocks - 1);
    if (tiers_.StateOf(block) != BlockState::kHostOnly) return;
    BlockManager& blocks = tiers_.blocks();
    if (Uniform(0, 1) == 0) {
      const PageRole role = kPageRoles[Uniform(0, 1)];
      const Residency at = blocks.Where(block);
      const Tier tier = (role == PageRole::kKey ? at.k : at.v).tier;
      const absl::StatusOr<CopyTask> task = blocks.PlanMigrate(block, role, OtherTier(tier));
      if (task.ok()) {
        ASSERT_TRUE(tiers_.Copy(*task).ok());
      }
    } else if (s_.kind == DeviceKind::kCpu) {
      for (const CopyTask& task : blocks.PlanRecall({block}, 1)) {
        ASSERT_TRUE(tiers_.Copy(task).ok());
        ASSERT_EQ(tiers_.StateOf(block), BlockState::kDeviceDirty);  // until the next plan
        known_[block].on_device = blocks.generation(block);
        known_[block].host_copy = false;
      }
    }
  }

  const TierSetting s_;
  PlannedTiers tiers_;
  std::mt19937 random_;
  std::map<uint64_t, Sequence> live_;
  std::deque<Sequence> paused_;
  std::deque<int32_t> free_;
  std::vector<Known> known_;  // [block]
  uint64_t next_ = 1;
  int resumed_ = 0;
  int published_ = 0;
  int republished_ = 0;
};

struct Setting {
  const char* name;
  TierSetting tiers;
};

class BlockDigestsRandomTest : public testing::TestWithParam<Setting> {};

TEST_P(BlockDigestsRandomTest, AreOfThePublishedPagesAndOfNothingElse) {
  const TierSetting& s = GetParam().tiers;
  Traffic traffic(s, TestSeed("//backend:block_digests_random_test", 20261125));
  ASSERT_TRUE(traffic.tiers().ok());
  for (int step = 0; step < 300; ++step) {
    SCOPED_TRACE(testing::Message() << "step " << step);
    traffic.Step();
    if (HasFailure()) return;
  }
  // What the scenario is for must have happened.
  const BlockManagerStats blocks = traffic.tiers().blocks().Stats();
  const DigestStatistics& digests = traffic.tiers().digests().statistics();
  EXPECT_GT(traffic.published(), 0);
  EXPECT_GE(digests.blocks, traffic.published()) << "some are written again in the step that they are published in";
  EXPECT_LE(digests.blocks, blocks.publishes - traffic.republished()) << "contents are built once";
  EXPECT_GT(digests.seconds, 0);
  EXPECT_GT(traffic.resumed(), 0);
  EXPECT_GT(blocks.host_direct_writes, 0);
  EXPECT_GT(blocks.recalls, 0);
  EXPECT_EQ(blocks.migrations > 0, s.cxl_blocks > 0);
  if (s.kind == DeviceKind::kCpu) {
    EXPECT_GT(traffic.republished(), 0);
  } else {
    EXPECT_GT(blocks.evictions, 0);
  }
}

std::vector<Setting> Settings() {
  std::vector<Setting> settings;
  const auto add = [&](const char* name, DeviceKind kind, DType dtype, int kv_heads, int head_groups) -> TierSetting& {
    TierSetting tiers;
    tiers.kind = kind;
    tiers.dtype = dtype;
    tiers.kv_heads = kv_heads;
    tiers.head_groups = head_groups;
    settings.push_back({name, tiers});
    return settings.back().tiers;
  };
  const auto add_cxl = [](TierSetting& tiers) { tiers.dram_blocks = tiers.cxl_blocks = 20; };
  add("cpu", DeviceKind::kCpu, DType::kFloat32, 2, 1);
  add_cxl(add("cpu_two_head_groups_two_tiers", DeviceKind::kCpu, DType::kBFloat16, 4, 2));
  add("cpu_three_head_groups_e4m3", DeviceKind::kCpu, DType::kBFloat16, 3, 3).kv_dtype = DType::kFloat8E4M3;
  add("emulated", DeviceKind::kEmulated, DType::kFloat32, 2, 1);
  add_cxl(add("emulated_two_head_groups_two_tiers", DeviceKind::kEmulated, DType::kFloat16, 6, 2));
  add("emulated_planning_thread_alone", DeviceKind::kEmulated, DType::kBFloat16, 2, 1).planning_thread_builds = true;
  return settings;
}

INSTANTIATE_TEST_SUITE_P(All, BlockDigestsRandomTest, testing::ValuesIn(Settings()),
                         [](const testing::TestParamInfo<Setting>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace hybridgen
