// Tests of chunked registration with a registrar that can refuse.
#include "memory/device_registration.h"

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/address_range.h"

namespace hybridgen {
namespace {

// Numbers calls from 0 and refuses those that it is told to.
class FakeRegistrar : public DeviceRegistrar {
 public:
  std::set<int> refused;
  std::vector<absl::Span<std::byte>> registered;
  int calls = 0, released = 0;
  bool refuse_release = false;

  absl::Status Register(absl::Span<std::byte> range) override {
    const int call = calls++;
    if (refused.count(call) > 0) return absl::ResourceExhaustedError(absl::StrCat("call ", call));
    registered.push_back(range);
    return absl::OkStatus();
  }
  absl::Status Unregister(absl::Span<std::byte> range) override {
    ++released;
    EXPECT_FALSE(registered.empty());
    for (size_t i = 0; i < registered.size(); ++i) {
      if (registered[i].data() != range.data() || registered[i].size() != range.size()) continue;
      registered.erase(registered.begin() + i);
      return refuse_release ? absl::InternalError("stuck") : absl::OkStatus();
    }
    ADD_FAILURE() << "not registered";
    return absl::OkStatus();
  }
};

class DeviceRegistrationTest : public ::testing::Test {
 protected:
  std::unique_ptr<Registration> Register(int64_t chunk_bytes) {
    return Registration::Create(range_, registrar_, chunk_bytes, admit_).value();
  }

  FakeRegistrar registrar_;
  std::function<absl::Status(int64_t)> admit_ = [](int64_t) { return absl::OkStatus(); };
  const std::unique_ptr<AddressRange> reserved_ = AddressRange::Reserve(7 * kHugePageBytes, kHugePageBytes).value();
  const absl::Span<std::byte> range_ = reserved_->span();
};

TEST_F(DeviceRegistrationTest, ChunksCoverTheRangeAndAreReleased) {
  auto registration = Register(3 * kHugePageBytes);
  ASSERT_EQ(registrar_.registered.size(), 3u);
  std::byte* next = range_.data();
  for (const absl::Span<std::byte> chunk : registrar_.registered) {
    EXPECT_EQ(chunk.data(), next);
    next += chunk.size();
  }
  EXPECT_EQ(next, range_.data() + range_.size());
  EXPECT_EQ(registrar_.registered[2].size(), static_cast<size_t>(kHugePageBytes));
  EXPECT_EQ(registration->report().registered_bytes, 7 * kHugePageBytes);
  EXPECT_EQ(registration->report().failed_bytes, 0);
  EXPECT_EQ(registration->report().failures, 0);
  EXPECT_TRUE(registration->report().first_error.ok());
  registration.reset();
  EXPECT_TRUE(registrar_.registered.empty());
  EXPECT_EQ(registrar_.released, 3);
}

TEST_F(DeviceRegistrationTest, OneChunkTakesAll) {
  Register(int64_t{64} << 30);
  EXPECT_EQ(registrar_.calls, 1);
}

TEST_F(DeviceRegistrationTest, EachRefusalIsSurvivedAndReported) {
  for (int first = 0; first < 4; ++first) {
    for (int second = first; second < 4; ++second) {
      registrar_ = FakeRegistrar();
      registrar_.refused = {first, second};
      const int64_t failures = static_cast<int64_t>(registrar_.refused.size());
      auto registration = Register(2 * kHugePageBytes);  // four chunks, the last of one huge page
      const PinReport& report = registration->report();
      int64_t failed = 0;
      for (const int chunk : registrar_.refused) failed += chunk == 3 ? kHugePageBytes : 2 * kHugePageBytes;
      EXPECT_EQ(report.failures, failures);
      EXPECT_EQ(report.failed_bytes, failed);
      EXPECT_EQ(report.registered_bytes, 7 * kHugePageBytes - failed);
      EXPECT_EQ(report.first_error, absl::ResourceExhaustedError(absl::StrCat("call ", first)));
      for (int chunk = 0; chunk < 4; ++chunk) {
        EXPECT_EQ(registration->Covers(range_.data() + chunk * 2 * kHugePageBytes, 1),
                  registrar_.refused.count(chunk) == 0);
      }
      registration.reset();
      EXPECT_EQ(registrar_.released, 4 - failures);
      EXPECT_TRUE(registrar_.registered.empty());
    }
  }
}

TEST_F(DeviceRegistrationTest, WhatIsNotAdmittedIsNotTried) {
  std::vector<int64_t> asked;
  admit_ = [&asked](int64_t bytes) {
    asked.push_back(bytes);
    return asked.size() == 2 ? absl::ResourceExhaustedError("no room") : absl::OkStatus();
  };
  const auto registration = Register(3 * kHugePageBytes);
  EXPECT_EQ(asked, (std::vector<int64_t>{3 * kHugePageBytes, 3 * kHugePageBytes, kHugePageBytes}));
  EXPECT_EQ(registrar_.calls, 2);
  EXPECT_EQ(registration->report().failed_bytes, 3 * kHugePageBytes);
  EXPECT_EQ(registration->report().first_error, absl::ResourceExhaustedError("no room"));
}

TEST_F(DeviceRegistrationTest, CoversOnlyWhatLiesInOneChunk) {
  const auto registration = Register(2 * kHugePageBytes);
  const std::byte* const data = range_.data();
  const int64_t chunk = 2 * kHugePageBytes;
  EXPECT_TRUE(registration->Covers(data, chunk));
  EXPECT_TRUE(registration->Covers(data + chunk - 1, 1));
  EXPECT_FALSE(registration->Covers(data + chunk - 1, 2)) << "spans two";
  EXPECT_TRUE(registration->Covers(data + 3 * chunk, kHugePageBytes));
  EXPECT_FALSE(registration->Covers(data + 3 * chunk, kHugePageBytes + 1)) << "beyond the end";
  EXPECT_FALSE(registration->Covers(data + 7 * kHugePageBytes, 1));
  EXPECT_FALSE(registration->Covers(data - 1, 1));
}

TEST_F(DeviceRegistrationTest, ADriverThatKeepsAChunkDoesNotKeepTheOthers) {
  registrar_.refuse_release = true;
  Register(2 * kHugePageBytes);
  EXPECT_EQ(registrar_.released, 4);
}

TEST_F(DeviceRegistrationTest, ChunkSizesOutOfRangeAreRefused) {
  for (const int64_t bytes : {int64_t{0}, int64_t{-1}, kHugePageBytes - 1, kHugePageBytes + 4096}) {
    const absl::Status status = Registration::Create(range_, registrar_, bytes, admit_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bytes;
  }
  EXPECT_EQ(registrar_.calls, 0);
}

}  // namespace
}  // namespace hybridgen
