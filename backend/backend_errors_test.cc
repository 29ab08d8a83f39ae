// What a backend refuses: options, layers, batches and plans that it cannot answer, each by name.
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "backend/paged_attention_backend.h"
#include "gtest/gtest.h"

namespace hybridgen {
namespace {

BackendOptions Valid() {
  BackendOptions o;
  o.num_kv_heads = 2;
  o.head_size = 64;
  o.block_size = 16;
  o.executor = ExecutorKind::kPool;
  o.num_threads = 1;
  return o;
}

TEST(BackendErrorsTest, UnusableOptionsAreRefusedByName) {
  const auto message = [](void (*change)(BackendOptions&)) {
    BackendOptions o = Valid();
    change(o);
    return std::string(PagedAttentionBackend::Create(o).status().message());
  };
  const auto expect = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  EXPECT_TRUE(PagedAttentionBackend::Create(Valid()).ok());
  expect(message([](BackendOptions& o) { o.head_size = 63; }), "head_size is 63; accepted: multiples of 8");
  expect(message([](BackendOptions& o) { o.block_size = 8; }), "block_size is 8; accepted: multiples of 16");
  expect(message([](BackendOptions& o) { o.num_kv_heads = 0; }), "num_kv_heads is 0; accepted: 1 to");
  expect(message([](BackendOptions& o) { o.streaming_share = std::nan(""); }), "streaming_share is nan");
  expect(message([](BackendOptions& o) { o.device_kind = DeviceKind::kCuda; }), "cuda");
  expect(message([](BackendOptions& o) { o.interleave_dram_weight = 0; }),
         "interleave_dram_weight is 0; accepted: 1 to 255");
  expect(message([](BackendOptions& o) { o.interleave_cxl_weight = 256; }), "interleave_cxl_weight is 256");
  expect(message([](BackendOptions& o) { o.dram_gigabytes_per_second = std::nan(""); }),
         "dram_gigabytes_per_second is nan; accepted: 0 (unpaced)");
  expect(message([](BackendOptions& o) {
           o.cxl_node = 1;
           o.cxl_device = "/dev/dax0.0";
         }),
         "cxl_node is 1 and cxl_device is '/dev/dax0.0'; accepted: one of them");
  expect(message([](BackendOptions& o) {
           o.cxl_node = 1;
           o.cxl_gigabytes_per_second = 3;
         }),
         "cxl_gigabytes_per_second is 3 and the CXL tier is node 1; accepted: 0");
  expect(message([](BackendOptions& o) {
           o.cxl_device = "/dev/dax0.0";
           o.cxl_gigabytes_per_second = 3;
         }),
         "the CXL tier is /dev/dax0.0; accepted: 0");
  expect(message([](BackendOptions& o) { o.dtype = DType::kFloat8E4M3; }),
         "dtype is float8_e4m3; accepted: float32, float16, bfloat16");
  expect(message([](BackendOptions& o) { o.kv_dtype = DType::kFloat16; }),
         "kv_dtype is float16 and dtype float32; accepted: the same, or a kv_dtype of float8_e4m3");
  expect(message([](BackendOptions& o) { o.host_page_format = HostPageFormat::kInt8; }),
         "host_page_format is int8; accepted with the identity binding, which has no host pages: exact");
  expect(message([](BackendOptions& o) {
           o.device_kind = DeviceKind::kCuda;
           o.binding = Binding::kTiered;
           o.dram_bytes = 1 << 20;
           o.host_page_format = HostPageFormat::kInt8;
         }),
         "host_page_format is int8; accepted with device_kind cuda, whose copies do not quantise: exact");
  expect(message([](BackendOptions& o) {
           o.binding = Binding::kTiered;
           o.dram_bytes = 1 << 20;
           o.kv_dtype = DType::kFloat8E5M2;
           o.host_page_format = HostPageFormat::kInt8;
         }),
         "host_page_format is int8; accepted with kv_dtype float8_e5m2, which has 8 bits already: exact");
  expect(message([](BackendOptions& o) { o.page_digests = PageDigests::kOnPublish; }),
         "page_digests is on_publish; accepted with the identity binding, which publishes nothing: none");
  expect(message([](BackendOptions& o) {
           o.binding = Binding::kTiered;
           o.dram_bytes = 1 << 20;
           o.host_page_format = HostPageFormat::kInt8;
           o.page_digests = PageDigests::kOnPublish;
         }),
         "page_digests is on_publish; accepted with host_page_format int8, whose pages have no digests: none");
  expect(message([](BackendOptions& o) { o.binding = Binding::kTiered; }), "dram_bytes and cxl_bytes are both 0");
}

TEST(BackendErrorsTest, LayersThatNoKernelCanAnswerAreRefused) {
  std::unique_ptr<PagedAttentionBackend> backend = *PagedAttentionBackend::Create(Valid());
  const float inf = std::numeric_limits<float>::infinity();
  const auto message = [&](LayerParams params) { return std::string(backend->AddLayer(params).status().message()); };
  LayerParams layer;
  layer.num_query_heads = 2;
  layer.sinks = {-inf, 1.0f};
  EXPECT_EQ(message(layer), "");
  layer.sinks = {0.0f, inf};
  EXPECT_NE(message(layer).find("sinks hold inf; accepted"), std::string::npos) << message(layer);
  layer.sinks.clear();
  layer.alibi_slopes = {std::nanf(""), 0.0f};
  EXPECT_NE(message(layer).find("alibi_slopes hold nan; accepted"), std::string::npos) << message(layer);
  layer.alibi_slopes.clear();
  layer.scale = inf;
  EXPECT_NE(message(layer).find("scale is inf; accepted"), std::string::npos) << message(layer);
  layer.scale = 1.0f;
  layer.k_scale = 0.5f;
  EXPECT_NE(message(layer).find("k_scale is 0.5; accepted with KV of float32: 1"), std::string::npos) << message(layer);
  layer.k_scale = 1.0f;
  layer.num_query_heads = 3;
  EXPECT_NE(message(layer).find("num_query_heads is 3; accepted"), std::string::npos) << message(layer);
}

TEST(BackendErrorsTest, ScalesOfFloat8ArePositiveAndFinite) {
  BackendOptions options = Valid();
  options.kv_dtype = DType::kFloat8E4M3;
  std::unique_ptr<PagedAttentionBackend> backend = *PagedAttentionBackend::Create(options);
  LayerParams layer;
  layer.num_query_heads = 2;
  layer.k_scale = 0.5f;
  layer.v_scale = 1e-3f;
  EXPECT_TRUE(backend->AddLayer(layer).ok());
  for (float scale : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    layer.v_scale = scale;
    const std::string message(backend->AddLayer(layer).status().message());
    EXPECT_NE(message.find("v_scale is"), std::string::npos) << message;
  }
}

TEST(BackendErrorsTest, TooFewHostPagesAreRefusedWithTheSizes) {
  BackendOptions o = Valid();
  o.binding = Binding::kTiered;
  o.dram_bytes = 1 << 20;
  std::unique_ptr<PagedAttentionBackend> backend = *PagedAttentionBackend::Create(o);
  LayerParams params;
  params.num_query_heads = 2;
  ASSERT_TRUE(backend->AddLayer(params).ok());
  std::vector<char> region(1 << 16);
  const absl::Status status = backend->BindTiered({{region.data()}, static_cast<int64_t>(region.size()), 1000});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_NE(status.message().find("dram_bytes 1048576"), std::string::npos) << status;
}

TEST(BackendErrorsTest, StaleAndForeignPlansAreRefused) {
  BackendOptions o = Valid();
  o.binding = Binding::kTiered;
  o.dram_bytes = 1 << 20;
  std::unique_ptr<PagedAttentionBackend> backend = *PagedAttentionBackend::Create(o);
  LayerParams params;
  params.num_query_heads = 2;
  ASSERT_TRUE(backend->AddLayer(params).ok());
  std::vector<char> region(1 << 16);
  ASSERT_TRUE(backend->BindTiered({{region.data()}, static_cast<int64_t>(region.size()), 8}).ok());
  const std::vector<int32_t> start = {0, 1}, lens = {1}, table = {3};
  StepBatch batch;
  batch.query_start = start;
  batch.seq_lens = lens;
  batch.block_tables = table.data();
  batch.block_table_stride = 1;
  Plan first, second, never;
  ASSERT_TRUE(backend->PlanStep(batch, first).ok());
  ASSERT_TRUE(backend->PlanStep(batch, second).ok());
  std::vector<float> x(2 * 64);
  const TensorView view{x.data(), 128, 64};
  EXPECT_TRUE(backend->Forward(second, 0, view, view, view, view).ok());
  EXPECT_EQ(backend->Forward(first, 0, view, view, view, view).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(backend->Forward(never, 0, view, view, view, view).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend->Forward(second, 1, view, view, view, view).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend->Forward(second, 0, {}, view, view, view).code(), absl::StatusCode::kInvalidArgument);
}

TEST(BackendErrorsTest, MalformedBatchesAreRefused) {
  BackendOptions o = Valid();
  std::unique_ptr<PagedAttentionBackend> backend = *PagedAttentionBackend::Create(o);
  Plan plan;
  const std::vector<int32_t> table = {0, 1};
  const auto status = [&](std::vector<int32_t> start, std::vector<int32_t> lens) {
    StepBatch batch;
    batch.query_start = start;
    batch.seq_lens = lens;
    batch.block_tables = table.data();
    batch.block_table_stride = 2;
    return std::string(backend->PlanStep(batch, plan).message());
  };
  EXPECT_EQ(status({0, 4}, {20}), "");
  EXPECT_NE(status({0, 4}, {3}).find("4 query tokens but seq_len 3"), std::string::npos);
  EXPECT_NE(status({0, -1}, {3}).find("query_start falls"), std::string::npos);
  EXPECT_NE(status({1, 2}, {3}).find("query_start[0] is 1"), std::string::npos);
  EXPECT_NE(status({0, 1}, {33}).find("needs 3 block table entries"), std::string::npos);
}

TEST(BackendErrorsTest, AnInfiniteLogitIsAnErrorNotAnAnswer) {
  BackendOptions o = Valid();
  std::unique_ptr<PagedAttentionBackend> backend = *PagedAttentionBackend::Create(o);
  LayerParams params;
  params.num_query_heads = 2;
  ASSERT_TRUE(backend->AddLayer(params).ok());
  std::vector<float> tensor(2 * 2 * 16 * 64 * 2);
  ASSERT_TRUE(backend->BindIdentity({0, tensor.data(), 2, 2 * 16 * 128, 16 * 128, 128}).ok());
  const std::vector<int32_t> start = {0, 1}, lens = {1}, table = {1};
  StepBatch batch;
  batch.query_start = start;
  batch.seq_lens = lens;
  batch.block_tables = table.data();
  batch.block_table_stride = 1;
  Plan plan;
  ASSERT_TRUE(backend->PlanStep(batch, plan).ok());
  std::vector<float> big(2 * 64, 1e30f), out(2 * 64);
  const TensorView view{big.data(), 128, 64};
  const absl::Status status = backend->Forward(plan, 0, view, view, view, {out.data(), 128, 64});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("+inf"), std::string::npos) << status;
}

}  // namespace
}  // namespace hybridgen
