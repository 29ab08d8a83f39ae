// The device without hardware must be as strict as one with it: what it cannot reach it refuses, memory is poison until
// written, work is done in order, and an error is the end.
#include "tests/simt/host_stream.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "kernels/dtype.h"

namespace hybridgen::simt {
namespace {

constexpr size_t kBytes = 4096;
constexpr absl::Duration kLong = absl::Minutes(1);

class HostStreamTest : public testing::Test {
 protected:
  HostStreamTest()
      : stream_(1),
        device_(*stream_.AllocateDevice(kBytes)),
        pinned_(*stream_.AllocatePinned(kBytes)),
        plain_(kBytes, 0) {}

  char* device() { return static_cast<char*>(device_.get()); }
  char* pinned() { return static_cast<char*>(pinned_.get()); }

  static void ExpectRefused(const absl::Status& status, const std::string& what) {
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << what << ": " << status;
    EXPECT_TRUE(absl::StrContains(status.message(), what)) << status;
  }

  HostStream stream_;
  std::shared_ptr<void> device_, pinned_;
  std::vector<char> plain_;  // memory that no device knows
};

TEST_F(HostStreamTest, MemoryIsPoisonUntilWritten) {
  for (size_t i = 0; i < kBytes; ++i) {
    ASSERT_EQ(device()[i], '\xff');
    ASSERT_EQ(pinned()[i], '\xff');
  }
  ASSERT_EQ(reinterpret_cast<uintptr_t>(device()) % 256, 0u);
  ASSERT_EQ(stream_.Zero(device() + 8, 8), absl::OkStatus());
  ASSERT_EQ(stream_.Synchronize(), absl::OkStatus());
  for (size_t i = 0; i < 24; ++i) EXPECT_EQ(device()[i], i / 8 == 1 ? '\0' : '\xff') << i;
}

TEST_F(HostStreamTest, CopiesBetweenDeviceAndPinnedMemoryOnly) {
  EXPECT_EQ(stream_.CopyToDevice(device(), pinned(), kBytes), absl::OkStatus());
  EXPECT_EQ(stream_.CopyToHost(pinned(), device(), kBytes), absl::OkStatus());
  ExpectRefused(stream_.CopyToDevice(plain_.data(), pinned(), 1), "destination");
  ExpectRefused(stream_.CopyToDevice(pinned(), pinned(), 1), "destination");
  ExpectRefused(stream_.CopyToDevice(device(), plain_.data(), 1), "source");
  ExpectRefused(stream_.CopyToHost(plain_.data(), device(), 1), "destination");
  ExpectRefused(stream_.CopyToHost(pinned(), plain_.data(), 1), "source");
  ExpectRefused(stream_.CopyToHost(pinned(), pinned(), 1), "source");
  ExpectRefused(stream_.Zero(pinned(), 1), "zero");
  // The ends of a range are the ends.
  ExpectRefused(stream_.CopyToDevice(device() + 1, pinned(), kBytes), "destination");
  ExpectRefused(stream_.CopyToDevice(device(), pinned() + 1, kBytes), "source");
  ExpectRefused(stream_.Zero(device() - 1, 2), "zero");
  EXPECT_EQ(stream_.Zero(device() + kBytes - 1, 1), absl::OkStatus());
  EXPECT_EQ(stream_.Zero(nullptr, 0), absl::OkStatus());
  EXPECT_EQ(stream_.Synchronize(), absl::OkStatus()) << "a refusal is not an error of the work";
}

TEST_F(HostStreamTest, MemoryThatWasGivenBackIsRefused) {
  char* const freed = device();
  device_.reset();
  ExpectRefused(stream_.Zero(freed, 1), "zero");

  stream_.Lend(plain_.data(), kBytes);
  EXPECT_EQ(stream_.Zero(plain_.data(), kBytes), absl::OkStatus());
  EXPECT_EQ(stream_.Synchronize(), absl::OkStatus());
  stream_.TakeBack(plain_.data());
  ExpectRefused(stream_.Zero(plain_.data(), 1), "zero");

  // Registered memory is the host's: a source of copies, never the device's own.
  device_ = *stream_.AllocateDevice(kBytes);
  const absl::Span<std::byte> range(reinterpret_cast<std::byte*>(plain_.data()), kBytes);
  ASSERT_EQ(stream_.registrar().Register(range), absl::OkStatus());
  EXPECT_EQ(stream_.CopyToDevice(device(), plain_.data(), kBytes), absl::OkStatus());
  ExpectRefused(stream_.Zero(plain_.data(), 1), "zero");
  EXPECT_EQ(stream_.Synchronize(), absl::OkStatus());
  ASSERT_EQ(stream_.registrar().Unregister(range), absl::OkStatus());
  ExpectRefused(stream_.CopyToDevice(device(), plain_.data(), 1), "source");
  stream_.refuse_registration(true);
  EXPECT_EQ(stream_.registrar().Register(range).code(), absl::StatusCode::kResourceExhausted);
}

// The arguments of every kernel, all of them on the device; `bad` replaces one of them, which must be named.
TEST_F(HostStreamTest, KernelsRefuseEveryAddressThatTheDeviceCannotReach) {
  PageGeometry geometry;
  geometry.dtype = DType::kFloat16;
  geometry.page_tokens = 16;
  geometry.kv_heads = 1;
  geometry.head_size = 64;
  geometry.k_token_stride = geometry.v_token_stride = 64;
  geometry.k_head_stride = geometry.v_head_stride = 1024;
  const cuda::Rows rows = {device(), 64, 64};
  const auto ints = reinterpret_cast<const int32_t*>(device());
  const auto floats = reinterpret_cast<float*>(device());

  cuda::WriteKvParams write;
  write.key = write.value = rows;
  write.num_tokens = 1;
  write.slots = reinterpret_cast<const int64_t*>(device());
  write.geometry = geometry;
  write.k_cache = write.v_cache = device();
  cuda::AttendParams attend;
  attend.q = attend.o = rows;
  attend.query_heads = 1;
  attend.geometry = geometry;
  attend.items = reinterpret_cast<const cuda::AttendItem*>(device());
  attend.num_items = attend.max_item_tokens = 1;
  attend.pages = reinterpret_cast<const KvPage*>(device());
  attend.kv_begin = attend.kv_end = attend.position = ints;
  attend.alibi_slopes = attend.sinks = floats;
  attend.partials = {floats, floats};
  attend.status = reinterpret_cast<uint32_t*>(device());
  cuda::MergeParams merge;
  merge.items = reinterpret_cast<const cuda::MergeItem*>(device());
  merge.num_items = merge.query_heads = 1;
  merge.head_size = 64;
  merge.device = merge.host = {floats, floats};
  merge.o = rows;
  cuda::RepackParams repack;
  repack.jobs = reinterpret_cast<const cuda::RepackJob*>(device());
  repack.num_jobs = 1;
  repack.geometry = geometry;
  cuda::PublishParams publish;
  publish.head_size = 64;
  publish.table.slots = reinterpret_cast<unsigned char*>(pinned());
  publish.table.plan = reinterpret_cast<JointPlan*>(device());
  publish.parts[1] = {rows, ints, 1, 1, 0};

  // `bad` is plain memory, then pinned: the device reads that, but nothing of these may lie there.
  for (char* const bad : {plain_.data(), pinned()}) {
    const cuda::Rows bad_rows = {bad, 64, 64};
    const auto with = [](auto params, const auto& change) {
      change(params);
      return params;
    };
    auto* const bad_ints = reinterpret_cast<int32_t*>(bad);
    auto* const bad_floats = reinterpret_cast<float*>(bad);
    ExpectRefused(stream_.WriteKv(with(write, [&](auto& p) { p.key = bad_rows; })), "key");
    ExpectRefused(stream_.WriteKv(with(write, [&](auto& p) { p.value = bad_rows; })), "value");
    ExpectRefused(stream_.WriteKv(with(write, [&](auto& p) { p.slots = reinterpret_cast<int64_t*>(bad); })), "slots");
    ExpectRefused(stream_.WriteKv(with(write, [&](auto& p) { p.k_cache = bad; })), "cache");
    ExpectRefused(stream_.WriteKv(with(write, [&](auto& p) { p.v_cache = bad; })), "cache");
    for (const bool prefill : {false, true}) {
      const auto run = [&](const auto& change) {
        const cuda::AttendParams p = with(attend, change);
        return prefill ? stream_.Prefill(p) : stream_.Decode(p);
      };
      ExpectRefused(run([&](auto& p) { p.q = bad_rows; }), "query");
      ExpectRefused(run([&](auto& p) { p.o = bad_rows; }), "output");
      ExpectRefused(run([&](auto& p) { p.items = reinterpret_cast<cuda::AttendItem*>(bad); }), "items");
      ExpectRefused(run([&](auto& p) { p.pages = reinterpret_cast<KvPage*>(bad); }), "pages");
      ExpectRefused(run([&](auto& p) { p.kv_begin = bad_ints; }), "ranges");
      ExpectRefused(run([&](auto& p) { p.kv_end = bad_ints; }), "ranges");
      ExpectRefused(run([&](auto& p) { p.position = bad_ints; }), "positions");
      ExpectRefused(run([&](auto& p) { p.partials.o = bad_floats; }), "partials");
      ExpectRefused(run([&](auto& p) { p.partials.lse = bad_floats; }), "partials");
      ExpectRefused(run([&](auto& p) { p.alibi_slopes = bad_floats; }), "slopes");
      ExpectRefused(run([&](auto& p) { p.sinks = bad_floats; }), "sinks");
      ExpectRefused(run([&](auto& p) { p.status = reinterpret_cast<uint32_t*>(bad); }), "status");
    }
    ExpectRefused(stream_.Merge(with(merge, [&](auto& p) { p.items = reinterpret_cast<cuda::MergeItem*>(bad); })),
                  "items");
    ExpectRefused(stream_.Merge(with(merge, [&](auto& p) { p.device.o = bad_floats; })), "partials");
    ExpectRefused(stream_.Merge(with(merge, [&](auto& p) { p.device.lse = bad_floats; })), "partials");
    ExpectRefused(stream_.Merge(with(merge, [&](auto& p) { p.o = bad_rows; })), "output");
    for (const bool pack : {false, true}) {
      const cuda::RepackParams p = with(repack, [&](auto& p) { p.jobs = reinterpret_cast<cuda::RepackJob*>(bad); });
      ExpectRefused(pack ? stream_.PackPages(p) : stream_.UnpackPages(p), "jobs");
    }
    ExpectRefused(stream_.Publish(with(publish, [&](auto& p) { p.parts[1].from = bad_rows; })), "rows");
    ExpectRefused(stream_.Publish(with(publish, [&](auto& p) { p.parts[1].tokens = bad_ints; })), "tokens");
    ExpectRefused(stream_.Publish(with(publish, [&](auto& p) { p.table.plan = reinterpret_cast<JointPlan*>(bad); })),
                  "plan");
  }
  // Slots and the CPU's partials lie in host memory, which must be mapped.
  merge.host.o = reinterpret_cast<float*>(plain_.data());
  ExpectRefused(stream_.Merge(merge), "host partials");
  merge.host = {reinterpret_cast<float*>(pinned()), reinterpret_cast<float*>(plain_.data())};
  ExpectRefused(stream_.Merge(merge), "host lse");
  publish.table.slots = reinterpret_cast<unsigned char*>(plain_.data());
  ExpectRefused(stream_.Publish(publish), "slots");
  EXPECT_EQ(stream_.queued(), 0) << "what is refused is not queued";
}

// Jobs lie in device memory, so that their addresses are looked at when their turn comes, as a device would.
TEST_F(HostStreamTest, AnAddressInAJobEndsTheStream) {
  cuda::RepackJob job = {};
  job.packed_k = job.packed_v = reinterpret_cast<uint64_t>(pinned());
  job.strided_k = reinterpret_cast<uint64_t>(device());
  job.strided_v = reinterpret_cast<uint64_t>(plain_.data());
  job.num_tokens = 16;
  std::memcpy(pinned(), &job, sizeof(job));
  cuda::RepackParams p;
  p.jobs = reinterpret_cast<const cuda::RepackJob*>(device());
  p.num_jobs = 1;
  p.geometry.dtype = DType::kFloat16;
  p.geometry.page_tokens = 16;
  p.geometry.kv_heads = 1;
  p.geometry.head_size = 64;
  p.geometry.k_token_stride = p.geometry.v_token_stride = 64;
  p.geometry.k_head_stride = p.geometry.v_head_stride = 1024;
  ASSERT_EQ(stream_.CopyToDevice(device(), pinned(), sizeof(job)), absl::OkStatus());
  ASSERT_EQ(stream_.UnpackPages(p), absl::OkStatus());
  ExpectRefused(stream_.Synchronize(), "strided V");
}

TEST_F(HostStreamTest, WhatAKernelDoesNotAcceptIsRefusedAndTheStreamLives) {
  cuda::PublishParams p;
  p.head_size = 12;  // not a multiple of 8
  p.table.slots = reinterpret_cast<unsigned char*>(pinned());
  p.table.plan = reinterpret_cast<JointPlan*>(device());
  EXPECT_EQ(stream_.Publish(p).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(stream_.Synchronize(), absl::OkStatus());
}

// A wait in the stream that a test can hold and let go.
class HeldStreamTest : public HostStreamTest {
 protected:
  HeldStreamTest() {
    plan_ = {kJointFirstSequence, 60'000'000'000, 1};
    table_.control = &control_;
    table_.plan = &plan_;
  }
  void Answer(JointState state) {
    __atomic_store_n(&control_.answer[0].value, JointWord(state, kJointFirstSequence), __ATOMIC_RELEASE);
  }

  JointControl control_ = {};
  JointPlan plan_ = {};
  JointTable table_ = {};
};

TEST_F(HeldStreamTest, WorkIsDoneInOrderBehindAWait) {
  const absl::StatusOr<StreamMark> before = stream_.Mark();
  ASSERT_EQ(stream_.Wait(*before, kLong), absl::OkStatus());
  ASSERT_EQ(stream_.Await({table_, 0}), absl::OkStatus());
  const absl::StatusOr<StreamMark> waited = stream_.Mark();
  std::memset(pinned(), 7, 16);
  ASSERT_EQ(stream_.CopyToDevice(device(), pinned(), 16), absl::OkStatus());
  ASSERT_EQ(stream_.Zero(device() + 8, 8), absl::OkStatus());
  ASSERT_EQ(stream_.CopyToHost(pinned() + 64, device(), 16), absl::OkStatus());
  const absl::StatusOr<StreamMark> copied = stream_.Mark();
  ASSERT_TRUE(before.ok() && waited.ok() && copied.ok());
  EXPECT_LT(*before, *waited);
  EXPECT_LT(*waited, *copied);

  EXPECT_EQ(stream_.Wait(*waited, absl::Milliseconds(20)).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(*stream_.Passed(*before), true);
  EXPECT_EQ(*stream_.Passed(*waited), false);
  EXPECT_EQ(device()[0], '\xff') << "a copy overtook the wait ahead of it";
  Answer(JointState::kAnswered);
  ASSERT_EQ(stream_.Wait(*copied, kLong), absl::OkStatus());
  EXPECT_EQ(*stream_.Passed(*waited), true);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(pinned()[64 + i], i < 8 ? 7 : 0) << i;
}

TEST_F(HeldStreamTest, AnErrorIsFinal) {
  const absl::StatusOr<StreamMark> before = stream_.Mark();
  ASSERT_EQ(stream_.Await({table_, 0}), absl::OkStatus());
  ASSERT_EQ(stream_.Zero(device(), 8), absl::OkStatus());
  const absl::StatusOr<StreamMark> behind = stream_.Mark();
  ASSERT_TRUE(before.ok() && behind.ok());
  Answer(JointState::kError);
  const absl::Status error = stream_.Wait(*behind, kLong);
  EXPECT_EQ(error.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(device()[0], '\xff') << "work behind the error ran";
  // Everything says so from now on, even of what was done before.
  EXPECT_EQ(stream_.Passed(*before).status(), error);
  EXPECT_EQ(stream_.Wait(*before, kLong), error);
  EXPECT_EQ(stream_.Mark().status(), error);
  EXPECT_EQ(stream_.Zero(device(), 8), error);
  EXPECT_EQ(stream_.CopyToHost(pinned(), device(), 8), error);
  EXPECT_EQ(stream_.Await({table_, 0}), error);
  EXPECT_EQ(stream_.Synchronize(), error);
  EXPECT_EQ(device()[0], '\xff');
}

TEST_F(HostStreamTest, MemoryMayOutliveTheStream) {
  std::shared_ptr<void> memory;
  {
    HostStream stream(2);
    memory = *stream.AllocateDevice(64);
    ASSERT_EQ(stream.Zero(memory.get(), 64), absl::OkStatus());
  }  // what is queued is done first
  EXPECT_EQ(*static_cast<char*>(memory.get()), 0);
}

}  // namespace
}  // namespace hybridgen::simt
