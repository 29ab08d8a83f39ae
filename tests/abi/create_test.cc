// hg_backend_create and hg_backend_add_layer refuse bad values, naming field and accepted values.
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string>

#include "tests/abi/client.h"

namespace hybridgen {
namespace {

constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

hg_status Create(const hg_config& config, hg_backend** backend) {
  // Not null before: a failure must not leave a pointer that somebody could use.
  *backend = reinterpret_cast<hg_backend*>(0x10);
  return TheLibrary().backend_create(&config, backend);
}

void ExpectRefused(const hg_config& config, std::initializer_list<const char*> words) {
  hg_backend* backend = nullptr;
  EXPECT_TRUE(Fails(Create(config, &backend), HG_INVALID_ARGUMENT, words));
  EXPECT_EQ(backend, nullptr);
}

template <typename T>
void ExpectFieldRefused(T hg_config::*field, std::initializer_list<T> values, const char* name, const char* accepted) {
  for (hg_binding binding : {HG_BINDING_IDENTITY, HG_BINDING_TIERED}) {
    for (T value : values) {
      SCOPED_TRACE(testing::Message() << name << " = " << value);
      hg_config config = ValidConfig(binding);
      config.*field = value;
      ExpectRefused(config, {name, accepted});
    }
  }
}

TEST(CreateTest, NullPointers) {
  const hg_config config = ValidConfig(HG_BINDING_IDENTITY);
  hg_backend* backend = nullptr;
  EXPECT_TRUE(Fails(TheLibrary().backend_create(nullptr, &backend), HG_INVALID_ARGUMENT, {"config", "null"}));
  EXPECT_TRUE(Fails(TheLibrary().backend_create(&config, nullptr), HG_INVALID_ARGUMENT, {"out", "null"}));
}

TEST(CreateTest, StructSizes) {
  for (uint32_t size : {0u, 4u, 40u, 5000u, 0xffffffffu}) {
    SCOPED_TRACE(size);
    hg_config config = ValidConfig(HG_BINDING_IDENTITY);
    config.struct_size = size;
    ExpectRefused(config, {"struct_size", "accepted"});
  }
}

// A caller compiled against a later header, with fields that this library does not know.
TEST(CreateTest, LargerStructIsAccepted) {
  struct {
    hg_config config;
    char later_fields[64];
  } larger;
  std::memset(&larger, 0, sizeof(larger));
  larger.config = ValidConfig(HG_BINDING_IDENTITY);
  larger.config.struct_size = sizeof(larger);
  hg_backend* backend = nullptr;
  EXPECT_TRUE(Succeeds(Create(larger.config, &backend)));
  TheLibrary().backend_destroy(backend);
}

// A caller compiled against the first header, which ended after num_cpus and padding: what lies behind is not read.
TEST(CreateTest, ShorterStructIsAccepted) {
  hg_config config = ValidConfig(HG_BINDING_IDENTITY);
  config.struct_size = offsetof(hg_config, placement);
  std::memset(&config.reserved, 0x5a, sizeof(config) - offsetof(hg_config, reserved));
  hg_backend* backend = nullptr;
  EXPECT_TRUE(Succeeds(Create(config, &backend)));
  TheLibrary().backend_destroy(backend);
}

TEST(CreateTest, Enums) {
  ExpectFieldRefused(&hg_config::device_kind, {-1, 3, kMax, kMin}, "device_kind", "cpu");
  ExpectFieldRefused(&hg_config::binding, {-1, 2, kMax, kMin}, "binding", "identity");
  ExpectFieldRefused(&hg_config::executor, {-1, 3, kMax, kMin}, "executor", "openmp");
  ExpectFieldRefused(&hg_config::isa, {-2, 6, kMax, kMin}, "isa", "avx512");
  ExpectFieldRefused(&hg_config::dtype, {-1, 3, kMax, kMin}, "dtype", "bfloat16");
  ExpectFieldRefused(&hg_config::kv_dtype, {-1, 1, 2, 5, kMax, kMin}, "kv_dtype", "float8_e4m3");
  ExpectFieldRefused(&hg_config::host_page_format, {-1, 2, kMax, kMin}, "host_page_format", "int8");
  ExpectFieldRefused(&hg_config::page_digests, {-1, 2, kMax, kMin}, "page_digests", "on_publish");
  ExpectFieldRefused(&hg_config::placement, {-1, 4, kMax, kMin}, "placement", "proportional");
}

TEST(CreateTest, Geometry) {
  ExpectFieldRefused(&hg_config::head_size, {0, -8, 4, 12, 257, 264, 504, 520, 1024, kMax, kMin}, "head_size",
                     "multiples of 8");
  ExpectFieldRefused(&hg_config::block_size, {0, -16, 8, 17, kMax, kMin}, "block_size", "multiples of 16");
  ExpectFieldRefused(&hg_config::num_kv_heads, {0, -1, kMax, kMin}, "num_kv_heads", "accepted: 1 to");
}

TEST(CreateTest, EveryHeadSizeThatIsPromised) {
  for (int head_size = 8; head_size <= 512; head_size = head_size == 256 ? 512 : head_size + 8) {
    hg_config config = ValidConfig(HG_BINDING_IDENTITY);
    config.head_size = head_size;
    hg_backend* backend = nullptr;
    EXPECT_TRUE(Succeeds(Create(config, &backend))) << head_size;
    TheLibrary().backend_destroy(backend);
  }
}

TEST(CreateTest, CountsAndSizes) {
  ExpectFieldRefused(&hg_config::num_threads, {-1, kMax, kMin}, "num_threads", "accepted: 0 to");
  ExpectFieldRefused(&hg_config::device_threads, {-1, kMax, kMin}, "device_threads", "accepted");
  ExpectFieldRefused(&hg_config::speculative_tokens, {-1, kMax, kMin}, "speculative_tokens", "accepted: 0 to");
  ExpectFieldRefused(&hg_config::dram_bytes, {int64_t{-1}, std::numeric_limits<int64_t>::min()}, "dram_bytes",
                     "accepted");
  ExpectFieldRefused(&hg_config::cxl_bytes, {int64_t{-1}, std::numeric_limits<int64_t>::min()}, "cxl_bytes",
                     "accepted");
  ExpectFieldRefused(&hg_config::dram_node, {-2, kMax, kMin}, "dram_node", "accepted");
  ExpectFieldRefused(&hg_config::cxl_node, {-2, kMax, kMin}, "cxl_node", "accepted");
  ExpectFieldRefused(&hg_config::head_groups, {-1, 17, kMax, kMin}, "head_groups", "accepted: 0 to 16");
  ExpectFieldRefused(&hg_config::interleave_dram_weight, {-1, 256, kMax, kMin}, "interleave_dram_weight", "1 to 255");
  ExpectFieldRefused(&hg_config::interleave_cxl_weight, {-1, 256, kMax, kMin}, "interleave_cxl_weight", "1 to 255");
}

TEST(CreateTest, Fractions) {
  ExpectFieldRefused(&hg_config::streaming_share, {-0.1, 1.1, kNaN, kInfinity}, "streaming_share", "0 to 1");
  ExpectFieldRefused(&hg_config::device_gigabytes_per_second, {-1.0, 1e-9, 1e9, kNaN, kInfinity, -kInfinity},
                     "device_gigabytes_per_second", "accepted: 0");
  ExpectFieldRefused(&hg_config::dram_gigabytes_per_second, {-1.0, 1e-9, 1e9, kNaN, kInfinity, -kInfinity},
                     "dram_gigabytes_per_second", "accepted: 0");
  ExpectFieldRefused(&hg_config::cxl_gigabytes_per_second, {-1.0, 1e-9, 1e9, kNaN, kInfinity, -kInfinity},
                     "cxl_gigabytes_per_second", "accepted: 0");
  ExpectFieldRefused(&hg_config::mover_gigabytes_per_second, {-1.0, 1e-9, 1e9, kNaN, kInfinity, -kInfinity},
                     "mover_gigabytes_per_second", "accepted: 0");
  ExpectFieldRefused(&hg_config::timeout_seconds, {-1.0, kNaN, kInfinity, -kInfinity}, "timeout_seconds", "accepted");
}

TEST(CreateTest, Cpus) {
  const int32_t absurd = 1 << 20;
  hg_config config = ValidConfig(HG_BINDING_IDENTITY);
  config.cpus = &absurd;
  config.num_cpus = 1;
  ExpectRefused(config, {"cpus", "accepted"});
  config.num_cpus = -1;
  ExpectRefused(config, {"num_cpus", "accepted"});
}

TEST(CreateTest, TieredWithoutAHostTier) {
  hg_config config = ValidConfig(HG_BINDING_TIERED);
  config.dram_bytes = 0;
  config.cxl_bytes = 0;
  ExpectRefused(config, {"dram_bytes", "cxl_bytes", "0"});
}

// hg_cuda_status says beforehand what creating the backend says.
TEST(CreateTest, CudaIsRefusedByName) {
  const hg_status status = TheLibrary().cuda_status();
  if (status == HG_OK) GTEST_SKIP() << "this build has CUDA code and this machine a driver";
  const std::string problem = TheLibrary().last_error();
  EXPECT_EQ(problem.rfind("device kind cuda: ", 0), 0u) << problem;
  hg_config config = ValidConfig(HG_BINDING_IDENTITY, HG_DEVICE_CUDA);
  config.dtype = HG_FLOAT16;
  config.head_size = 64;
  hg_backend* backend = nullptr;
  EXPECT_TRUE(Fails(Create(config, &backend), status, {problem.c_str()}));
}

class LayerTest : public ::testing::Test {
 protected:
  LayerTest() {
    const hg_config config = ValidConfig(HG_BINDING_IDENTITY);
    EXPECT_TRUE(Succeeds(TheLibrary().backend_create(&config, &backend_)));
  }
  ~LayerTest() override { TheLibrary().backend_destroy(backend_); }

  void ExpectRefused(const hg_layer& layer, std::initializer_list<const char*> words) {
    int32_t index = 77;
    EXPECT_TRUE(Fails(TheLibrary().backend_add_layer(backend_, &layer, &index), HG_INVALID_ARGUMENT, words));
    EXPECT_EQ(index, 77);
  }

  hg_backend* backend_ = nullptr;
};

TEST_F(LayerTest, NullPointers) {
  const hg_layer layer = ValidLayer();
  int32_t index = 0;
  EXPECT_TRUE(Fails(TheLibrary().backend_add_layer(nullptr, &layer, &index), HG_INVALID_ARGUMENT, {"backend", "null"}));
  EXPECT_TRUE(Fails(TheLibrary().backend_add_layer(backend_, nullptr, &index), HG_INVALID_ARGUMENT, {"layer", "null"}));
  EXPECT_TRUE(Fails(TheLibrary().backend_add_layer(backend_, &layer, nullptr), HG_INVALID_ARGUMENT, {"index", "null"}));
}

// A caller compiled against a header without the scales of float8.
TEST_F(LayerTest, ShorterStructIsAccepted) {
  hg_layer layer = ValidLayer();
  layer.struct_size = offsetof(hg_layer, k_scale);
  layer.k_scale = layer.v_scale = -1.0f;
  int32_t index = 0;
  EXPECT_TRUE(Succeeds(TheLibrary().backend_add_layer(backend_, &layer, &index)));
}

TEST_F(LayerTest, Fields) {
  hg_layer layer = ValidLayer();
  layer.struct_size = 3;
  ExpectRefused(layer, {"struct_size", "accepted"});
  for (int heads : {0, -2, 3, 65538, kMax, kMin}) {
    layer = ValidLayer();
    layer.num_query_heads = heads;
    ExpectRefused(layer, {"num_query_heads", "accepted"});
  }
  for (float cap : {-1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    layer = ValidLayer();
    layer.soft_cap = cap;
    ExpectRefused(layer, {"soft_cap", "accepted"});
  }
  for (float scale : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    layer = ValidLayer();
    layer.scale = scale;
    ExpectRefused(layer, {"scale", "accepted"});
  }
  for (float hg_layer::*scale : {&hg_layer::k_scale, &hg_layer::v_scale}) {
    layer = ValidLayer();
    layer.*scale = 0.5f;  // KV is not float8
    ExpectRefused(layer, {"_scale", "accepted"});
  }
  for (int window : {-1, kMin}) {
    layer = ValidLayer();
    layer.sliding_window = window;
    ExpectRefused(layer, {"sliding_window", "accepted"});
  }
}

}  // namespace
}  // namespace hybridgen
