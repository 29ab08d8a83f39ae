// Tests of arenas on this machine's real memory, with replaced budgets, pretended nodes and pretended devices.
#include "memory/arena.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/fake_dax_device.h"
#include "memory/fake_memory_policy.h"
#include "memory/fake_tree.h"
#include "memory/topology.h"

namespace hybridgen {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

ArenaOptions Options() {
  ArenaOptions options;
  options.name = "test tier";
  return options;
}

// Pages of [data, data + bytes) that have memory; -1 if part of the range is not mapped.
int64_t ResidentPages(const void* data, int64_t bytes) {
  std::vector<unsigned char> resident(bytes / sysconf(_SC_PAGESIZE));
  if (mincore(const_cast<void*>(data), bytes, resident.data()) != 0) return -1;
  int64_t count = 0;
  for (const unsigned char page : resident) count += page & 1;
  return count;
}

TEST(ArenaTest, ReservesInFullAlignedAndZeroed) {
  const auto arena = Arena::Create(3 * kHugePage - 5, Options()).value();
  EXPECT_EQ(arena->bytes(), 3 * kHugePage);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(arena->data()) % kHugePage, 0u);
  EXPECT_EQ(ResidentPages(arena->data(), arena->bytes()), arena->bytes() / sysconf(_SC_PAGESIZE));
  EXPECT_EQ(arena->node(), -1);
  EXPECT_EQ(arena->binding(), NodeBinding::kNone);
  for (const int64_t at : {int64_t{0}, kHugePage - 1, kHugePage, arena->bytes() - 1}) {
    EXPECT_EQ(arena->data()[at], std::byte{0});
    arena->data()[at] = std::byte{0x5a};
    EXPECT_EQ(arena->data()[at], std::byte{0x5a});
  }
}

TEST(ArenaTest, DestructionUnmaps) {
  auto arena = Arena::Create(1, Options()).value();
  const std::byte* const data = arena->data();
  EXPECT_EQ(arena->bytes(), kHugePage);
  arena.reset();
  EXPECT_EQ(ResidentPages(data, kHugePage), -1);
}

TEST(ArenaTest, SizesOutOfRangeAreRefused) {
  for (const int64_t bytes : {int64_t{0}, int64_t{-1}, int64_t{1} << 62}) {
    const absl::Status status = Arena::Create(bytes, Options()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(std::string(status.message()).find("test tier"), std::string::npos);
  }
}

TEST(ArenaTest, MoreThanTheBudgetIsRefusedBeforeAnyPageIsTouched) {
  ArenaOptions options = Options();
  options.node = 0;
  int asked = 0;
  options.budget = [&asked](int node) {
    EXPECT_EQ(node, 0);
    ++asked;
    return MemoryBudget{kHugePage, "node 0", 3 * kHugePage};
  };
  const absl::Status status = Arena::Create(2 * kHugePage, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const char* part : {"test tier", "wanted 4194304", "available 2097152", "node 0", "6291456 bytes free"}) {
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << part << " not in: " << status;
  }
  EXPECT_EQ(asked, 1);
}

TEST(ArenaTest, MoreThanTheMachineHasIsRefused) {
  const absl::Status status = Arena::Create(int64_t{1} << 45, Options()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

TEST(ArenaTest, ABudgetThatShrinksWhilePopulatingStopsIt) {
  ArenaOptions options = Options();
  int asked = 0;
  options.budget = [&asked](int) { return MemoryBudget{++asked < 4 ? 8 * kHugePage : kHugePage - 1, "a neighbour"}; };
  const absl::Status status = Arena::Create(8 * kHugePage, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(status.message()).find("wanted 12582912 bytes more"), std::string::npos) << status;
  EXPECT_EQ(asked, 4);
}

TEST(ArenaTest, AnUnknownBudgetRefusesNothing) {
  ArenaOptions options = Options();
  options.budget = [](int) { return MemoryBudget(); };
  EXPECT_TRUE(Arena::Create(kHugePage, options).ok());
}

TEST(ArenaTest, PagesLieOnTheNodeAskedFor) {
  const Topology topology = ReadTopology();
  if (topology.nodes.empty()) GTEST_SKIP() << "sysfs lists no memory nodes here";
  for (const MemoryNode& node : topology.nodes) {
    ArenaOptions options = Options();
    options.node = node.id;
    options.binding = NodeBinding::kStrict;
    const absl::StatusOr<std::unique_ptr<Arena>> arena = Arena::Create(2 * kHugePage, options);
    if (arena.status().code() == absl::StatusCode::kFailedPrecondition) GTEST_SKIP() << arena.status();
    ASSERT_TRUE(arena.ok()) << arena.status();
    EXPECT_EQ((*arena)->node(), node.id);
    EXPECT_EQ((*arena)->binding(), NodeBinding::kStrict);
    const PlacementReport all = (*arena)->VerifyPlacement(0).value();
    const int64_t pages = 2 * kHugePage / sysconf(_SC_PAGESIZE);
    EXPECT_EQ(all.pages_on_node, (std::map<int, int64_t>{{node.id, pages}}));
    EXPECT_EQ(all.pages_unknown, 0);
    EXPECT_EQ((*arena)->VerifyPlacement(7)->pages_on_node.at(node.id), 7);
    EXPECT_EQ((*arena)->VerifyPlacement(int64_t{1} << 40)->pages_on_node.at(node.id), pages);
  }
}

TEST(ArenaTest, PagesWithoutMemoryHaveNoKnownNode) {
  const auto arena = Arena::Create(kHugePage, Options()).value();
  if (!arena->VerifyPlacement(1).ok()) GTEST_SKIP() << arena->VerifyPlacement(1).status();
  ASSERT_EQ(madvise(arena->data(), kHugePage, MADV_DONTNEED), 0);
  const PlacementReport report = arena->VerifyPlacement(0).value();
  EXPECT_EQ(report.pages_unknown, kHugePage / sysconf(_SC_PAGESIZE));
  EXPECT_TRUE(report.pages_on_node.empty());
}

TEST(ArenaTest, AnAbsentNodeIsRefusedByName) {
  for (const int node : {777, 5000}) {
    for (const NodeBinding binding : {NodeBinding::kAdvisory, NodeBinding::kStrict}) {
      ArenaOptions options = Options();
      options.node = node;
      options.binding = binding;
      const absl::StatusOr<std::unique_ptr<Arena>> arena = Arena::Create(kHugePage, options);
      if (arena.ok() && (*arena)->binding() == NodeBinding::kNone) GTEST_SKIP() << "the kernel permits no mbind here";
      EXPECT_EQ(arena.status().code(), absl::StatusCode::kInvalidArgument) << arena.status();
      EXPECT_NE(std::string(arena.status().message()).find(absl::StrCat("node ", node)), std::string::npos);
    }
  }
}

TEST(ArenaTest, NoBindingIgnoresTheNode) {
  ArenaOptions options = Options();
  options.node = 777;
  options.binding = NodeBinding::kNone;
  const auto arena = Arena::Create(kHugePage, options).value();
  EXPECT_EQ(arena->node(), -1);
}

TEST(ArenaTest, LockingIsReported) {
#ifdef HYBRIDGEN_SANITIZER
  GTEST_SKIP() << "AddressSanitizer replaces mlock by nothing";
#endif
  ArenaOptions options = Options();
  EXPECT_FALSE(Arena::Create(kHugePage, options).value()->locked());
  options.locking = Locking::kBestEffort;
  const auto arena = Arena::Create(kHugePage, options).value();
  int64_t locked_kilobytes = 0;
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word == "VmLck:") status >> locked_kilobytes;
  }
  EXPECT_EQ(locked_kilobytes * 1024 >= kHugePage, arena->locked());
}

TEST(ArenaTest, AForkedChildDoesNotInheritTheMemory) {
  const auto arena = Arena::Create(kHugePage, Options()).value();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {  // the range is not mapped: touching it would be a fault, asking is an error
    _exit(msync(arena->data(), kHugePage, MS_ASYNC) != 0 && errno == ENOMEM ? 0 : 1);
  }
  int result = -1;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  EXPECT_TRUE(WIFEXITED(result) && WEXITSTATUS(result) == 0) << result;
  arena->data()[0] = std::byte{1};  // the parent keeps it
}

// A machine of nodes 0 and 1 with real memory, on which the nodes alone are made up.
class TwoNodeArenaTest : public ::testing::Test {
 protected:
  TwoNodeArenaTest() { tree_.Write("sys/devices/system/node/has_memory", "0-1\n"); }

  ArenaOptions Options(int node, NodeBinding binding) {
    ArenaOptions options;
    options.name = "far values";
    options.node = node;
    options.binding = binding;
    options.roots = tree_.roots();
    options.calls = &calls_;
    options.budget = [this](int) { return budget_; };
    return options;
  }
  std::unique_ptr<Arena> FarArena(int64_t huge_pages) {
    return Arena::Create(huge_pages * kHugePage, Options(1, NodeBinding::kAdvisory)).value();
  }
  void Place(const Arena& arena, int64_t first, int64_t count, int node) {
    for (int64_t i = first; i < first + count; ++i) calls_.Place(arena.data() + i * page_bytes_, node);
  }

  const int64_t page_bytes_ = sysconf(_SC_PAGESIZE);
  const int64_t huge_ = kHugePage / page_bytes_;
  FakeTree tree_;
  FakeMemoryPolicy calls_;
  MemoryBudget budget_;
};

void ExpectError(const absl::Status& status, absl::StatusCode code, const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& part : parts) {
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << part << " not in: " << status;
  }
}

TEST_F(TwoNodeArenaTest, PagesThatSpillAreCountedAgainstTheNode) {
  calls_.free_pages[1] = huge_ + 10;
  const auto arena = FarArena(2);
  EXPECT_EQ(arena->node(), 1);
  EXPECT_EQ(arena->binding(), NodeBinding::kAdvisory);
  EXPECT_EQ(arena->note(), "");
  const PlacementReport report = arena->VerifyPlacement(0).value();
  EXPECT_EQ(report.pages_elsewhere, huge_ - 10);
  EXPECT_EQ(report.source, PlacementSource::kKernel);
}

TEST_F(TwoNodeArenaTest, StrictRefusesWhatSpills) {
  calls_.free_pages[1] = huge_ + 10;
  ExpectError(
      Arena::Create(2 * kHugePage, Options(1, NodeBinding::kStrict)).status(), absl::StatusCode::kResourceExhausted,
      {"far values", "wanted 4194304 bytes on node 1", absl::StrCat("available ", kHugePage + 10 * page_bytes_)});
}

TEST_F(TwoNodeArenaTest, StrictMovesWhatSpilledWhereTheNodeHasRoom) {
  class Hasty : public FakeMemoryPolicy {  // its first page falls to node 0
   public:
    int PreferNode(void* begin, int64_t bytes, int node) const override {
      const_cast<Hasty*>(this)->Place(begin, 0);
      return FakeMemoryPolicy::PreferNode(begin, bytes, node);
    }
  } hasty;
  ArenaOptions options = Options(1, NodeBinding::kStrict);
  options.calls = &hasty;
  const auto arena = Arena::Create(kHugePage, options).value();
  EXPECT_EQ(arena->VerifyPlacement(0)->pages_on_node, (std::map<int, int64_t>{{1, huge_}}));
}

TEST_F(TwoNodeArenaTest, NodesThatCannotBeHadAreToldApart) {
  calls_.allowed = {0};
  ExpectError(Arena::Create(1, Options(1, NodeBinding::kAdvisory)).status(), absl::StatusCode::kInvalidArgument,
              {"far values", "node 1 is outside this process's cpuset", "allowed nodes: 0"});
  ExpectError(Arena::Create(1, Options(2, NodeBinding::kAdvisory)).status(), absl::StatusCode::kInvalidArgument,
              {"far values", "node 2 is absent", "nodes with memory: 0, 1"});
}

TEST_F(TwoNodeArenaTest, WithoutNumaControlEverythingWorksAndOneLineSaysSo) {
  calls_.allowed_error = calls_.prefer_error = calls_.query_error = calls_.move_error = EPERM;
  const auto arena = FarArena(1);
  EXPECT_EQ(arena->binding(), NodeBinding::kNone);
  EXPECT_EQ(arena->node(), -1);
  EXPECT_EQ(arena->note(),
            "Arena far values: no NUMA control, pages lie where the kernel puts them: mbind to node 1 "
            "failed: Operation not permitted (errno 1)");
  arena->data()[arena->bytes() - 1] = std::byte{1};
  ExpectError(arena->VerifyPlacement(0).status(), absl::StatusCode::kFailedPrecondition, {"far values"});
  ExpectError(arena->Repair().status(), absl::StatusCode::kFailedPrecondition, {"far values", "bound to no node"});
  ExpectError(Arena::Create(1, Options(1, NodeBinding::kStrict)).status(), absl::StatusCode::kFailedPrecondition,
              {"far values", "mbind", "advisory"});
}

TEST_F(TwoNodeArenaTest, BindingWithoutQuestionsIsNotedOrRefused) {
  calls_.query_error = ENOSYS;
  const auto arena = FarArena(1);
  EXPECT_EQ(arena->binding(), NodeBinding::kAdvisory);
  EXPECT_EQ(arena->note(),
            "Arena far values: placement is not verified: the kernel does not tell where pages lie: "
            "move_pages: Function not implemented (errno 38)");
  ExpectError(Arena::Create(1, Options(1, NodeBinding::kStrict)).status(), absl::StatusCode::kFailedPrecondition,
              {"move_pages"});
}

TEST_F(TwoNodeArenaTest, MisplacedPagesAreRepairedAsFarAsTheyMoveAndTheNodeHasRoom) {
  const auto arena = FarArena(3);
  Place(*arena, 0, 5, 0);
  Place(*arena, huge_, 7, 0);
  calls_.Pin(arena->data() + kHugePage);
  RepairReport report = arena->Repair().value();
  EXPECT_EQ(report.misplaced, 12);
  EXPECT_EQ(report.repaired, 5);
  EXPECT_EQ(report.unmovable, 7);
  EXPECT_EQ(arena->VerifyPlacement(0)->pages_elsewhere, 7);
  budget_.node_bytes = kHugePage - 1;
  report = arena->Repair().value();
  EXPECT_EQ(report.no_room, 7);
  EXPECT_EQ(report.unmovable, 0);
}

// Registers anything; what it pins on node 1 the kernel moves to node 0 first, as out of a movable zone.
class MigratingRegistrar : public DeviceRegistrar {
 public:
  explicit MigratingRegistrar(FakeMemoryPolicy& calls) : calls_(calls) {}
  absl::Status Register(absl::Span<std::byte> range) override {
    if (!refused.ok() && chunks == 1) return refused;
    ++chunks;
    for (size_t at = 0; at < range.size(); at += sysconf(_SC_PAGESIZE)) calls_.Place(range.data() + at, 0);
    return absl::OkStatus();
  }
  absl::Status Unregister(absl::Span<std::byte> range) override {
    --chunks;
    range.front() = range.back() = std::byte{9};  // a fault if it came after unmapping
    return absl::OkStatus();
  }
  absl::Status refused;  // of the second chunk on
  int chunks = 0;

 private:
  FakeMemoryPolicy& calls_;
};

TEST_F(TwoNodeArenaTest, RegistrationIsVerifiedBeforeAndAfterAndForbidsRepair) {
  MigratingRegistrar registrar(calls_);
  const auto arena = FarArena(2);
  EXPECT_FALSE(arena->Registered(arena->data(), 1));
  const RegistrationReport report = arena->Register(registrar).value();
  EXPECT_EQ(report.pin.registered_bytes, 2 * kHugePage);
  EXPECT_EQ(report.before->pages_elsewhere, 0);
  EXPECT_EQ(report.after->pages_elsewhere, 2 * huge_);
  EXPECT_TRUE(arena->Registered(arena->data(), arena->bytes()));
  ExpectError(arena->Register(registrar).status(), absl::StatusCode::kFailedPrecondition, {"registered already"});
  ExpectError(arena->Repair().status(), absl::StatusCode::kFailedPrecondition, {"far values", "registered", "pinned"});
  EXPECT_EQ(arena->VerifyPlacement(0)->pages_elsewhere, 2 * huge_) << "nothing was moved";

  arena->Unregister();
  EXPECT_EQ(registrar.chunks, 0);
  EXPECT_FALSE(arena->Registered(arena->data(), 1));
  EXPECT_EQ(arena->Repair()->repaired, 2 * huge_);
  arena->Unregister();  // nothing to do
}

TEST_F(TwoNodeArenaTest, APartlyRegisteredArenaIsUsableAndIsReleasedBeforeItsMemory) {
  MigratingRegistrar registrar(calls_);
  registrar.refused = absl::ResourceExhaustedError("no more");
  auto arena = FarArena(3);
  RegistrationOptions options;
  options.chunk_bytes = kHugePage;
  options.sample = 6;
  const RegistrationReport report = arena->Register(registrar, options).value();
  EXPECT_EQ(report.pin.registered_bytes, kHugePage);
  EXPECT_EQ(report.pin.failed_bytes, 2 * kHugePage);
  EXPECT_EQ(report.pin.failures, 2);
  EXPECT_EQ(report.pin.first_error, registrar.refused);
  EXPECT_EQ(report.after->pages_on_node, (std::map<int, int64_t>{{0, 2}, {1, 4}})) << "six pages were asked for";
  EXPECT_TRUE(arena->Registered(arena->data(), kHugePage));
  EXPECT_FALSE(arena->Registered(arena->data() + kHugePage, 1));
  arena->data()[arena->bytes() - 1] = std::byte{1};
  arena.reset();
  EXPECT_EQ(registrar.chunks, 0);
}

TEST_F(TwoNodeArenaTest, PinningThatWouldMovePagesWhereNoRoomIsIsNotTried) {
  tree_.Write("sys/devices/system/node/has_normal_memory", "0\n");
  budget_.node_bytes = kHugePage;
  MigratingRegistrar registrar(calls_);
  const auto arena = FarArena(3);
  RegistrationReport report = arena->Register(registrar).value();
  EXPECT_EQ(report.pin.registered_bytes, 0);
  EXPECT_EQ(report.pin.failed_bytes, 3 * kHugePage);
  ExpectError(report.pin.first_error, absl::StatusCode::kResourceExhausted,
              {"node 1", "movable", "wanted 6291456", "available 2097152"});
  EXPECT_EQ(report.after->pages_elsewhere, 0);
  EXPECT_EQ(registrar.chunks, 0);
  arena->Unregister();
  RegistrationOptions options;
  options.chunk_bytes = kHugePage;
  report = arena->Register(registrar, options).value();
  EXPECT_EQ(report.pin.registered_bytes, 3 * kHugePage) << "a chunk at a time has room";
}

TEST_F(TwoNodeArenaTest, RegistrationWithoutQuestionsReportsNoPlacement) {
  calls_.query_error = EPERM;
  MigratingRegistrar registrar(calls_);
  const auto arena = FarArena(1);
  RegistrationOptions options;
  options.chunk_bytes = 1;
  ExpectError(arena->Register(registrar, options).status(), absl::StatusCode::kInvalidArgument, {"far values"});
  const RegistrationReport report = arena->Register(registrar).value();
  EXPECT_FALSE(report.before.has_value() || report.after.has_value());
}

TEST_F(TwoNodeArenaTest, DevicesAreMappedAndToldByTheirTargetNode) {
  calls_.query_error = EPERM;  // the kernel is not asked, it would name a wrong node
  ArenaOptions options = Options(-1, NodeBinding::kAdvisory);
  options.dax_device = MakeDaxDevice(tree_, "dax0.0", 5 * kHugePage, kHugePage, 1);
  budget_.bytes = 0;  // limits other memory
  const auto keys = Arena::Create(2 * kHugePage - 1, options).value();
  EXPECT_EQ(keys->bytes(), 2 * kHugePage);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(keys->data()) % kHugePage, 0u);
  EXPECT_EQ(keys->node(), 1);
  EXPECT_EQ(keys->binding(), NodeBinding::kStrict);
  EXPECT_EQ(keys->note(), "");
  const PlacementReport report = keys->VerifyPlacement(0).value();
  EXPECT_EQ(report.source, PlacementSource::kDevice);
  EXPECT_EQ(report.pages_on_node, (std::map<int, int64_t>{{1, 2 * huge_}}));
  EXPECT_EQ(report.pages_elsewhere + report.pages_unknown, 0);
  EXPECT_EQ(keys->VerifyPlacement(3)->pages_on_node.at(1), 3);
  ExpectError(keys->Repair().status(), absl::StatusCode::kFailedPrecondition, {"device"});

  // The other role's arena takes the next part; a third has no room, and nobody gets the same bytes.
  options.node = 1;
  options.dax_offset = keys->bytes();
  const auto values = Arena::Create(2 * kHugePage, options).value();
  keys->data()[0] = std::byte{1};
  values->data()[0] = std::byte{2};
  std::ifstream device(options.dax_device, std::ios::binary);
  EXPECT_EQ(device.get(), 1);
  device.seekg(options.dax_offset);
  EXPECT_EQ(device.get(), 2);
  ExpectError(Arena::Create(kHugePage, options).status(), absl::StatusCode::kFailedPrecondition,
              {"far values", options.dax_device, "held"});
  options.dax_offset = 4 * kHugePage;
  ExpectError(Arena::Create(2 * kHugePage, options).status(), absl::StatusCode::kResourceExhausted,
              {"far values", options.dax_device, "wanted 4194304", "available 2097152"});
  options.node = 0;
  ExpectError(Arena::Create(kHugePage, options).status(), absl::StatusCode::kInvalidArgument,
              {"far values", "belongs to node 1, not to node 0"});
}

TEST_F(TwoNodeArenaTest, ADeviceOfUnknownNodeStaysUnknown) {
  ArenaOptions options = Options(-1, NodeBinding::kAdvisory);
  options.dax_device = MakeDaxDevice(tree_, "dax0.0", kHugePage, 4096, -1);
  const auto arena = Arena::Create(1, options).value();
  EXPECT_EQ(arena->bytes(), kHugePage) << "2 MiB, though the device would align to less";
  EXPECT_EQ(arena->node(), -1);
  EXPECT_EQ(arena->binding(), NodeBinding::kNone);
  EXPECT_EQ(arena->VerifyPlacement(0)->pages_unknown, huge_);
}

TEST_F(TwoNodeArenaTest, DevicesThatCannotBeMappedAreErrors) {
  ArenaOptions options = Options(-1, NodeBinding::kAdvisory);
  options.dax_device = MakeDaxDevice(tree_, "dax0.0", kHugePage, kHugePage, 1, "kmem");
  ExpectError(Arena::Create(1, options).status(), absl::StatusCode::kFailedPrecondition,
              {"far values", "not in devdax mode"});
  options.dax_device = "/dev/dax7.7";
  ExpectError(Arena::Create(1, options).status(), absl::StatusCode::kNotFound, {"far values", "/dev/dax7.7"});
}

}  // namespace
}  // namespace hybridgen
