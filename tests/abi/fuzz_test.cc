// Random bad input: fields of valid structs take odd values. Whatever comes back, nothing crashes, hangs or writes
// outside, and the backend works afterwards.
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>

#include "tests/abi/client.h"

namespace hybridgen {
namespace {

#ifdef HYBRIDGEN_SANITIZER
constexpr int kIterations = 2000;
#else
constexpr int kIterations = 20000;
#endif

class Fuzzer {
 public:
  explicit Fuzzer(uint64_t seed) : random_(seed) {}

  bool OneIn(int n) { return random_() % n == 0; }

  int64_t OddValue() {
    constexpr int64_t kValues[] = {0,
                                   1,
                                   -1,
                                   2,
                                   3,
                                   7,
                                   8,
                                   15,
                                   16,
                                   17,
                                   31,
                                   32,
                                   33,
                                   64,
                                   100,
                                   1000,
                                   4096,
                                   -16,
                                   -1000,
                                   std::numeric_limits<int32_t>::max(),
                                   std::numeric_limits<int32_t>::min(),
                                   std::numeric_limits<int64_t>::max(),
                                   std::numeric_limits<int64_t>::min()};
    return OneIn(8) ? static_cast<int64_t>(random_()) : kValues[random_() % std::size(kValues)];
  }

  template <typename T>
  void Maybe(T& field, int n) {
    if (OneIn(n)) field = static_cast<T>(OddValue());
  }
  template <typename T>
  void Maybe(std::vector<T>& fields, int n) {
    for (T& field : fields) Maybe(field, n);
  }
  int Below(int n) { return static_cast<int>(random_() % n); }

 private:
  std::mt19937_64 random_;
};

// bazel test //tests/abi:fuzz_test --test_env=HYBRIDGEN_TEST_SEED=N
uint64_t Seed() {
  const char* seed = std::getenv("HYBRIDGEN_TEST_SEED");
  return seed != nullptr ? std::strtoull(seed, nullptr, 10) : 20260418;
}

class FuzzTest : public ::testing::TestWithParam<hg_binding> {
 protected:
  FuzzTest() : fuzzer_(Seed()) {
    std::fprintf(stderr, "replay: --test_env=HYBRIDGEN_TEST_SEED=%llu\n", static_cast<unsigned long long>(Seed()));
  }
  Fuzzer fuzzer_;
};

TEST_P(FuzzTest, Steps) {
  Client client(GetParam(), HG_DEVICE_CPU);
  int planned = 0, ran = 0;
  for (int i = 0; i < kIterations; ++i) {
    // A plausible step of up to 3 sequences, then odd values here and there.
    Step step;
    const int sequences = 1 + fuzzer_.Below(3);
    step.query_start = {0};
    step.seq_lens.clear();
    step.tables.clear();
    for (int s = 0; s < sequences; ++s) {
      const int length = 1 + fuzzer_.Below(32);
      step.seq_lens.push_back(length);
      step.query_start.push_back(step.query_start.back() + 1 + fuzzer_.Below(std::min(length, 20)));
      for (int b = 0; b < 2; ++b) step.tables.push_back(fuzzer_.Below(Client::kBlocks));
    }
    fuzzer_.Maybe(step.query_start, 30);
    fuzzer_.Maybe(step.seq_lens, 30);
    fuzzer_.Maybe(step.tables, 30);
    if (GetParam() == HG_BINDING_IDENTITY && fuzzer_.OneIn(2)) {
      for (int t = 0; t < step.query_start.back() && t < Client::kTokens; ++t) {
        step.slots.push_back(fuzzer_.Below(Client::kBlocks * Client::kBlockSize));
      }
      fuzzer_.Maybe(step.slots, 100);
    }
    hg_batch batch = step.Batch();
    fuzzer_.Maybe(batch.struct_size, 100);
    fuzzer_.Maybe(batch.causal, 10);
    // Counts may only shrink: a pointer with too large a count is the caller's own memory error.
    if (fuzzer_.OneIn(50)) batch.num_sequences = -fuzzer_.Below(3);
    if (fuzzer_.OneIn(50)) batch.block_table_stride = fuzzer_.Below(3) - 1;
    if (fuzzer_.OneIn(50)) batch.num_slots = fuzzer_.Below(2) - 1;
    if (fuzzer_.OneIn(100)) batch.query_start = nullptr;
    if (fuzzer_.OneIn(100)) batch.seq_lens = nullptr;
    if (fuzzer_.OneIn(100)) batch.block_tables = nullptr;

    if (TheLibrary().backend_plan_step(client.backend(), &batch, &client.plan()) != HG_OK) continue;
    ++planned;
    if (step.query_start[batch.num_sequences] > Client::kTokens) continue;  // larger than our tensors
    if (client.Forward() == HG_OK) ++ran;
  }
  // The loop is about bad input, but most of it must get somewhere.
  EXPECT_GT(planned, kIterations / 4);
  EXPECT_GT(ran, kIterations / 4);
  EXPECT_TRUE(client.Works());
}

TEST_P(FuzzTest, Requests) {
  if (GetParam() != HG_BINDING_TIERED) return;  // the mirror belongs to the tiered binding
  Client client(GetParam(), HG_DEVICE_CPU);
  int accepted = 0;
  for (int i = 0; i < kIterations; ++i) {
    std::vector<int32_t> blocks(fuzzer_.Below(4));
    for (int32_t& block : blocks) block = fuzzer_.Below(Client::kBlocks);
    fuzzer_.Maybe(blocks, 30);
    hg_request_delta delta = {};
    delta.struct_size = sizeof(delta);
    delta.event = fuzzer_.Below(4);
    delta.request = fuzzer_.Below(6);
    delta.blocks = blocks.data();
    delta.num_blocks = static_cast<int32_t>(blocks.size());
    fuzzer_.Maybe(delta.struct_size, 100);
    fuzzer_.Maybe(delta.event, 30);
    fuzzer_.Maybe(delta.request, 30);
    if (fuzzer_.OneIn(30)) delta.num_blocks = -fuzzer_.Below(1000);
    if (fuzzer_.OneIn(30)) delta.blocks = nullptr;
    accepted += TheLibrary().backend_update_requests(client.backend(), &delta, 1) == HG_OK;

    Step step;
    step.requests = {static_cast<uint64_t>(fuzzer_.Below(6))};
    step.seq_lens = {1 + fuzzer_.Below(40)};
    step.query_start = {0, 1 + fuzzer_.Below(step.seq_lens[0])};
    if (client.Plan(step) == HG_OK) (void)client.Forward();
  }
  EXPECT_GT(accepted, kIterations / 4);
  EXPECT_TRUE(client.Works());
}

TEST_P(FuzzTest, Configurations) {
  int created = 0;
  for (int i = 0; i < kIterations / 20; ++i) {
    hg_config config = ValidConfig(GetParam(), fuzzer_.OneIn(4) ? HG_DEVICE_EMULATED : HG_DEVICE_CPU);
    for (int32_t hg_config::*field :
         {&hg_config::device_kind, &hg_config::binding, &hg_config::executor, &hg_config::isa, &hg_config::dtype,
          &hg_config::num_kv_heads, &hg_config::head_size, &hg_config::block_size, &hg_config::speculative_tokens,
          &hg_config::dram_node, &hg_config::cxl_node, &hg_config::head_groups}) {
      fuzzer_.Maybe(config.*field, 20);
    }
    if (fuzzer_.OneIn(20)) config.num_threads = fuzzer_.Below(8) - 4;
    if (fuzzer_.OneIn(20)) config.device_threads = fuzzer_.Below(8) - 4;
    fuzzer_.Maybe(config.dram_bytes, 20);
    fuzzer_.Maybe(config.cxl_bytes, 20);
    fuzzer_.Maybe(config.streaming_share, 20);
    fuzzer_.Maybe(config.device_gigabytes_per_second, 20);
    fuzzer_.Maybe(config.mover_gigabytes_per_second, 20);
    fuzzer_.Maybe(config.timeout_seconds, 20);
    fuzzer_.Maybe(config.struct_size, 40);
    hg_backend* backend = nullptr;
    if (TheLibrary().backend_create(&config, &backend) == HG_OK) {
      ++created;
      EXPECT_NE(backend, nullptr);
    } else {
      EXPECT_EQ(backend, nullptr);
      EXPECT_GT(std::strlen(TheLibrary().last_error()), 20u);
    }
    TheLibrary().backend_destroy(backend);
  }
  EXPECT_GT(created, kIterations / 200);
}

INSTANTIATE_TEST_SUITE_P(Bindings, FuzzTest, ::testing::Values(HG_BINDING_IDENTITY, HG_BINDING_TIERED),
                         [](const ::testing::TestParamInfo<hg_binding>& info) {
                           return info.param == HG_BINDING_TIERED ? "Tiered" : "Identity";
                         });

}  // namespace
}  // namespace hybridgen
