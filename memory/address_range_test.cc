// Tests of reserved and mapped addresses, on this machine's real memory.
#include "memory/address_range.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

// Whether the byte can be read, by a system call, which answers a fault with an error.
bool Readable(const std::byte* at) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  const bool readable = write(ends[1], at, 1) == 1;
  EXPECT_TRUE(readable || errno == EFAULT);
  close(ends[0]);
  close(ends[1]);
  return readable;
}

bool ReadableInForkedChild(const std::byte* at) {
  const pid_t child = fork();
  EXPECT_GE(child, 0);
  if (child == 0) _exit(Readable(at) ? 1 : 0);
  int result = -1;
  EXPECT_EQ(waitpid(child, &result, 0), child);
  EXPECT_TRUE(WIFEXITED(result)) << result;
  return WEXITSTATUS(result) == 1;
}

// An unnamed file of `bytes`.
int TemporaryFile(int64_t bytes) {
  std::string path = ::testing::TempDir() + "/address_range_XXXXXX";
  const int fd = mkstemp(path.data());
  EXPECT_GE(fd, 0);
  unlink(path.c_str());
  EXPECT_EQ(ftruncate(fd, bytes), 0);
  return fd;
}

TEST(AddressRangeTest, ReservesAlignedAddressesWithoutMemory) {
  for (const int64_t alignment : {int64_t{4096}, kHugePageBytes, int64_t{1} << 30}) {
    const auto range = AddressRange::Reserve(3 * kHugePageBytes, alignment).value();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(range->span().data()) % alignment, 0u);
    EXPECT_EQ(range->span().size(), 3u * kHugePageBytes);
    EXPECT_FALSE(Readable(range->span().data()));
    EXPECT_FALSE(Readable(range->span().data() + range->span().size() - 1));
  }
}

TEST(AddressRangeTest, PartsAreTakenFromTheStartAndLiveAlone) {
  auto range = AddressRange::Reserve(4 * kHugePageBytes, kHugePageBytes).value();
  std::byte* const begin = range->span().data();
  auto first = range->Take(kHugePageBytes).value();
  const auto second = range->Take(2 * kHugePageBytes).value();
  EXPECT_EQ(first->span().data(), begin);
  EXPECT_EQ(second->span().data(), begin + kHugePageBytes);
  EXPECT_EQ(second->span().size(), static_cast<size_t>(2 * kHugePageBytes));
  EXPECT_EQ(range->span().data(), begin + 3 * kHugePageBytes);
  EXPECT_EQ(range->Take(0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(range->Take(kHugePageBytes).status().code(), absl::StatusCode::kInvalidArgument) << "nothing would be left";
  ASSERT_TRUE(second->MapAnonymous().ok());
  first.reset();
  range.reset();
  std::memset(second->span().data(), 1, second->span().size());
  EXPECT_FALSE(Readable(begin));
  EXPECT_FALSE(Readable(begin + 3 * kHugePageBytes));
}

TEST(AddressRangeTest, MoreAddressesThanThereAreIsAnError) {
  const absl::Status status = AddressRange::Reserve(int64_t{1} << 60, kHugePageBytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
}

TEST(AddressRangeTest, AnonymousMemoryIsZeroedAndNotInherited) {
  const auto range = AddressRange::Reserve(kHugePageBytes, kHugePageBytes).value();
  ASSERT_TRUE(range->MapAnonymous().ok());
  std::byte& last = range->span().back();
  EXPECT_EQ(last, std::byte{0});
  last = std::byte{7};
  EXPECT_TRUE(Readable(&last));
  EXPECT_FALSE(ReadableInForkedChild(&last));
  EXPECT_EQ(last, std::byte{7});
}

TEST(AddressRangeTest, AFileIsSharedFromItsOffsetAndNotInherited) {
  const int fd = TemporaryFile(3 * kHugePageBytes);
  const auto range = AddressRange::Reserve(kHugePageBytes, kHugePageBytes).value();
  const std::byte* const reserved = range->span().data();
  ASSERT_TRUE(range->MapFile(fd, 2 * kHugePageBytes).ok());
  EXPECT_EQ(range->span().data(), reserved);
  range->span()[5] = std::byte{42};
  char read = 0;
  EXPECT_EQ(pread(fd, &read, 1, 2 * kHugePageBytes + 5), 1);
  EXPECT_EQ(read, 42);
  close(fd);
  EXPECT_EQ(range->span()[5], std::byte{42}) << "the mapping outlives the descriptor";
  EXPECT_FALSE(ReadableInForkedChild(range->span().data()));
}

TEST(AddressRangeTest, AFileThatCannotBeMappedIsAnError) {
  const auto range = AddressRange::Reserve(kHugePageBytes, kHugePageBytes).value();
  const absl::Status status = range->MapFile(/*fd=*/-1, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(status.message()).find("Bad file descriptor"), std::string::npos) << status;
}

TEST(AddressRangeTest, DestructionUnmaps) {
  auto range = AddressRange::Reserve(kHugePageBytes, kHugePageBytes).value();
  ASSERT_TRUE(range->MapAnonymous().ok());
  std::byte* const data = range->span().data();
  unsigned char resident;
  EXPECT_EQ(mincore(data, 1, &resident), 0);
  range.reset();
  EXPECT_EQ(mincore(data, 1, &resident), -1);
  EXPECT_EQ(mincore(data + kHugePageBytes - sysconf(_SC_PAGESIZE), 1, &resident), -1);
}

}  // namespace
}  // namespace hybridgen
