// Tests of the host tiers' memory on pretended machines: nodes, a DAX device, a registrar that refuses.
#include "backend/host_tiers.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "memory/fake_dax_device.h"
#include "memory/fake_memory_policy.h"
#include "memory/fake_tree.h"

namespace hybridgen {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// Two nodes of which the fakes know everything.
struct Machine {
  Machine() {
    tree.Write("sys/devices/system/node/has_memory", "0-1\n");
    tree.Write("sys/devices/system/node/online", "0-1\n");
  }
  ArenaOptions Options() {
    ArenaOptions options;
    options.calls = &policy;
    options.roots = tree.roots();
    options.budget = [](int) { return MemoryBudget(); };
    return options;
  }
  FakeTree tree;
  FakeMemoryPolicy policy;
};

HostTiersOptions SomePages(Machine& machine) {
  HostTiersOptions options;
  options.arena = machine.Options();
  for (const PageRole role : kPageRoles) {
    options.page_bytes[Index(role)] = 3 * 4096;  // no multiple of anything
    options.dram_pages[Index(role)] = 40;
    options.cxl_pages[Index(role)] = 20;
  }
  options.dram_nodes = {0};
  options.cxl_node = 1;
  return options;
}

const TierArena& ArenaOf(const HostTiers& tiers, Tier tier, PageRole role) {
  for (const TierArena& arena : tiers.arenas()) {
    if (arena.tier == tier && arena.role == role) return arena;
  }
  ADD_FAILURE() << "no arena of " << TierName(tier) << " " << PageRoleName(role);
  return tiers.arenas().front();
}

TEST(HostTiersTest, EveryTierAndRoleHasAnArenaOnItsNode) {
  Machine machine;
  const std::unique_ptr<HostTiers> tiers = HostTiers::Create(SomePages(machine)).value();
  ASSERT_EQ(tiers->arenas().size(), 4u);
  for (const Tier tier : {Tier::kDram, Tier::kCxl}) {
    for (const PageRole role : kPageRoles) {
      const Arena& memory = *ArenaOf(*tiers, tier, role).memory;
      const int node = tier == Tier::kCxl ? 1 : 0;
      EXPECT_EQ(memory.node(), node);
      const PlacementReport report = memory.VerifyPlacement(0).value();
      EXPECT_EQ(report.pages_elsewhere, 0);
      EXPECT_EQ(report.pages_on_node.at(node), memory.bytes() / 4096);
    }
  }
}

TEST(HostTiersTest, PagesDoNotOverlapAndLieInTheirArena) {
  Machine machine;
  const std::unique_ptr<HostTiers> tiers = HostTiers::Create(SomePages(machine)).value();
  std::set<uint64_t> addresses;
  for (const Tier tier : {Tier::kDram, Tier::kCxl}) {
    for (const PageRole role : kPageRoles) {
      const Arena& memory = *ArenaOf(*tiers, tier, role).memory;
      const uint64_t begin = reinterpret_cast<uint64_t>(memory.data());
      const int pages = tier == Tier::kCxl ? 20 : 40;
      for (int32_t page = 0; page < pages; ++page) {
        const uint64_t address = tiers->Address(role, {tier, page});
        EXPECT_GE(address, begin);
        EXPECT_LE(address + tiers->options().page_bytes[Index(role)], begin + memory.bytes());
        addresses.insert(address);
        std::memset(reinterpret_cast<void*>(address), 1, tiers->options().page_bytes[Index(role)]);
      }
    }
  }
  EXPECT_EQ(addresses.size(), 120u);
  for (auto next = addresses.begin(), at = next++; next != addresses.end(); at = next++) {
    EXPECT_GE(*next - *at, static_cast<uint64_t>(tiers->options().page_bytes[0]));
  }
}

// Two groups on two nodes; the far tier is memory of node 1 or a device with coarse alignment.
class HeadGroupTiersTest : public testing::TestWithParam<const char*> {};

TEST_P(HeadGroupTiersTest, TheSamePageOfEachGroupIsAStrideAwayOnTheGroupsNode) {
  Machine machine;
  HostTiersOptions options = SomePages(machine);
  options.page_bytes[0] = options.page_bytes[1] = 2 * 3 * 4096;
  options.dram_nodes = {1, 0};
  if (std::string(GetParam()) == "device") {
    options.cxl_node = -1;
    options.cxl_device = MakeDaxDevice(machine.tree, "dax0.0", 16 * kMiB, 4 * kMiB, /*target_node=*/1);
  }
  const absl::StatusOr<std::unique_ptr<HostTiers>> created = HostTiers::Create(options);
  ASSERT_TRUE(created.ok()) << created.status();
  const HostTiers& tiers = **created;
  ASSERT_EQ(tiers.arenas().size(), 8u);
  constexpr int64_t kPart = 3 * 4096;  // of a page, in one group
  std::set<uint64_t> addresses;
  for (const TierArena& arena : tiers.arenas()) {
    const bool cxl = arena.tier == Tier::kCxl;
    EXPECT_EQ(arena.memory->node(), cxl ? 1 : options.dram_nodes[arena.head_group]);
    EXPECT_EQ(arena.memory->VerifyPlacement(0)->pages_elsewhere, 0);
    const uint64_t begin = reinterpret_cast<uint64_t>(arena.memory->data());
    for (int32_t page = 0; page < (cxl ? 20 : 40); ++page) {
      const uint64_t address =
          tiers.Address(arena.role, {arena.tier, page}) + arena.head_group * tiers.head_group_stride();
      EXPECT_GE(address, begin);
      EXPECT_LE(address + kPart, begin + arena.memory->bytes());
      addresses.insert(address);
      std::memset(reinterpret_cast<void*>(address), 1, kPart);
    }
  }
  EXPECT_EQ(addresses.size(), 240u);
  for (auto next = addresses.begin(), at = next++; next != addresses.end(); at = next++) EXPECT_GE(*next - *at, kPart);
  for (int group = 0; group < 2; ++group) {
    const char* zeros = reinterpret_cast<const char*>(tiers.ZeroPage() + group * tiers.head_group_stride());
    EXPECT_EQ(std::count(zeros, zeros + kPart, 0), kPart);
  }
}

INSTANTIATE_TEST_SUITE_P(FarTier, HeadGroupTiersTest, testing::Values("node", "device"),
                         [](const auto& info) { return std::string(info.param); });

TEST(HostTiersTest, ADeviceIsTheCxlTierRoleBehindRole) {
  Machine machine;
  const std::string device = MakeDaxDevice(machine.tree, "dax0.0", 8 * kMiB, 2 * kMiB, /*target_node=*/1);
  HostTiersOptions options = SomePages(machine);
  options.cxl_node = -1;
  options.cxl_device = device;
  const absl::StatusOr<std::unique_ptr<HostTiers>> tiers = HostTiers::Create(options);
  ASSERT_TRUE(tiers.ok()) << tiers.status();
  const TierArena& keys = ArenaOf(**tiers, Tier::kCxl, PageRole::kKey);
  const TierArena& values = ArenaOf(**tiers, Tier::kCxl, PageRole::kValue);
  EXPECT_EQ(keys.memory->node(), 1) << "told by the device";
  EXPECT_EQ(values.memory->node(), 1);
  EXPECT_EQ(values.memory->VerifyPlacement(0)->source, PlacementSource::kDevice);
  // The roles are different parts of the device: what one writes the other does not see.
  std::memset(keys.memory->data(), 0x11, keys.memory->bytes());
  std::memset(values.memory->data(), 0x22, values.memory->bytes());
  EXPECT_EQ(static_cast<int>(keys.memory->data()[keys.memory->bytes() - 1]), 0x11);
}

TEST(HostTiersTest, ADeviceThatIsTooSmallIsRefusedWithTheSizes) {
  Machine machine;
  HostTiersOptions options = SomePages(machine);
  options.cxl_node = -1;
  options.cxl_device = MakeDaxDevice(machine.tree, "dax0.0", 2 * kMiB, 2 * kMiB, 1);
  const absl::Status status = HostTiers::Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_NE(status.message().find("cxl values"), std::string::npos) << status << ": the keys took it all";
}

// Registers everything but the ranges that begin at an odd count.
class HalfRegistrar final : public DeviceRegistrar {
 public:
  absl::Status Register(absl::Span<std::byte>) override {
    return ++calls % 2 == 0 ? absl::InternalError("the driver says no") : absl::OkStatus();
  }
  absl::Status Unregister(absl::Span<std::byte>) override {
    ++released;
    return absl::OkStatus();
  }
  int calls = 0, released = 0;
};

TEST(HostTiersTest, RegistrationIsReportedAndItsFailureSurvived) {
  Machine machine;
  HalfRegistrar registrar;
  HostTiersOptions options = SomePages(machine);
  options.registrar = &registrar;
  {
    const std::unique_ptr<HostTiers> tiers = HostTiers::Create(options).value();
    int failures = 0;
    for (const TierArena& arena : tiers->arenas()) {
      failures += arena.pin.failures;
      EXPECT_EQ(arena.pin.registered_bytes + arena.pin.failed_bytes, arena.memory->bytes());
    }
    EXPECT_EQ(failures, 2);
    EXPECT_EQ(tiers->pin().failures, 2) << "the pages of zeros, which came last, were accepted";
    std::memset(tiers->arenas()[1].memory->data(), 1, tiers->arenas()[1].memory->bytes());
  }
  EXPECT_EQ(registrar.released, 3) << "two arenas and the pages of zeros";
}

}  // namespace
}  // namespace hybridgen
