// What the backend with device_kind cuda does when something goes wrong, and what it must not do on the way: the
// device is the SIMT executor.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "backend/paged_attention_backend.h"
#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"
#include "nlohmann/json.hpp"
#include "tests/simt/host_stream.h"

namespace hybridgen {
namespace {

using simt::HostStream;

constexpr int kHeadSize = 64;
constexpr int kBlock = 16;
constexpr int kLayers = 2;
constexpr int kDevicePages = 1;
constexpr GraphShape kGraph = {4, 1};
constexpr int kLength = 40;  // of the one sequence: most of its blocks are host pages

// One sequence in a tiered backend whose device tier is a page.
class CudaFaultTest : public testing::Test {
 protected:
  CudaFaultTest() {
    options_.device_kind = DeviceKind::kCuda;
    options_.binding = Binding::kTiered;
    options_.dtype = DType::kFloat16;
    options_.num_kv_heads = 1;
    options_.head_size = kHeadSize;
    options_.block_size = kBlock;
    options_.executor = ExecutorKind::kPool;
    options_.num_threads = 1;
    options_.dram_bytes = 1 << 20;
    options_.timeout = absl::Seconds(30);
  }
  ~CudaFaultTest() override { Unbind(); }

  void Unbind() {
    backend_.reset();
    for (const std::vector<uint16_t>& tensor : tensors_) stream_->TakeBack(tensor.data());
    tensors_.clear();
  }

  absl::Status Bind() {
    absl::StatusOr<std::unique_ptr<PagedAttentionBackend>> backend = PagedAttentionBackend::Create(options_, stream_);
    if (!backend.ok()) return backend.status();
    backend_ = *std::move(backend);
    TieredPool pool;
    for (int l = 0; l < kLayers; ++l) {
      LayerParams params;
      params.num_query_heads = 2;
      EXPECT_TRUE(backend_->AddLayer(params).ok());
      tensors_.emplace_back(kDevicePages * kBlock * 2 * kHeadSize, 0x7fff);
      stream_->Lend(tensors_.back().data(), tensors_.back().size() * 2);
      pool.data.push_back(tensors_.back().data());
    }
    pool.bytes = static_cast<int64_t>(tensors_[0].size() * 2);
    pool.num_blocks = 16;
    for (int i = 0; i < 4; ++i) tensors_.emplace_back(kLength * 2 * kHeadSize, FloatToFloat16(0.5f));
    for (size_t i = kLayers; i < tensors_.size(); ++i) stream_->Lend(tensors_[i].data(), tensors_[i].size() * 2);
    std::fill(Out().begin(), Out().end(), 0xffff);
    if (absl::Status status = backend_->BindTiered(pool); !status.ok()) return status;
    return (*backend_->Mirror())->Set(1, {1, 2, 3, 4, 5});
  }

  std::vector<uint16_t>& Query() { return tensors_[kLayers]; }
  std::vector<uint16_t>& Key() { return tensors_[kLayers + 1]; }
  std::vector<uint16_t>& Value() { return tensors_[kLayers + 2]; }
  std::vector<uint16_t>& Out() { return tensors_[kLayers + 3]; }

  // Computes the sequence's next `tokens` tokens.
  absl::Status Plan(int tokens) {
    length_ += tokens;
    const std::vector<int32_t> query_start = {0, tokens}, seq_lens = {length_};
    const std::vector<uint64_t> requests = {1};
    StepBatch batch;
    batch.query_start = query_start;
    batch.seq_lens = seq_lens;
    batch.requests = requests;
    return backend_->PlanStep(batch, plan_);
  }

  absl::Status Forward(int layer) {
    return backend_->Forward(plan_, layer, {Query().data(), 2 * kHeadSize, kHeadSize},
                             {Key().data(), kHeadSize, kHeadSize}, {Value().data(), kHeadSize, kHeadSize},
                             {Out().data(), 2 * kHeadSize, kHeadSize});
  }

  absl::Status Step(int tokens) {
    absl::Status status = Plan(tokens);
    return status.ok() ? RunEagerly() : status;
  }

  absl::Status BindAndCapture() {
    options_.graph_tokens = kGraph.num_tokens;
    options_.graph_pages = 4;
    if (absl::Status status = Bind(); !status.ok()) return status;
    hybridgen::Plan step;
    std::swap(step, plan_);
    absl::Status status = backend_->PlanCapture(kGraph, plan_, nullptr);
    stream_->Capture();
    for (int l = 0; l < kLayers && status.ok(); ++l) status = Forward(l);
    graph_ = stream_->TakeGraph();
    std::swap(step, plan_);
    return status;
  }

  absl::Status ReplayedStep(int tokens) {
    if (absl::Status status = Plan(tokens); !status.ok()) return status;
    if (absl::Status status = backend_->BeginStep(plan_, &kGraph, nullptr); !status.ok()) return status;
    return stream_->Replay(graph_);
  }

  absl::Status RunEagerly() {
    for (int l = 0; l < kLayers; ++l) {
      if (absl::Status status = Forward(l); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // The first error that later steps tell.
  absl::Status ErrorOfLaterSteps() {
    for (int i = 0; i < 4; ++i) {
      if (absl::Status status = Step(1); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  void ExpectNothingWritten() {
    for (uint16_t x : Out()) ASSERT_EQ(x, 0xffff);
  }

  const std::shared_ptr<HostStream> stream_ = std::make_shared<HostStream>(1);
  BackendOptions options_;
  std::unique_ptr<PagedAttentionBackend> backend_;
  std::vector<std::vector<uint16_t>> tensors_;  // [layer], then q, k, v, out
  hybridgen::Plan plan_;
  HostStream::Graph graph_;
  int length_ = 0;
};

TEST_F(CudaFaultTest, AWorkerThatIsLateEndsTheBackendAndNoTokenLeaves) {
  options_.timeout = absl::Milliseconds(50);
  options_.dram_gigabytes_per_second = 1e-5;  // some ten KiB of K and V take a second
  ASSERT_TRUE(Bind().ok());
  ASSERT_TRUE(Step(kLength).ok()) << "what happens on the device is told later";
  EXPECT_FALSE(stream_->Synchronize().ok()) << "the stream has failed, as the engine sees";
  ExpectNothingWritten();
  const absl::Status status = ErrorOfLaterSteps();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "CPU worker")) << status;
  EXPECT_EQ(ErrorOfLaterSteps().code(), absl::StatusCode::kFailedPrecondition);
  ExpectNothingWritten();
}

TEST_F(CudaFaultTest, AnInfiniteLogitOnTheHostIsNamedAndNoTokenLeaves) {
  ASSERT_TRUE(Bind().ok());
  std::fill(Query().begin(), Query().end(), uint16_t{0x7c00});  // +inf
  ASSERT_TRUE(Step(kLength).ok());
  EXPECT_FALSE(stream_->Synchronize().ok());
  ExpectNothingWritten();
  const absl::Status status = ErrorOfLaterSteps();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "+inf")) << status;
}

TEST_F(CudaFaultTest, AnInfiniteLogitOnTheDeviceIsToldByALaterStep) {
  ASSERT_TRUE(Bind().ok());
  std::fill(Query().begin(), Query().end(), uint16_t{0x7c00});
  ASSERT_TRUE(Step(8).ok()) << "one device page, no host part";
  ASSERT_TRUE(stream_->Synchronize().ok());
  std::fill(Query().begin(), Query().end(), FloatToFloat16(0.5f));
  const absl::Status status = ErrorOfLaterSteps();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "+inf")) << status;
}

TEST_F(CudaFaultTest, RunningALayerNeitherAllocatesNorWaits) {
  ASSERT_TRUE(Bind().ok());
  ASSERT_TRUE(Step(kLength).ok());
  ASSERT_TRUE(stream_->Synchronize().ok());
  for (int step = 0; step < 6; ++step) {
    ASSERT_TRUE(Plan(1).ok());
    ASSERT_TRUE(Forward(0).ok());  // takes up the step
    const int64_t allocations = stream_->allocations();
    ASSERT_TRUE(Forward(1).ok());
    EXPECT_EQ(stream_->allocations(), allocations);
  }
  ASSERT_TRUE(stream_->Synchronize().ok());
}

TEST_F(CudaFaultTest, AStepThatWasLeftInTheMiddleIsRefused) {
  ASSERT_TRUE(Bind().ok());
  ASSERT_TRUE(Plan(kLength).ok());
  ASSERT_TRUE(Forward(0).ok());
  ASSERT_TRUE(Plan(1).ok());
  const absl::Status status = Forward(0);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "1 of 2 layers")) << status;
}

TEST_F(CudaFaultTest, AStepThatWasPlannedAndNeverRunIsNothing) {
  ASSERT_TRUE(Bind().ok());
  ASSERT_TRUE(Plan(kLength).ok());
  length_ = 0;
  ASSERT_TRUE(Step(kLength).ok());
  EXPECT_TRUE(ErrorOfLaterSteps().ok());
  EXPECT_TRUE(stream_->Synchronize().ok());
}

TEST_F(CudaFaultTest, LayersThatRunTwiceAreRefused) {
  ASSERT_TRUE(Bind().ok());
  ASSERT_TRUE(Step(kLength).ok());
  EXPECT_EQ(Forward(0).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CudaFaultTest, AStepIsNotCaptured) {
  ASSERT_TRUE(Bind().ok());
  ASSERT_TRUE(Plan(1).ok());
  stream_->Capture();
  const absl::Status status = Forward(0);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "graph_tokens")) << status;
}

// ---- Graphs, here of up to 4 tokens ----

TEST_F(CudaFaultTest, AWorkerThatIsLateInAReplayEndsTheBackendAndNoTokenLeaves) {
  options_.timeout = absl::Milliseconds(100);
  options_.dram_gigabytes_per_second = 1e-6;  // K and V of one token take a quarter of a second
  ASSERT_TRUE(BindAndCapture().ok());
  ASSERT_TRUE(Step(kBlock).ok());  // all on the device
  ASSERT_TRUE(stream_->Synchronize().ok());
  std::fill(Out().begin(), Out().end(), 0xffff);
  ASSERT_TRUE(ReplayedStep(1).ok()) << "what happens on the device is told later";
  EXPECT_FALSE(stream_->Synchronize().ok()) << "the stream has failed, as the engine sees";
  ExpectNothingWritten();
  const absl::Status status = ErrorOfLaterSteps();
  EXPECT_TRUE(absl::StrContains(status.message(), "CPU worker did not answer")) << status;
  EXPECT_EQ(ErrorOfLaterSteps().code(), absl::StatusCode::kFailedPrecondition);
  ExpectNothingWritten();
}

TEST_F(CudaFaultTest, ReplaysFollowEachOtherWithoutWaiting) {
  ASSERT_TRUE(BindAndCapture().ok());
  ASSERT_TRUE(Step(20).ok());
  ASSERT_TRUE(stream_->Synchronize().ok());
  std::fill(Out().begin(), Out().end(), 0xffff);
  const int64_t allocations = stream_->allocations();
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(ReplayedStep(1).ok());  // two of them in flight
  EXPECT_EQ(stream_->allocations(), allocations);
  ASSERT_TRUE(stream_->Synchronize().ok());
  EXPECT_TRUE(ErrorOfLaterSteps().ok());
  for (int i = 0; i < 2 * kHeadSize; ++i) EXPECT_NEAR(Float16ToFloat(Out()[i]), 0.5f, 1e-3f);
  for (int i = 2 * kHeadSize; i < 8 * kHeadSize; ++i) ASSERT_EQ(Out()[i], 0xffff) << "a row of padding";
}

TEST_F(CudaFaultTest, AStepThatItsGraphDoesNotServeIsRefusedAndRunsEagerly) {
  ASSERT_TRUE(BindAndCapture().ok());
  ASSERT_TRUE(Plan(20).ok());
  for (const absl::Status& status :
       {backend_->CheckReplay(plan_, kGraph), backend_->BeginStep(plan_, &kGraph, nullptr)}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "20 tokens; accepted: up to 4")) << status;
  }
  EXPECT_TRUE(RunEagerly().ok());
  ASSERT_TRUE(Plan(4).ok());
  EXPECT_TRUE(absl::StrContains(backend_->CheckReplay(plan_, kGraph).message(), "4 query tokens of a sequence"));
  EXPECT_TRUE(RunEagerly().ok());
  ASSERT_TRUE(Plan(1).ok());
  EXPECT_TRUE(absl::StrContains(backend_->CheckReplay(plan_, {2, 1}).message(), "0 of 2 layers have been captured"));
  EXPECT_TRUE(backend_->CheckReplay(plan_, kGraph).ok());
  EXPECT_TRUE(RunEagerly().ok()) << "asking commits to nothing";
  ASSERT_TRUE(stream_->Synchronize().ok());
  EXPECT_TRUE(ErrorOfLaterSteps().ok());
}

TEST_F(CudaFaultTest, AGraphThatIsReplayedTwiceForAStepEndsTheBackend) {
  ASSERT_TRUE(BindAndCapture().ok());
  ASSERT_TRUE(Step(kLength - 8).ok());
  ASSERT_TRUE(ReplayedStep(1).ok());
  ASSERT_TRUE(stream_->Replay(graph_).ok());
  EXPECT_FALSE(stream_->Synchronize().ok());
  EXPECT_FALSE(ErrorOfLaterSteps().ok());
}

TEST_F(CudaFaultTest, TheLayersOfAStepThatWasBegunForAGraphAreTheGraphs) {
  ASSERT_TRUE(BindAndCapture().ok());
  ASSERT_TRUE(Step(8).ok());  // no host part, so nobody waits for a call
  ASSERT_TRUE(Plan(1).ok());
  ASSERT_TRUE(backend_->BeginStep(plan_, &kGraph, nullptr).ok());
  EXPECT_EQ(Forward(0).code(), absl::StatusCode::kFailedPrecondition) << "its layers are the graph's";
}

TEST_F(CudaFaultTest, AStepWhoseGraphWasNotReplayedIsNamed) {
  ASSERT_TRUE(BindAndCapture().ok());
  ASSERT_TRUE(Step(8).ok());
  ASSERT_TRUE(Plan(1).ok());
  ASSERT_TRUE(backend_->BeginStep(plan_, &kGraph, nullptr).ok());
  ASSERT_TRUE(Plan(1).ok());
  absl::Status status = backend_->BeginStep(plan_, &kGraph, nullptr);  // ends the one before, which has not run
  if (status.ok()) status = ErrorOfLaterSteps();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "was queued 0 times")) << status;
}

TEST_F(CudaFaultTest, GraphsAreRefusedWithoutTheirOptions) {
  ASSERT_TRUE(Bind().ok());
  hybridgen::Plan capture;
  const absl::Status status = backend_->PlanCapture(kGraph, capture, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "graph_tokens")) << status;
  ASSERT_TRUE(Plan(1).ok());
  EXPECT_EQ(backend_->BeginStep(plan_, &kGraph, nullptr).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(RunEagerly().ok()) << "a refusal has no consequence";
}

TEST_F(CudaFaultTest, HostMemoryThatTheDeviceCannotReachIsNotStreamedAndThatIsSaid) {
  for (const int accepted : {0, 2}) {
    stream_->accept_every_registration(accepted);
    options_.streaming_share = 1;
    ASSERT_TRUE(Bind().ok());
    const nlohmann::json stats = nlohmann::json::parse(backend_->StatisticsJson());
    EXPECT_EQ(stats["streaming_share"], 0) << stats;
    EXPECT_TRUE(absl::StrContains(stats["placement"]["notes"].dump(), "streaming_share is 0")) << stats;
    const absl::Status status = backend_->SetStreamingShare(0.5);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "could not be registered")) << status;
    EXPECT_TRUE(backend_->SetStreamingShare(0).ok());
    Unbind();
  }
}

TEST_F(CudaFaultTest, PinnedMemoryThatStagingDoesNotGetIsAnErrorOfTheBind) {
  stream_->accept_every_registration(0);
  options_.staging_bytes = int64_t{1} << 40;
  stream_->set_pinned_limit(1 << 20);
  const absl::Status status = Bind();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

TEST_F(CudaFaultTest, StreamingNeitherAllocatesNorWaitsAndItsTimesAreTold) {
  options_.streaming_share = 1;
  options_.ring_pages = 1;
  ASSERT_TRUE(Bind().ok());
  ASSERT_TRUE(Step(kLength).ok());
  ASSERT_TRUE(stream_->Synchronize().ok());
  for (int step = 0; step < 6; ++step) {
    ASSERT_TRUE(Plan(1).ok());
    ASSERT_TRUE(Forward(0).ok());
    const int64_t allocations = stream_->allocations();
    ASSERT_TRUE(Forward(1).ok());
    EXPECT_EQ(stream_->allocations(), allocations);
    ASSERT_TRUE(stream_->Synchronize().ok());
  }
  const nlohmann::json stats = nlohmann::json::parse(backend_->StatisticsJson());
  EXPECT_GT(stats["seconds"]["device"], 0) << stats;
  EXPECT_GT(stats["seconds"]["merge"], 0) << stats;
  EXPECT_EQ(stats["tiers"]["dram"]["cpu_read_bytes"], 0) << stats;
  EXPECT_GT(stats["tiers"]["dram"]["device_read_bytes"], 0) << stats;
}

TEST_F(CudaFaultTest, AnInfiniteLogitOfAStreamedPageIsToldByALaterStep) {
  options_.streaming_share = 1;
  ASSERT_TRUE(Bind().ok());
  std::fill(Query().begin(), Query().end(), uint16_t{0x7c00});
  ASSERT_TRUE(Step(kLength).ok());
  ASSERT_TRUE(stream_->Synchronize().ok());
  std::fill(Query().begin(), Query().end(), FloatToFloat16(0.5f));
  const absl::Status status = ErrorOfLaterSteps();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "+inf")) << status;
}

TEST_F(CudaFaultTest, WhatTheKernelsDoNotServeIsRefusedByName) {
  const auto refusal = [&] { return PagedAttentionBackend::Create(options_, stream_).status(); };
  EXPECT_TRUE(refusal().ok());
  options_.dtype = DType::kFloat32;
  EXPECT_EQ(refusal().code(), absl::StatusCode::kInvalidArgument) << refusal();
  options_.dtype = DType::kBFloat16;
  options_.head_size = 72;
  EXPECT_TRUE(absl::StrContains(refusal().message(), "64, 96, 128, 256")) << refusal();
}

}  // namespace
}  // namespace hybridgen
