// In a guest with a mapped CXL device: arenas on /dev/dax0.0, whose pages the kernel places on no node or a wrong one.
#include <fcntl.h>
#include <numaif.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "memory/arena.h"
#include "memory/topology.h"
#include "tests/numa_vm/guest.h"
#include "tests/numa_vm/io_uring_registrar.h"

namespace hybridgen {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr char kDevice[] = "/dev/dax0.0";

absl::StatusOr<std::unique_ptr<Arena>> MakeArena(int64_t bytes, int64_t offset, int node = -1) {
  ArenaOptions options;
  options.name = "guest";
  options.dax_device = kDevice;
  options.dax_offset = offset;
  options.node = node;
  return Arena::Create(bytes, options);
}

TEST(DaxGuestTest, TheNodeIsTheDevicesWhateverTheKernelSays) {
  const DaxDevice device = ReadTopology().dax_devices.at(0);
  const int node = device.target_node.value();
  ASSERT_NE(node, HomeNode());
  const std::unique_ptr<Arena> arena = MakeArena(4 * kMiB, 0).value();
  EXPECT_EQ(arena->bytes(), 4 * kMiB);
  EXPECT_EQ(arena->node(), node);
  EXPECT_EQ(arena->binding(), NodeBinding::kStrict);

  // The kernel's queries lie: it knows no such page, and names the home node.
  EXPECT_EQ(PagesByNode(arena->data(), arena->bytes()),
            (std::map<int, int64_t>{{-ENOENT, CountPages(arena->bytes())}}));
  int named = -1;
  ASSERT_EQ(get_mempolicy(&named, nullptr, 0, arena->data(), MPOL_F_NODE | MPOL_F_ADDR), 0);
  EXPECT_EQ(named, HomeNode());

  const PlacementReport report = arena->VerifyPlacement(0).value();
  EXPECT_EQ(report.source, PlacementSource::kDevice);
  EXPECT_EQ(report.pages_on_node, (std::map<int, int64_t>{{node, CountPages(arena->bytes())}}));
  EXPECT_EQ(report.pages_elsewhere, 0);
  EXPECT_EQ(arena->Repair().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(DaxGuestTest, ArenasShareADeviceByOffset) {
  const std::unique_ptr<Arena> keys = MakeArena(4 * kMiB, 0).value();
  const std::unique_ptr<Arena> values = MakeArena(2 * kMiB, keys->bytes()).value();
  memset(keys->data(), 0x11, 4096);
  memset(values->data(), 0x22, 4096);

  // Another mapping of the device sees the bytes where they belong.
  const int file = open(kDevice, O_RDWR);
  ASSERT_GE(file, 0);
  const char* const map = static_cast<const char*>(mmap(nullptr, 6 * kMiB, PROT_READ, MAP_SHARED, file, 0));
  ASSERT_NE(map, MAP_FAILED);
  EXPECT_EQ(map[0], 0x11);
  EXPECT_EQ(map[4095], 0x11);
  EXPECT_EQ(map[4 * kMiB], 0x22);
  munmap(const_cast<char*>(map), 6 * kMiB);
  close(file);

  const auto overlapping = [] { return MakeArena(2 * kMiB, 2 * kMiB).status(); };
  EXPECT_EQ(overlapping().code(), absl::StatusCode::kFailedPrecondition) << overlapping();
  const std::string in_child = InChild([&overlapping] { return overlapping().ToString(); });
  EXPECT_TRUE(absl::StrContains(in_child, "held")) << in_child;
}

TEST(DaxGuestTest, WhatTheDeviceCannotGiveIsRefused) {
  const int64_t bytes = ReadTopology().dax_devices.at(0).bytes.value();
  const absl::Status large = MakeArena(bytes + 2 * kMiB, 0).status();
  EXPECT_EQ(large.code(), absl::StatusCode::kResourceExhausted) << large;
  EXPECT_EQ(MakeArena(2 * kMiB, bytes).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MakeArena(2 * kMiB, kMiB).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeArena(2 * kMiB, 0, HomeNode()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(DaxGuestTest, DevicesPinMappedMemory) {
  const std::unique_ptr<Arena> arena = MakeArena(2 * kMiB, 0).value();
  IoUringRegistrar registrar;
  const RegistrationReport report = arena->Register(registrar).value();
  EXPECT_EQ(report.pin.registered_bytes, 2 * kMiB) << report.pin.first_error;
  EXPECT_TRUE(arena->Registered(arena->data(), 2 * kMiB));
  EXPECT_EQ(report.after->pages_elsewhere, 0);
}

}  // namespace
}  // namespace hybridgen
