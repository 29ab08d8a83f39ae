// Tests of the cost model: known cases by hand, random ones against a search over all placements on a fine grid.
#include "scheduler/cost_model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace hybridgen {
namespace {

constexpr SpreadKind kSpreads[] = {SpreadKind::kAllDram, SpreadKind::kRolePriority, SpreadKind::kProportional,
                                   SpreadKind::kInterleave};

// One DRAM node of d bytes per second, one CXL device of c.
Platform Simple(double d, double c) {
  Platform platform;
  platform.host.dram = {{d}};
  platform.host.cxl = {{c}};
  return platform;
}

TEST(CostModelTest, TheShareOfEqualKeysAndValues) {
  for (const auto& [d, c] : {std::pair(300.0, 30.0), std::pair(200.0, 36.0), std::pair(100.0, 100.0)}) {
    const double x = ValueShareOnCxl(Simple(d, c).host, 8, 8).value();
    EXPECT_NEAR(x, 2 * c / (c + d), 1e-12);
    const StepCost cost = PredictStep(Simple(d, c), {8, 8, 0}, SpreadKind::kProportional).value();
    EXPECT_NEAR(cost.value_share_on_cxl, x, 1e-12);
    EXPECT_NEAR(cost.seconds, 16 / (c + d), 1e-12) << "both tiers finish together";
  }
  EXPECT_NEAR(ValueShareOnCxl(Simple(300, 30).host, 8, 8).value(), 0.1818, 1e-4);
}

TEST(CostModelTest, TheShareOfUnequalKeysAndValues) {
  // x V / c = (K + (1 - x) V) / d
  const double x = ValueShareOnCxl(Simple(300, 30).host, 12, 4).value();
  EXPECT_NEAR(x * 4 / 30, (12 + (1 - x) * 4) / 300, 1e-12);
  EXPECT_EQ(ValueShareOnCxl(Simple(300, 30).host, 100, 4).value(), 1) << "all of V; K stays in DRAM";
  EXPECT_EQ(ValueShareOnCxl(Simple(300, 30).host, 100, 0).value(), 0);
  EXPECT_EQ(ValueShareOnCxl({{{300}}, {}}, 8, 8).value(), 0) << "no CXL";
}

TEST(CostModelTest, CapacitiesBoundTheShare) {
  HostMedia host = Simple(300, 30).host;
  host.cxl[0].capacity_bytes = 0.5;
  EXPECT_NEAR(ValueShareOnCxl(host, 8, 8).value(), 0.5 / 8, 1e-12);
  host.cxl[0].capacity_bytes = 100;
  host.dram[0].capacity_bytes = 10;
  EXPECT_NEAR(ValueShareOnCxl(host, 8, 8).value(), 6.0 / 8, 1e-12) << "what DRAM cannot hold";
  host.dram[0].capacity_bytes = 6;
  const StepCost cost = PredictStep({host, kUnlimited, std::nullopt}, {8, 8, 0}, SpreadKind::kProportional).value();
  EXPECT_EQ(cost.value_share_on_cxl, 1);
  EXPECT_NEAR(cost.key_share_on_cxl, 2.0 / 8, 1e-12) << "K spills last";
}

TEST(CostModelTest, SpreadsByHand) {
  const Platform platform = Simple(300, 30);
  const StepBytes bytes = {8, 8, 0};
  EXPECT_NEAR(PredictStep(platform, bytes, SpreadKind::kAllDram)->seconds, 16.0 / 300, 1e-12);
  EXPECT_NEAR(PredictStep(platform, bytes, SpreadKind::kRolePriority)->seconds, 16.0 / 300, 1e-12) << "DRAM holds all";
  EXPECT_NEAR(PredictStep(platform, bytes, SpreadKind::kInterleave)->seconds, 8.0 / 30, 1e-12);
  EXPECT_NEAR(PredictStep(platform, bytes, SpreadKind::kInterleave, {10, 1})->seconds, 16.0 / 330, 1e-12);
  EXPECT_EQ(PredictStep(platform, bytes, SpreadKind::kAllDram)->limit, StepLimit::kDram);
  EXPECT_EQ(PredictStep(platform, bytes, SpreadKind::kInterleave)->limit, StepLimit::kCxl);

  Platform small = platform;
  small.host.dram[0].capacity_bytes = 12;
  EXPECT_EQ(PredictStep(small, bytes, SpreadKind::kAllDram).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NEAR(PredictStep(small, bytes, SpreadKind::kRolePriority)->seconds, 4.0 / 30, 1e-12);
  EXPECT_NEAR(PredictStep(small, bytes, SpreadKind::kRolePriority)->value_share_on_cxl, 0.5, 1e-12);
  EXPECT_NEAR(PredictStep(small, bytes, SpreadKind::kProportional)->seconds, 4.0 / 30, 1e-12)
      << "DRAM is full, no choice";
}

TEST(CostModelTest, ProcessorsByHand) {
  Platform platform = Simple(300, 30);
  platform.cpu_bytes_per_second = 200;
  platform.device = DeviceSide{4000, 1000, 50};
  // DRAM gives 16 bytes in 0.0533 s; the CPU alone needs 0.08, with the link's help 0.064.
  StepCost cost = PredictStep(platform, {8, 8, 0}, SpreadKind::kAllDram).value();
  EXPECT_NEAR(cost.seconds, 16.0 / 250, 1e-12);
  EXPECT_EQ(cost.limit, StepLimit::kCpuAndLink);
  EXPECT_NEAR(cost.least_streaming_share, 50.0 / 250, 1e-12);
  EXPECT_NEAR(cost.most_streaming_share, 50.0 / 250, 1e-12) << "one share only";
  // CPUs that saturate DRAM: streaming cannot help, and may do so much without harm.
  platform.cpu_bytes_per_second = 400;
  cost = PredictStep(platform, {8, 8, 0}, SpreadKind::kAllDram).value();
  EXPECT_NEAR(cost.seconds, 16.0 / 300, 1e-12);
  EXPECT_EQ(cost.least_streaming_share, 0);
  EXPECT_NEAR(cost.most_streaming_share, 50.0 / 300, 1e-12);
  EXPECT_EQ(PredictStep(platform, {8, 8, 400}, SpreadKind::kAllDram)->limit, StepLimit::kDevice);
  platform.device->attend_bytes_per_second = 5000;
  EXPECT_EQ(PredictStep(platform, {8, 8, 400}, SpreadKind::kAllDram)->limit, StepLimit::kDeviceMemory);
  platform.device->attend_bytes_per_second = 10;
  platform.cpu_bytes_per_second = 100;
  cost = PredictStep(platform, {8, 8, 1}, SpreadKind::kAllDram).value();
  EXPECT_EQ(cost.limit, StepLimit::kProcessors);
  EXPECT_NEAR(cost.seconds, 17.0 / 110, 1e-12);
}

TEST(CostModelTest, WrongArgumentsAreRefusedByName) {
  const auto refused = [](const absl::StatusOr<StepCost>& cost, const char* words) {
    return cost.status().code() == absl::StatusCode::kInvalidArgument &&
           absl::StrContains(cost.status().message(), words);
  };
  const StepBytes bytes = {8, 8, 0};
  const auto predict = [&bytes](const Platform& platform) {
    return PredictStep(platform, bytes, SpreadKind::kProportional);
  };
  EXPECT_TRUE(refused(predict(Platform()), "no DRAM"));
  for (const double rate : {0.0, -1.0, std::nan("")}) {
    EXPECT_TRUE(refused(predict(Simple(rate, 30)), "a medium's rate"));
    EXPECT_TRUE(refused(predict(Simple(300, rate)), "a medium's rate"));
    Platform platform = Simple(300, 30);
    platform.cpu_bytes_per_second = rate;
    EXPECT_TRUE(refused(predict(platform), "cpu_bytes_per_second"));
  }
  EXPECT_TRUE(refused(predict(Simple(kUnlimited, 30)), "infinite"));
  EXPECT_TRUE(refused(PredictStep(Simple(300, 30), {-1, 8, 0}, SpreadKind::kAllDram), "keys is -1"));
  EXPECT_TRUE(refused(PredictStep(Simple(300, 30), {8, 8, 1}, SpreadKind::kAllDram), "a platform that has none"));
  EXPECT_TRUE(refused(PredictStep(Simple(300, 30), bytes, SpreadKind::kInterleave, {0, 0}), "not both 0"));
  EXPECT_TRUE(refused(PredictStep(Simple(300, 30), bytes, SpreadKind::kInterleave, {-1, 2}), "DRAM's weight"));
  EXPECT_TRUE(absl::StrContains(ValueShareOnCxl({}, 1, 1).status().message(), "no DRAM"));
}

TEST(CostModelTest, NothingToReadTakesNoTime) {
  for (const SpreadKind spread : kSpreads) EXPECT_EQ(PredictStep(Simple(300, 30), {}, spread)->seconds, 0);
}

// Random platforms of one or two DRAM nodes and CXL devices each, with and without a device.
class RandomCase {
 public:
  explicit RandomCase(uint64_t seed) : rng_(seed) {
    for (int i = Count(1); i > 0; --i) platform.host.dram.push_back({Rate(), Capacity()});
    for (int i = Count(0); i > 0; --i) platform.host.cxl.push_back({Rate(), Capacity()});
    if (Chance()) platform.cpu_bytes_per_second = Rate();
    if (Chance()) {
      platform.device = DeviceSide{2 * Rate(), Rate(), Rate() / 2};
      bytes.device = Uniform(0, 30);
    }
    bytes.keys = Uniform(0.5, 10);
    bytes.values = Uniform(0.5, 10);
  }

  Platform platform;
  StepBytes bytes;

  double Uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(rng_); }
  bool Chance() { return rng_() % 2 == 0; }

 private:
  int Count(int least) { return least + static_cast<int>(rng_() % 2); }
  double Rate() { return std::exp(Uniform(0, 5)); }
  double Capacity() { return Chance() ? kUnlimited : Uniform(1, 15); }

  std::mt19937_64 rng_;
};

// The least value of a convex function on [low, high], by trying points.
template <typename Function>
double Least(double low, double high, const Function& function) {
  for (int i = 0; i < 70; ++i) {
    const double third = (high - low) / 3;
    (function(low + third) < function(high - third) ? high -= third : low += third);
  }
  return function((low + high) / 2);
}

double Capacity(const std::vector<Medium>& media) {
  double capacity = 0;
  for (const Medium& medium : media) capacity += medium.capacity_bytes;
  return capacity;
}

// The least time to read `bytes`, which fit, from up to two media, over all splits.
double SearchMedia(const std::vector<Medium>& media, double bytes) {
  if (media.empty()) return 0;
  if (media.size() == 1) return bytes / media[0].bytes_per_second;
  return Least(std::max(0.0, bytes - media[1].capacity_bytes), std::min(bytes, media[0].capacity_bytes),
               [&](double first) {
                 return std::max(first / media[0].bytes_per_second, (bytes - first) / media[1].bytes_per_second);
               });
}

// The same over all splits between the tiers. K goes to CXL only if DRAM cannot hold it.
double SearchTiers(const HostMedia& host, const StepBytes& bytes) {
  const double all = bytes.keys + bytes.values;
  const double least = std::max(0.0, all - Capacity(host.dram));
  return Least(least, std::max(least, std::min(bytes.values, Capacity(host.cxl))), [&](double on_cxl) {
    return std::max(SearchMedia(host.dram, all - on_cxl), SearchMedia(host.cxl, on_cxl));
  });
}

// The least time of the processors over all streaming shares.
double SearchProcessors(const Platform& platform, const StepBytes& bytes) {
  const double host = bytes.keys + bytes.values;
  if (!platform.device) return host / platform.cpu_bytes_per_second;
  const double processors = Least(0, host, [&](double streamed) {
    return std::max({(host - streamed) / platform.cpu_bytes_per_second,
                     streamed / platform.device->link_bytes_per_second,
                     (bytes.device + streamed) / platform.device->attend_bytes_per_second});
  });
  return std::max(processors, bytes.device / platform.device->memory_bytes_per_second);
}

// The media and the processors share nothing but the time, so the larger of both searches is the program's answer.
TEST(CostModelTest, AsGoodAsASearchOverAllPlacements) {
  const char* set = std::getenv("HYBRIDGEN_TEST_SEED");
  const uint64_t seed = set == nullptr ? 1 : std::strtoull(set, nullptr, 10);
  std::cout << "replay: bazel test //scheduler:cost_model_test --test_env=HYBRIDGEN_TEST_SEED=" << seed << "\n";
  int with_cxl = 0;
  int with_device = 0;
  int full = 0;
  for (uint64_t i = 0; i < 400; ++i) {
    const RandomCase c(seed * 1000003 + i);
    const HostMedia& host = c.platform.host;
    SCOPED_TRACE(absl::StrCat("case ", i, " of seed ", seed));
    const absl::StatusOr<StepCost> cost = PredictStep(c.platform, c.bytes, SpreadKind::kProportional);
    if (c.bytes.keys + c.bytes.values > Capacity(host.dram) + Capacity(host.cxl)) {
      EXPECT_EQ(cost.status().code(), absl::StatusCode::kResourceExhausted) << cost.status();
      ++full;
      continue;
    }
    ASSERT_TRUE(cost.ok()) << cost.status();
    const double searched = std::max(SearchTiers(host, c.bytes), SearchProcessors(c.platform, c.bytes));
    EXPECT_NEAR(cost->seconds, searched, 1e-7 * searched);
    for (const SpreadKind other : kSpreads) {
      const absl::StatusOr<StepCost> worse = PredictStep(c.platform, c.bytes, other, {1.0 + i % 9, 1});
      if (!worse.ok()) {
        EXPECT_EQ(other, SpreadKind::kAllDram) << worse.status();
        EXPECT_GT(c.bytes.keys + c.bytes.values, Capacity(host.dram));
      } else if (cost->value_share_on_cxl < 1) {
        EXPECT_LE(cost->seconds, worse->seconds * (1 + 1e-9)) << SpreadKindName(other);
      }
    }
    with_cxl += cost->value_share_on_cxl > 0;
    with_device += c.platform.device.has_value();
  }
  EXPECT_GT(with_cxl, 60);
  EXPECT_GT(with_device, 100);
  EXPECT_GT(full, 10);
}

TEST(CostModelTest, SharesInTheStreamingRangeCostNothingAndOthersDo) {
  int inside = 0;
  for (uint64_t i = 0; i < 400; ++i) {
    RandomCase c(i + 77);
    const absl::StatusOr<StepCost> cost = PredictStep(c.platform, c.bytes, SpreadKind::kRolePriority);
    if (!cost.ok()) continue;
    SCOPED_TRACE(absl::StrCat("case ", i));
    if (!c.platform.device) {
      EXPECT_EQ(cost->least_streaming_share, 0);
      EXPECT_EQ(cost->most_streaming_share, 0);
      continue;
    }
    EXPECT_LE(cost->least_streaming_share, cost->most_streaming_share);
    const double host = c.bytes.keys + c.bytes.values;
    const auto processors = [&](double share) {
      return std::max({(1 - share) * host / c.platform.cpu_bytes_per_second,
                       share * host / c.platform.device->link_bytes_per_second,
                       (c.bytes.device + share * host) / c.platform.device->attend_bytes_per_second});
    };
    for (int j = 0; j <= 100; ++j) {
      const double share = j / 100.0;
      if (share >= cost->least_streaming_share && share <= cost->most_streaming_share) {
        EXPECT_LE(processors(share), cost->seconds * (1 + 1e-9)) << share;
        ++inside;
      } else if (share < cost->least_streaming_share - 1e-9 || share > cost->most_streaming_share + 1e-9) {
        EXPECT_GT(processors(share), cost->seconds * (1 - 1e-9)) << share;
      }
    }
  }
  EXPECT_GT(inside, 500);
}

}  // namespace
}  // namespace hybridgen
