// Tests of the emulated device's queue: order, the watchdog, and what a dead device answers.
#include "backend/emulated_device.h"

#include <vector>

#include "gtest/gtest.h"
#include "kernels/kernel_table.h"

namespace hybridgen {
namespace {

EmulatedDeviceOptions Options(absl::Duration timeout) {
  EmulatedDeviceOptions options;
  options.head_size = 8;
  options.num_kv_heads = 1;
  options.kernels = SelectKernels(CpuFeatures());
  options.timeout = timeout;
  return options;
}

// A layer with one written token that attends itself: the output is its value.
struct OneToken {
  OneToken() {
    plan.num_tokens = 1;
    PlanSequence sequence;
    sequence.query_len = 1;
    sequence.seq_len = 1;
    sequence.pool_pages = {0, 1};
    plan.sequences = {sequence};
    PlanPage page;
    page.num_tokens = 1;
    plan.pages = {page};
    WriteRun run;
    run.num_tokens = 1;
    plan.pool_writes = {run};
    SplitOptions split;
    split.device_workers = 1;
    SplitWork(split, plan);
    params.num_query_heads = 1;
    pages.pool = {PageFormat::kStrided, DType::kFloat32, 16, 1, 8, 16 * 16, 16, 16 * 16, 16};
    pages.pool_k = reinterpret_cast<uint64_t>(pool.data());
    pages.pool_v = pages.pool_k + 8 * sizeof(float);
    pages.pool_page_bytes = pool.size() * sizeof(float);
    pages.pool_pages = 1;
    call.plan = &plan;
    call.params = &params;
    call.pages = &pages;
    call.query = call.key = {key.data(), 8, 8};
    call.value = {value.data(), 8, 8};
    call.output = {output.data(), 8, 8};
  }
  std::vector<float> pool = std::vector<float>(16 * 16, 0.0f);
  std::vector<float> key = std::vector<float>(8, 1.0f), value = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> output = std::vector<float>(8, -1.0f);
  StepPlan plan;
  LayerParams params;
  LayerPages pages;
  LayerCall call;
};

TEST(EmulatedDeviceTest, RunsLayersInOrder) {
  std::unique_ptr<EmulatedDevice> device = *CreateEmulatedDevice(Options(absl::Seconds(60)));
  for (int round = 0; round < 200; ++round) {
    OneToken layer;
    layer.value[0] = static_cast<float>(round);
    ASSERT_TRUE(device->BeginLayer(layer.call).ok());
    device->HostWritten();
    device->HostAttended();
    const absl::Status status = device->WaitLayer();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(layer.output, layer.value);
  }
  EXPECT_EQ(device->read_bytes(Tier::kDevice), 200 * 2 * 8 * 4);
}

TEST(EmulatedDeviceTest, AHostThatNeverComesIsADeadlineAndTheDeviceStaysDead) {
  auto* layer = new OneToken();  // outlives the abandoned thread
  std::unique_ptr<EmulatedDevice> device = *CreateEmulatedDevice(Options(absl::Milliseconds(50)));
  ASSERT_TRUE(device->BeginLayer(layer->call).ok());
  device->HostWritten();  // and never HostAttended
  EXPECT_EQ(device->WaitLayer().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(device->BeginLayer(layer->call).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(device->Drain().code(), absl::StatusCode::kFailedPrecondition);
  device.reset();
  delete layer;
}

TEST(EmulatedDeviceTest, CopiesWithoutHostTiersAreRefused) {
  std::unique_ptr<EmulatedDevice> device = *CreateEmulatedDevice(Options(absl::Seconds(60)));
  EXPECT_EQ(device->EnqueueCopies({CopyTask()}).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(device->Drain().ok());
}

}  // namespace
}  // namespace hybridgen
