#include "scheduler/cost_model.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

double Capacity(const std::vector<Medium>& media) {
  double capacity = 0;
  for (const Medium& medium : media) capacity += medium.capacity_bytes;
  return capacity;
}

// Bytes that the media can give in `seconds`.
double BytesIn(double seconds, const std::vector<Medium>& media) {
  double bytes = 0;
  for (const Medium& medium : media) bytes += std::min(medium.bytes_per_second * seconds, medium.capacity_bytes);
  return bytes;
}

// The smallest T with sum of min(b_i T, capacity_i) >= bytes, which fit but for rounding. The sum grows linearly
// between the times at which a medium has given all that it can hold.
double SecondsToRead(double bytes, const std::vector<Medium>& media) {
  if (bytes <= 0) return 0;
  std::vector<double> times = {0};
  for (const Medium& medium : media) times.push_back(medium.capacity_bytes / medium.bytes_per_second);
  std::sort(times.begin(), times.end());
  double from = 0;  // the last of the times that is too early
  for (const double time : times) {
    if (std::isinf(time) || BytesIn(time, media) >= bytes) break;
    from = time;
  }
  double rate = 0;
  for (const Medium& medium : media) {
    if (medium.capacity_bytes / medium.bytes_per_second > from) rate += medium.bytes_per_second;
  }
  return rate > 0 ? from + (bytes - BytesIn(from, media)) / rate : from;
}

std::vector<Medium> Together(const HostMedia& host) {
  std::vector<Medium> media = host.dram;
  media.insert(media.end(), host.cxl.begin(), host.cxl.end());
  return media;
}

absl::Status CheckRate(const char* name, double rate) {
  if (rate > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("cost model: ", name, " is ", rate, " bytes per second; accepted: more than 0"));
}

absl::Status CheckSize(const char* name, double size) {
  if (size >= 0) return absl::OkStatus();  // NaN is not
  return absl::InvalidArgumentError(absl::StrCat("cost model: ", name, " is ", size, "; accepted: 0 or more"));
}

absl::Status CheckHost(const HostMedia& host, double keys, double values) {
  absl::Status status;
  if (host.dram.empty()) status = absl::InvalidArgumentError("cost model: no DRAM medium; accepted: one or more");
  for (const Medium& medium : Together(host)) {
    status.Update(CheckRate("a medium's rate", medium.bytes_per_second));
    if (status.ok() && std::isinf(medium.bytes_per_second)) {
      status = absl::InvalidArgumentError("cost model: a medium's rate is infinite; accepted: finite");
    }
    status.Update(CheckSize("a medium's capacity", medium.capacity_bytes));
  }
  status.Update(CheckSize("keys", keys));
  status.Update(CheckSize("values", values));
  const double room = Capacity(host.dram) + Capacity(host.cxl);
  if (status.ok() && keys + values > room) {
    status = absl::ResourceExhaustedError(absl::StrCat("cost model: ", keys + values, " bytes of K and V in ", room,
                                                       " bytes of DRAM and CXL: enlarge a tier"));
  }
  return status;
}

absl::Status Check(const Platform& platform, const StepBytes& bytes, const InterleaveWeights& weights) {
  absl::Status status = CheckHost(platform.host, bytes.keys, bytes.values);
  status.Update(CheckRate("cpu_bytes_per_second", platform.cpu_bytes_per_second));
  status.Update(CheckSize("device bytes", bytes.device));
  if (platform.device) {
    status.Update(CheckRate("memory_bytes_per_second", platform.device->memory_bytes_per_second));
    status.Update(CheckRate("attend_bytes_per_second", platform.device->attend_bytes_per_second));
    status.Update(CheckSize("link_bytes_per_second", platform.device->link_bytes_per_second));
  } else if (bytes.device > 0) {
    status.Update(absl::InvalidArgumentError(
        absl::StrCat("cost model: ", bytes.device, " bytes on the device of a platform that has none; accepted: 0")));
  }
  status.Update(CheckSize("DRAM's weight", weights.dram));
  status.Update(CheckSize("CXL's weight", weights.cxl));
  if (status.ok() && !(weights.dram + weights.cxl > 0 && std::isfinite(weights.dram + weights.cxl))) {
    status = absl::InvalidArgumentError(absl::StrCat("cost model: weights are ", weights.dram, " and ", weights.cxl,
                                                     "; accepted: finite, and not both 0"));
  }
  return status;
}

// Bytes on CXL with which the tiers finish together; K stays in DRAM as far as it fits.
double ProportionalBytesOnCxl(const HostMedia& host, double keys, double values) {
  const double together = BytesIn(SecondsToRead(keys + values, Together(host)), host.cxl);
  const double least = keys + values - Capacity(host.dram);
  return std::max({0.0, least, std::min(together, values)});
}

double BytesOnCxl(const HostMedia& host, const StepBytes& bytes, SpreadKind spread, const InterleaveWeights& weights) {
  const double all = bytes.keys + bytes.values;
  const double least = std::max(0.0, all - Capacity(host.dram));
  switch (spread) {
    case SpreadKind::kAllDram:
      return 0;
    case SpreadKind::kRolePriority:
      return least;
    case SpreadKind::kProportional:
      return ProportionalBytesOnCxl(host, bytes.keys, bytes.values);
    case SpreadKind::kInterleave:  // a node that is full passes its turn on
      return std::clamp(all * weights.cxl / (weights.dram + weights.cxl), least,
                        std::max(least, std::min(all, Capacity(host.cxl))));
  }
  return 0;
}

// Raises the cost to `seconds` if that is more.
void AtLeast(double seconds, StepLimit limit, StepCost& cost) {
  if (seconds <= cost.seconds) return;
  cost.seconds = seconds;
  cost.limit = limit;
}

void AddProcessors(const Platform& platform, const StepBytes& bytes, StepCost& cost) {
  const double host = bytes.keys + bytes.values;
  const double cpu = platform.cpu_bytes_per_second;
  const DeviceSide none = {kUnlimited, 0, 0};
  const DeviceSide& device = platform.device ? *platform.device : none;
  AtLeast(host / (cpu + device.link_bytes_per_second), StepLimit::kCpuAndLink, cost);
  if (!platform.device) return;
  AtLeast(bytes.device / device.memory_bytes_per_second, StepLimit::kDeviceMemory, cost);
  AtLeast(bytes.device / device.attend_bytes_per_second, StepLimit::kDevice, cost);
  AtLeast((host + bytes.device) / (cpu + device.attend_bytes_per_second), StepLimit::kProcessors, cost);
  if (host <= 0) return;
  const double seconds = cost.seconds;
  cost.least_streaming_share = std::max(0.0, 1 - cpu * seconds / host);
  cost.most_streaming_share =
      std::max(cost.least_streaming_share,  // they are equal at a limit of the processors, but for rounding
               std::min({1.0, device.link_bytes_per_second * seconds / host,
                         (device.attend_bytes_per_second * seconds - bytes.device) / host}));
}

}  // namespace

const char* SpreadKindName(SpreadKind spread) {
  switch (spread) {
    case SpreadKind::kAllDram:
      return "all in DRAM";
    case SpreadKind::kRolePriority:
      return "role priority";
    case SpreadKind::kProportional:
      return "proportional";
    case SpreadKind::kInterleave:
      return "interleave";
  }
  return "unknown";
}

const char* StepLimitName(StepLimit limit) {
  switch (limit) {
    case StepLimit::kDeviceMemory:
      return "device memory";
    case StepLimit::kDram:
      return "DRAM";
    case StepLimit::kCxl:
      return "CXL";
    case StepLimit::kDevice:
      return "device";
    case StepLimit::kCpuAndLink:
      return "CPU and link";
    case StepLimit::kProcessors:
      return "CPU and device";
  }
  return "unknown";
}

absl::StatusOr<StepCost> PredictStep(const Platform& platform, const StepBytes& bytes, SpreadKind spread,
                                     const InterleaveWeights& weights) {
  if (absl::Status status = Check(platform, bytes, weights); !status.ok()) return status;
  const HostMedia& host = platform.host;
  const double all = bytes.keys + bytes.values;
  const double on_cxl = BytesOnCxl(host, bytes, spread, weights);
  if (spread == SpreadKind::kAllDram && all > Capacity(host.dram)) {
    return absl::ResourceExhaustedError(absl::StrCat("cost model: ", all, " bytes of K and V in ", Capacity(host.dram),
                                                     " bytes of DRAM: enlarge it, or use CXL"));
  }
  StepCost cost;
  if (spread == SpreadKind::kInterleave) {
    cost.key_share_on_cxl = cost.value_share_on_cxl = all > 0 ? on_cxl / all : 0;
  } else {
    cost.value_share_on_cxl = bytes.values > 0 ? std::min(1.0, on_cxl / bytes.values) : 0;
    cost.key_share_on_cxl = bytes.keys > 0 ? std::max(0.0, on_cxl - bytes.values) / bytes.keys : 0;
  }
  AtLeast(SecondsToRead(all - on_cxl, host.dram), StepLimit::kDram, cost);
  AtLeast(SecondsToRead(on_cxl, host.cxl), StepLimit::kCxl, cost);
  AddProcessors(platform, bytes, cost);
  return cost;
}

absl::StatusOr<double> ValueShareOnCxl(const HostMedia& host, double keys, double values) {
  if (absl::Status status = CheckHost(host, keys, values); !status.ok()) return status;
  return values > 0 ? std::min(1.0, ProportionalBytesOnCxl(host, keys, values) / values) : 0;
}

}  // namespace hybridgen
