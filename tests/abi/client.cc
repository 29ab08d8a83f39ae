// The valid caller.
#include "tests/abi/client.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace hybridgen {
namespace {

void Fill(TokenTensor& tensor, int heads, uint64_t seed) {
  ElementStream elements(seed);
  for (int token = 0; token < Client::kTokens; ++token) {
    for (int head = 0; head < heads; ++head) {
      for (int dim = 0; dim < Client::kHeadSize; ++dim) tensor.Set(token, head, dim, elements.Next());
    }
  }
}

}  // namespace

const Library& TheLibrary() {
  static const Library* const library = [] {
    absl::StatusOr<Library> opened = OpenLibrary("backend/libhybridgen.so");
    if (!opened.ok()) {
      std::fprintf(stderr, "%s\n", opened.status().ToString().c_str());
      std::exit(1);
    }
    return new Library(*opened);
  }();
  return *library;
}

::testing::AssertionResult Fails(hg_status status, hg_status expected, std::initializer_list<const char*> words) {
  const std::string message = TheLibrary().last_error();
  if (status != expected) {
    return ::testing::AssertionFailure() << "status " << status << ", expected " << expected
                                         << "; last message: " << message;
  }
  for (const char* word : words) {
    if (message.find(word) == std::string::npos) {
      return ::testing::AssertionFailure() << "the message does not say '" << word << "': " << message;
    }
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult Succeeds(hg_status status) {
  if (status == HG_OK) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "status " << status << ": " << TheLibrary().last_error();
}

hg_config ValidConfig(hg_binding binding, hg_device_kind device_kind) {
  hg_config config = {};
  config.struct_size = sizeof(config);
  config.device_kind = device_kind;
  config.binding = binding;
  config.executor = HG_EXECUTOR_POOL;
  config.isa = HG_ISA_AUTO;
  config.dtype = HG_FLOAT32;
  config.num_kv_heads = Client::kKvHeads;
  config.head_size = Client::kHeadSize;
  config.block_size = Client::kBlockSize;
  config.num_threads = 1;
  config.dram_bytes = binding == HG_BINDING_TIERED ? 64 * Client::kPageBytes : 0;
  config.dram_node = -1;
  config.cxl_node = -1;
  config.timeout_seconds = 20;
  return config;
}

hg_layer ValidLayer() {
  hg_layer layer = {};
  layer.struct_size = sizeof(layer);
  layer.num_query_heads = Client::kQueryHeads;
  layer.scale = 0.25f;
  return layer;
}

hg_batch Step::Batch() const {
  hg_batch batch = {};
  batch.struct_size = sizeof(batch);
  batch.num_sequences = static_cast<int32_t>(seq_lens.size());
  batch.query_start = query_start.data();
  batch.seq_lens = seq_lens.data();
  batch.causal = 1;
  if (requests.empty()) {
    batch.block_tables = tables.data();
    batch.block_table_stride = static_cast<int64_t>(tables.size() / std::max<size_t>(1, seq_lens.size()));
  } else {
    batch.requests = requests.data();
  }
  if (!slots.empty()) {
    batch.slot_mapping = slots.data();
    batch.num_slots = static_cast<int64_t>(slots.size());
  }
  return batch;
}

Client::Client(hg_binding binding, hg_device_kind device_kind)
    : binding_(binding),
      memory_(binding == HG_BINDING_TIERED ? kRegionBytes : kBlocks * kPageBytes),
      query_(kTokens, kQueryHeads, kHeadSize, DType::kFloat32),
      key_(kTokens, kKvHeads, kHeadSize, DType::kFloat32),
      value_(kTokens, kKvHeads, kHeadSize, DType::kFloat32),
      output_(kTokens, kQueryHeads, kHeadSize, DType::kFloat32) {
  Fill(query_, kQueryHeads, 1);
  Fill(key_, kKvHeads, 2);
  Fill(value_, kKvHeads, 3);
  region_ = memory_.data();
  const hg_config config = ValidConfig(binding, device_kind);
  const hg_layer layer = ValidLayer();
  int32_t index = -1;
  EXPECT_TRUE(Succeeds(TheLibrary().backend_create(&config, &backend_)));
  EXPECT_TRUE(Succeeds(TheLibrary().backend_add_layer(backend_, &layer, &index)));
  if (binding == HG_BINDING_TIERED) {
    const hg_regions regions = Regions();
    EXPECT_TRUE(Succeeds(TheLibrary().backend_bind_tiered(backend_, &regions)));
  } else {
    const hg_pool pool = Pool();
    EXPECT_TRUE(Succeeds(TheLibrary().backend_bind_identity(backend_, &pool)));
  }
}

Client::~Client() {
  TheLibrary().plan_destroy(plan_);
  TheLibrary().backend_destroy(backend_);
  EXPECT_TRUE(memory_.RedZonesIntact());
}

hg_pool Client::Pool() {
  hg_pool pool = {};
  pool.struct_size = sizeof(pool);
  pool.data = region_;
  pool.num_blocks = kBlocks;
  pool.token_stride = 2 * kHeadSize;
  pool.head_stride = kBlockSize * pool.token_stride;
  pool.block_stride = kKvHeads * pool.head_stride;
  return pool;
}

hg_regions Client::Regions() {
  hg_regions regions = {};
  regions.struct_size = sizeof(regions);
  regions.num_layers = 1;
  regions.data = &region_;
  regions.bytes = kRegionBytes;
  regions.num_blocks = kBlocks;
  return regions;
}

hg_status Client::Plan(const Step& step) {
  const hg_batch batch = step.Batch();
  return TheLibrary().backend_plan_step(backend_, &batch, &plan_);
}

hg_status Client::Forward() {
  const hg_tensor query = Query(), key = Key(), value = Value(), output = Output();
  return TheLibrary().backend_forward(backend_, plan_, 0, &query, &key, &value, &output);
}

::testing::AssertionResult Client::Works() {
  output_.Poison();
  const Step step;
  if (const hg_status status = Plan(step); status != HG_OK) return Succeeds(status);
  if (const hg_status status = Forward(); status != HG_OK) return Succeeds(status);
  const int tokens = step.query_start.back();
  for (int token = 0; token < tokens; ++token) {
    for (int head = 0; head < kQueryHeads; ++head) {
      for (int dim = 0; dim < kHeadSize; ++dim) {
        // A mean of V lies in V's range.
        if (!(std::abs(output_.Get(token, head, dim)) <= 1.0f)) {
          return ::testing::AssertionFailure()
                 << "output of token " << token << " is " << output_.Get(token, head, dim);
        }
      }
    }
  }
  if (!output_.SurroundingsIntact(tokens)) return ::testing::AssertionFailure() << "written around the output";
  return ::testing::AssertionSuccess();
}

}  // namespace hybridgen
