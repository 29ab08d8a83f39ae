// The least time of a decode step, from bandwidths: what each placement of the host's KV costs, and the best one.
//
// A step reads every byte of K and V once. With D bytes on the device and H on the host, of which s are streamed to the
// device and H - s are attended by the CPU, in T seconds
//   each medium i:  z_i <= b_i T, z_i <= capacity_i, sum of z_i = H   (whoever attends, bytes leave their medium once)
//   device memory:  D <= h T          (streamed pages are read in place, over the link)
//   link:           s <= l T
//   processors:     H - s <= p T,  D + s <= g T
// This linear program has one solution in closed form, because the z_i and s meet only in T. For the media T is the
// smallest with sum of min(b_i T, capacity_i) >= H. For the processors an s with 0 <= s <= H exists if and only if
//   T >= D / g,  T >= H / (p + l),  T >= (H + D) / (p + g).
// It is a lower bound: media are assumed to be read at full rate at the same time.
#ifndef SCHEDULER_COST_MODEL_H_
#define SCHEDULER_COST_MODEL_H_

#include <limits>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"

namespace hybridgen {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// A DRAM node or a CXL device.
struct Medium {
  double bytes_per_second = 0;
  double capacity_bytes = kUnlimited;
};

struct HostMedia {
  std::vector<Medium> dram;  // at least one
  std::vector<Medium> cxl;
};

struct DeviceSide {
  double memory_bytes_per_second = kUnlimited;  // h
  double attend_bytes_per_second = kUnlimited;  // g: KV bytes that its processors attend
  double link_bytes_per_second = 0;             // l: from host memory
};

struct Platform {
  HostMedia host;
  double cpu_bytes_per_second = kUnlimited;  // p: KV bytes that the CPU's threads attend
  std::optional<DeviceSide> device;
};

// KV bytes that a step reads, all layers.
struct StepBytes {
  double keys = 0;    // K on the host
  double values = 0;  // V on the host
  double device = 0;  // both, on the device
};

// Where the host's pages go. In all of them V goes to CXL before K does.
enum class SpreadKind : uint8_t {
  kAllDram,       // all of it in DRAM
  kRolePriority,  // DRAM as far as it reaches, the rest on CXL
  kProportional,  // the share of V on CXL with which both tiers finish together
  kInterleave,    // pages of both roles in turn, by weights, as the kernel's interleave policies place them
};
const char* SpreadKindName(SpreadKind spread);

// What holds the step up.
enum class StepLimit : uint8_t { kDeviceMemory, kDram, kCxl, kDevice, kCpuAndLink, kProcessors };
const char* StepLimitName(StepLimit limit);

struct InterleaveWeights {
  double dram = 1;
  double cxl = 1;
};

struct StepCost {
  double seconds = 0;
  StepLimit limit = StepLimit::kDram;
  double key_share_on_cxl = 0;
  double value_share_on_cxl = 0;
  // Shares of the host's bytes that the device may attend without making the step longer: the range of the scheduler's
  // streaming share. 0 and 0 without a device.
  double least_streaming_share = 0;
  double most_streaming_share = 0;
};

// The cost of a step with pages spread this way; inside a tier media share the bytes as is best.
// Errors: InvalidArgument (no DRAM, a rate that is not positive, a negative size or weight), ResourceExhausted (the
// bytes do not fit).
absl::StatusOr<StepCost> PredictStep(const Platform& platform, const StepBytes& bytes, SpreadKind spread,
                                     const InterleaveWeights& weights = {});

// The share of V on CXL with which DRAM and CXL finish together, all of K in DRAM if it fits. For one DRAM node with d
// bytes per second, one CXL device with c, and room everywhere: x V / c = (K + (1 - x) V) / d, so
//   x = c (K + V) / (V (c + d)),  which is 2c / (c + d) for K = V,
// at most 1. Errors as PredictStep.
absl::StatusOr<double> ValueShareOnCxl(const HostMedia& host, double keys, double values);

}  // namespace hybridgen

#endif  // SCHEDULER_COST_MODEL_H_
