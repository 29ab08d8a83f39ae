// Real attention over the joint: the fake stream's kernels attend device pages, the CPU worker attends host pages from
// the query and into the slot of each call, and the merged output equals the double-precision oracle's.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "absl/time/time.h"
#include "backend/attention_worker.h"
#include "backend/joint_dispatcher.h"
#include "backend/pool_executor.h"
#include "gtest/gtest.h"
#include "kernels/kernel_table.h"
#include "kernels/testing/attend_case.h"
#include "tests/joint/fake_stream.h"
#include "tests/joint/weak_memory.h"
#include "tests/oracle/attention_oracle.h"

namespace hybridgen {
namespace {

constexpr int kLayers = 3;
constexpr int kSteps = 4;
constexpr int kKvHeads = 2;
constexpr int kHeads = 4;
constexpr int kHeadSize = 24;
constexpr int kPage = 16;    // tokens
constexpr int kThreads = 5;  // of the publishing block
constexpr int kRow = kHeads * kHeadSize;

// Sequence 0 lies on both sides, sequence 1 on the host alone.
constexpr int kHostPages[] = {3, 2};
constexpr int kDevicePages[] = {2, 0};
constexpr int kLengths[] = {4 * kPage + 5, kPage + 9};
constexpr int kTokens = kLengths[0] + kLengths[1];

struct Layer {
  LayerParams params;
  LayerPages pages;
  std::vector<float> key, value;  // [token][kv head][dim], sequence after sequence
  std::vector<float> pool;        // device pages, [page][kv head][token][K, V]
};

class HybridAttention {
 public:
  explicit HybridAttention(uint64_t seed)
      : rng_(seed),
        cpu_pool_(*CreatePoolExecutor(PoolOptions())),
        device_pool_(*CreatePoolExecutor({})),
        cpu_(cpu_pool_.get(), kernels_, DType::kFloat32, kHeadSize, kKvHeads),
        device_worker_(device_pool_.get(), kernels_, DType::kFloat32, kHeadSize, kKvHeads),
        weak_(seed, kThreads, Mutation::kNone, [this] { return now_ += 1; }) {
    host_page_bytes_ = PackedPageBytes(DType::kFloat32, kKvHeads, kPage, kHeadSize);
    for (std::vector<uint8_t>* role : {&host_k_, &host_v_}) role->resize(kLayers * 5 * host_page_bytes_, 0xff);
    MakePlan();
    for (int layer = 0; layer < kLayers; ++layer) MakeLayer(layer);
    partial_o_.resize(static_cast<size_t>(plan_.partial_rows) * kRow, NAN);
    partial_lse_.resize(static_cast<size_t>(plan_.partial_rows) * kHeads, NAN);

    JointOptions options;
    options.bytes.query = sizeof(float) * 2 * kRow;
    options.bytes.o = static_cast<int64_t>(sizeof(float) * partial_o_.size());
    options.bytes.lse = static_cast<int64_t>(sizeof(float) * partial_lse_.size());
    options.worker_timeout = absl::Minutes(1);
    options.device_timeout = absl::Minutes(2);
    joint_ = *JointDispatcher::Create(options);
    table_ = joint_->memory().table();
    table_.plan = &device_plan_;
    stream_ = std::make_unique<FakeStream>(seed);
  }

  // Decodes one token of each sequence in every layer and compares with the oracle.
  void Step() {
    std::vector<std::vector<float>> queries(kLayers), outputs(kLayers);
    absl::StatusOr<const JointPlan*> plan = joint_->BeginStep(kLayers, [this](const JointCall& call) {
      LayerCall layer = Call(call.index, const_cast<void*>(call.query), nullptr);
      layer.partials = {call.o, call.lse};
      return cpu_.Attend(layer, plan_.cpu_items);
    });
    ASSERT_TRUE(plan.ok()) << plan.status();
    stream_->Launch({[this, source = *plan] {
      device_plan_ = *source;
      return KernelEnd::kDone;
    }});
    for (int layer = 0; layer < kLayers; ++layer) {
      queries[layer] = Random(2 * kRow);
      outputs[layer].resize(2 * kRow, NAN);
      LaunchLayer(layer, queries[layer].data(), outputs[layer].data());
    }
    ASSERT_TRUE(stream_->Synchronize()) << joint_->status();
    for (int layer = 0; layer < kLayers; ++layer) Compare(layer, queries[layer], outputs[layer]);
  }

 private:
  static PoolExecutorOptions PoolOptions() {
    PoolExecutorOptions options;
    options.num_workers = 2;
    return options;
  }

  std::vector<float> Random(size_t size) {
    std::normal_distribution<float> normal;
    std::vector<float> values(size);
    for (float& value : values) value = normal(rng_);
    return values;
  }

  void MakePlan() {
    int host = 0, pool = 0, token = 0;
    for (int s = 0; s < 2; ++s) {
      PlanSequence sequence;
      sequence.query_start = s;
      sequence.query_len = 1;
      sequence.seq_len = kLengths[s];
      const int32_t first = static_cast<int32_t>(plan_.pages.size());
      for (int p = 0; p < kHostPages[s] + kDevicePages[s]; ++p) {
        const bool on_host = p < kHostPages[s];
        PlanPage page;
        page.k = on_host ? HostAddress(host_k_, host) : pool;
        page.v = on_host ? HostAddress(host_v_, host) : pool;
        page.first_position = p * kPage;
        page.num_tokens = std::min(kPage, kLengths[s] - page.first_position);
        WriteRun run;
        run.kind = on_host ? PageKind::kHost : PageKind::kPool;
        run.k = page.k;
        run.v = page.v;
        run.token = token + page.first_position;
        run.num_tokens = page.num_tokens;
        (on_host ? plan_.host_writes : plan_.pool_writes).push_back(run);
        plan_.pages.push_back(page);
        ++(on_host ? host : pool);
      }
      sequence.host_pages = {first, first + kHostPages[s]};
      sequence.pool_pages = {first + kHostPages[s], first + kHostPages[s] + kDevicePages[s]};
      plan_.sequences.push_back(sequence);
      token += kLengths[s];
    }
    plan_.num_tokens = 2;
    plan_.tokens_written = kTokens;
    SplitOptions split;
    split.num_kv_heads = kKvHeads;
    split.group = kHeads / kKvHeads;
    split.cpu_workers = 2;
    split.device_workers = 1;
    SplitWork(split, plan_);
  }

  uint64_t HostAddress(const std::vector<uint8_t>& role, int page) const {
    return reinterpret_cast<uint64_t>(role.data()) + static_cast<uint64_t>(page) * kLayers * host_page_bytes_;
  }

  void MakeLayer(int index) {
    Layer& layer = layers_[index];
    layer.params.num_query_heads = kHeads;
    layer.params.scale = 0.2f;
    if (index == 1) layer.params.sinks = Random(kHeads);
    layer.key = Random(kTokens * kKvHeads * kHeadSize);
    layer.value = Random(kTokens * kKvHeads * kHeadSize);
    const int64_t head_stride = int64_t{kPage} * 2 * kHeadSize;
    layer.pool.resize(2 * kKvHeads * head_stride, NAN);
    layer.pages.pool = {PageFormat::kStrided, DType::kFloat32, kPage,       kKvHeads,     kHeadSize,
                        head_stride,          2 * kHeadSize,   head_stride, 2 * kHeadSize};
    layer.pages.pool_k = reinterpret_cast<uint64_t>(layer.pool.data());
    layer.pages.pool_v = layer.pages.pool_k + kHeadSize * sizeof(float);
    layer.pages.pool_page_bytes = kKvHeads * head_stride * sizeof(float);
    layer.pages.pool_pages = 2;
    layer.pages.host = {PageFormat::kPackedV1, DType::kFloat32, kPage, kKvHeads, kHeadSize, 0, 0, 0, 0};
    layer.pages.host_k = layer.pages.host_v = index * host_page_bytes_;
    LayerCall call = Call(index, nullptr, nullptr);
    call.key = {layer.key.data(), kKvHeads * kHeadSize, kHeadSize};
    call.value = {layer.value.data(), kKvHeads * kHeadSize, kHeadSize};
    ASSERT_TRUE(cpu_.Write(call, plan_.host_writes).ok());
    ASSERT_TRUE(device_worker_.Write(call, plan_.pool_writes).ok());
  }

  LayerCall Call(int layer, void* query, float* output) const {
    LayerCall call;
    call.plan = &plan_;
    call.params = &layers_[layer].params;
    call.pages = &layers_[layer].pages;
    call.query = {query, kRow, kHeadSize};
    call.output = {output, kRow, kHeadSize};
    return call;
  }

  void LaunchLayer(int layer, float* query, float* output) {
    const auto publish = [this, layer, query] {
      for (int thread = 0; thread < kThreads; ++thread) {
        WeakOps ops(weak_, thread);
        JointStoreQuery(ops, table_, layer, reinterpret_cast<const uint64_t*>(query),
                        2 * kRow * sizeof(float) / sizeof(uint64_t), thread, kThreads);
      }
      WeakOps ops(weak_, 0);
      JointPublish(ops, table_, layer);
      return KernelEnd::kDone;
    };
    const auto attend = [this, layer, query, output] {
      LayerCall call = Call(layer, query, output);
      call.partials = {partial_o_.data(), partial_lse_.data()};
      return device_worker_.Attend(call, plan_.device_items).ok() ? KernelEnd::kDone : KernelEnd::kTrap;
    };
    const auto wait = [this, layer] {
      WeakOps ops(weak_, 0);
      return JointWait(ops, table_, layer) == JointOutcome::kAnswered ? KernelEnd::kDone : KernelEnd::kTrap;
    };
    const auto merge = [this, layer, query, output] {
      const unsigned char* slot = JointSlot(table_, device_plan_.first_sequence + layer);
      for (const WorkItem& item : plan_.cpu_items) {
        Fetch(slot + table_.o_offset, item.partial_row, kRow, partial_o_.data());
        Fetch(slot + table_.lse_offset, item.partial_row, kHeads, partial_lse_.data());
      }
      LayerCall call = Call(layer, query, output);
      call.partials = {partial_o_.data(), partial_lse_.data()};
      return device_worker_.Merge(call, plan_.merges).ok() ? KernelEnd::kDone : KernelEnd::kTrap;
    };
    stream_->Launch({publish, attend, wait, merge});
  }

  // Loads one row of partials from the slot as the device sees it.
  void Fetch(const unsigned char* from, int row, int floats, float* to) {
    const auto* words = reinterpret_cast<const uint64_t*>(from + sizeof(float) * row * floats);
    for (int i = 0; i < floats / 2; ++i) {
      const uint64_t word = weak_.Load(words + i);
      std::memcpy(to + row * floats + 2 * i, &word, sizeof(word));
    }
  }

  void Compare(int index, const std::vector<float>& query, const std::vector<float>& output) {
    const Layer& layer = layers_[index];
    for (int s = 0; s < 2; ++s) {
      const int first = s == 0 ? 0 : kLengths[0];
      OracleInput input;
      input.num_tokens = 1;
      input.query_heads = kHeads;
      input.kv_heads = kKvHeads;
      input.head_size = kHeadSize;
      input.query = [&](int, int head, int dim) { return query[s * kRow + head * kHeadSize + dim]; };
      const auto kv = [&](const std::vector<float>& role) {
        return [&role, first](int position, int head, int dim) {
          return role[((first + position) * kKvHeads + head) * kHeadSize + dim];
        };
      };
      input.key = kv(layer.key);
      input.value = kv(layer.value);
      input.scale = layer.params.scale;
      input.sinks = layer.params.sinks;
      input.SetRanges(kLengths[s], OracleInput::Mask::kCausal, 0);
      const std::vector<OracleRow> rows = AttendOracle(input);
      for (int head = 0; head < kHeads; ++head) {
        const double tolerance = OutputTolerance(rows[head], DType::kFloat32, kDevicePages[s] > 0 ? 2 : 1);
        for (int dim = 0; dim < kHeadSize; ++dim) {
          ASSERT_NEAR(output[s * kRow + head * kHeadSize + dim], rows[head].o[dim], tolerance)
              << "layer " << index << " sequence " << s << " head " << head << " dim " << dim;
        }
      }
    }
  }

  std::mt19937_64 rng_;
  const KernelSet kernels_ = SelectKernels(CpuFeatures());
  std::unique_ptr<Executor> cpu_pool_, device_pool_;
  AttentionWorker cpu_, device_worker_;
  StepPlan plan_;
  Layer layers_[kLayers];
  size_t host_page_bytes_ = 0;
  std::vector<uint8_t> host_k_, host_v_;
  // Device memory, of the stream's thread.
  uint64_t now_ = 0;
  WeakDevice weak_;
  JointPlan device_plan_ = {};
  JointTable table_ = {};
  std::vector<float> partial_o_, partial_lse_;

  std::unique_ptr<JointDispatcher> joint_;
  std::unique_ptr<FakeStream> stream_;  // ends first
};

TEST(JointAttentionTest, TheMergedOutputEqualsTheOracles) {
  const uint64_t first = TestSeed("//tests/joint:attention_test", 1);
  for (uint64_t seed = first; seed < first + 20; ++seed) {
    SCOPED_TRACE(seed);
    HybridAttention attention(seed);
    for (int step = 0; step < kSteps; ++step) ASSERT_NO_FATAL_FAILURE(attention.Step());
  }
}

}  // namespace
}  // namespace hybridgen
