// Tests of populating ranges step by step, on this machine's real memory.
#include "memory/populate.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "memory/address_range.h"

namespace hybridgen {
namespace {

int64_t ResidentBytes(absl::Span<std::byte> range) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  std::vector<unsigned char> resident(range.size() / page);
  EXPECT_EQ(mincore(range.data(), range.size(), resident.data()), 0);
  int64_t count = 0;
  for (const unsigned char bits : resident) count += bits & 1;
  return count * page;
}

std::unique_ptr<AddressRange> Mapped(int64_t bytes) {
  auto range = AddressRange::Reserve(bytes, kHugePageBytes).value();
  EXPECT_TRUE(range->MapAnonymous().ok());
  // Where huge pages are always on, one touch could fill more than was touched.
  EXPECT_EQ(madvise(range->span().data(), bytes, MADV_NOHUGEPAGE), 0);
  return range;
}

TEST(PopulateTest, EveryStepIsAdmittedAndEveryPageTouched) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const auto range = Mapped(2 * kHugePageBytes + 3 * page);
  std::vector<int64_t> asked;
  const absl::Status status = PopulatePages(range->span(), [&asked](int64_t left) {
    asked.push_back(left);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(asked, (std::vector<int64_t>{2 * kHugePageBytes + 3 * page, kHugePageBytes + 3 * page, 3 * page}));
  EXPECT_EQ(ResidentBytes(range->span()), 2 * kHugePageBytes + 3 * page);
}

TEST(PopulateTest, ARefusalLeavesTheRestUntouched) {
  const auto range = Mapped(4 * kHugePageBytes);
  const absl::Status status = PopulatePages(range->span(), [](int64_t left) {
    return left > 2 * kHugePageBytes ? absl::OkStatus() : absl::ResourceExhaustedError("a neighbour");
  });
  EXPECT_EQ(status, absl::ResourceExhaustedError("a neighbour"));
  EXPECT_EQ(ResidentBytes(range->span()), 2 * kHugePageBytes);
}

TEST(PopulateTest, AddressesWithoutMemoryAreAnError) {
  const auto range = AddressRange::Reserve(kHugePageBytes, kHugePageBytes).value();
  ASSERT_TRUE(range->MapAnonymous().ok());
  // A hole: MADV_POPULATE_WRITE tells, where the kernel knows it.
  ASSERT_EQ(munmap(range->span().data() + kHugePageBytes / 2, sysconf(_SC_PAGESIZE)), 0);
  if (madvise(range->span().data(), kHugePageBytes / 2, 23 /* MADV_POPULATE_WRITE */) != 0) {
    GTEST_SKIP() << "the kernel has no MADV_POPULATE_WRITE: errno " << errno;
  }
  const absl::Status status = PopulatePages(range->span(), [](int64_t) { return absl::OkStatus(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

}  // namespace
}  // namespace hybridgen
