// Binding refuses bad memory descriptions and sizes, naming field and accepted values.
#include <limits>

#include "tests/abi/client.h"

namespace hybridgen {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

TEST(BindIdentityTest, BadPools) {
  Client client(HG_BINDING_IDENTITY);
  const auto refused = [&client](void (*change)(hg_pool&), std::initializer_list<const char*> words) {
    hg_pool pool = client.Pool();
    change(pool);
    return Fails(TheLibrary().backend_bind_identity(client.backend(), &pool), HG_INVALID_ARGUMENT, words);
  };
  EXPECT_TRUE(refused([](hg_pool& p) { p.struct_size = 0; }, {"struct_size", "accepted"}));
  EXPECT_TRUE(refused([](hg_pool& p) { p.layer = -1; }, {"layer", "accepted"}));
  EXPECT_TRUE(refused([](hg_pool& p) { p.layer = 1; }, {"layer", "accepted: 0 to 0"}));
  EXPECT_TRUE(refused([](hg_pool& p) { p.data = nullptr; }, {"data", "null"}));
  EXPECT_TRUE(refused([](hg_pool& p) { p.num_blocks = 0; }, {"num_blocks", "accepted"}));
  EXPECT_TRUE(refused([](hg_pool& p) { p.num_blocks = kMin; }, {"num_blocks", "accepted"}));
  EXPECT_TRUE(refused([](hg_pool& p) { p.num_blocks = kMax; }, {"num_blocks", "accepted"}));
  EXPECT_TRUE(refused([](hg_pool& p) { p.block_stride = 0; }, {"stride", "accepted"}));
  EXPECT_TRUE(refused([](hg_pool& p) { p.head_stride = -1; }, {"stride", "accepted"}));
  EXPECT_TRUE(refused([](hg_pool& p) { p.token_stride = 2 * Client::kHeadSize - 1; }, {"token", "stride", "accepted"}));
  EXPECT_TRUE(refused([](hg_pool& p) { p.token_stride = kMax; }, {"stride", "accepted"}));
  EXPECT_TRUE(
      Fails(TheLibrary().backend_bind_identity(client.backend(), nullptr), HG_INVALID_ARGUMENT, {"pool", "null"}));
  const hg_pool pool = client.Pool();
  EXPECT_TRUE(Fails(TheLibrary().backend_bind_identity(nullptr, &pool), HG_INVALID_ARGUMENT, {"backend", "null"}));
  EXPECT_TRUE(client.Works());
}

TEST(BindTieredTest, BadRegions) {
  const hg_config config = ValidConfig(HG_BINDING_TIERED);
  const hg_layer layer = ValidLayer();
  int32_t index = 0;
  hg_backend* backend = nullptr;
  ASSERT_TRUE(Succeeds(TheLibrary().backend_create(&config, &backend)));
  ASSERT_TRUE(Succeeds(TheLibrary().backend_add_layer(backend, &layer, &index)));
  GuardedBuffer memory(Client::kRegionBytes);
  void* region = memory.data();
  void* null_region = nullptr;
  hg_regions valid = {};
  valid.struct_size = sizeof(valid);
  valid.num_layers = 1;
  valid.data = &region;
  valid.bytes = Client::kRegionBytes;
  valid.num_blocks = Client::kBlocks;
  const auto refused = [backend](hg_regions regions, std::initializer_list<const char*> words) {
    return Fails(TheLibrary().backend_bind_tiered(backend, &regions), HG_INVALID_ARGUMENT, words);
  };
  hg_regions r = valid;
  r.struct_size = 8;
  EXPECT_TRUE(refused(r, {"struct_size", "accepted"}));
  r = valid;
  r.data = nullptr;
  EXPECT_TRUE(refused(r, {"data", "null"}));
  r.data = &null_region;
  EXPECT_TRUE(refused(r, {"data", "null"}));
  for (int32_t layers : {0, -1, 2147483647}) {
    r = valid;
    r.num_layers = layers;
    EXPECT_TRUE(refused(r, {"num_layers", "accepted"}));
  }
  for (int64_t bytes : {int64_t{-1}, kMin}) {
    r = valid;
    r.bytes = bytes;
    EXPECT_TRUE(refused(r, {"bytes", "accepted"}));
  }
  for (int64_t blocks : {int64_t{0}, int64_t{1}, int64_t{-5}, kMin, kMax}) {
    r = valid;
    r.num_blocks = blocks;
    EXPECT_TRUE(refused(r, {"num_blocks", "accepted"}));
  }
  EXPECT_TRUE(Fails(TheLibrary().backend_bind_tiered(backend, nullptr), HG_INVALID_ARGUMENT, {"regions", "null"}));
  EXPECT_TRUE(Fails(TheLibrary().backend_bind_tiered(nullptr, &valid), HG_INVALID_ARGUMENT, {"backend", "null"}));

  // More engine blocks than all tiers hold: the message has the sizes.
  r = valid;
  r.num_blocks = 1000;
  EXPECT_TRUE(
      Fails(TheLibrary().backend_bind_tiered(backend, &r), HG_RESOURCE_EXHAUSTED, {"999", "dram_bytes", "cxl_bytes"}));
  // After all of this the right call still works, and twice.
  EXPECT_TRUE(Succeeds(TheLibrary().backend_bind_tiered(backend, &valid)));
  EXPECT_TRUE(Succeeds(TheLibrary().backend_bind_tiered(backend, &valid)));
  TheLibrary().backend_destroy(backend);
  EXPECT_TRUE(memory.RedZonesIntact());
}

// A tier larger than the machine is refused when it is reserved, with the sizes; nothing is killed for memory.
TEST(BindTieredTest, TierLargerThanTheMachine) {
  const std::pair<int64_t hg_config::*, const char*> tiers[] = {{&hg_config::dram_bytes, "dram"},
                                                                {&hg_config::cxl_bytes, "cxl"}};
  for (const auto& [field, name] : tiers) {
    for (int64_t bytes : {int64_t{1} << 50, kMax}) {
      SCOPED_TRACE(testing::Message() << name << " " << bytes);
      hg_config config = ValidConfig(HG_BINDING_TIERED);
      config.*field = bytes;
      hg_backend* backend = nullptr;
      hg_status status = TheLibrary().backend_create(&config, &backend);
      if (status == HG_OK) {
        const hg_layer layer = ValidLayer();
        int32_t index = 0;
        ASSERT_TRUE(Succeeds(TheLibrary().backend_add_layer(backend, &layer, &index)));
        GuardedBuffer memory(Client::kRegionBytes);
        void* region = memory.data();
        hg_regions regions = {};
        regions.struct_size = sizeof(regions);
        regions.num_layers = 1;
        regions.data = &region;
        regions.bytes = Client::kRegionBytes;
        regions.num_blocks = Client::kBlocks;
        status = TheLibrary().backend_bind_tiered(backend, &regions);
        EXPECT_TRUE(Fails(status, HG_RESOURCE_EXHAUSTED, {name, "accepted"}));
        TheLibrary().backend_destroy(backend);
      } else {
        EXPECT_TRUE(Fails(status, HG_INVALID_ARGUMENT, {name, "accepted"}));
      }
    }
  }
}

TEST(BindTest, OfTheOtherBinding) {
  Client identity(HG_BINDING_IDENTITY);
  Client tiered(HG_BINDING_TIERED);
  const hg_regions regions = tiered.Regions();
  EXPECT_TRUE(Fails(TheLibrary().backend_bind_tiered(identity.backend(), &regions), HG_FAILED_PRECONDITION,
                    {"identity binding"}));
  const hg_pool pool = identity.Pool();
  EXPECT_TRUE(
      Fails(TheLibrary().backend_bind_identity(tiered.backend(), &pool), HG_FAILED_PRECONDITION, {"tiered binding"}));
  EXPECT_TRUE(identity.Works());
  EXPECT_TRUE(tiered.Works());
}

}  // namespace
}  // namespace hybridgen
