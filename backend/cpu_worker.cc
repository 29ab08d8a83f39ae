#include "backend/cpu_worker.h"

#include "backend/pacer.h"

namespace hybridgen {

TierPacers CpuPacers(const BackendOptions& options) {
  TierPacers pacers;
  const auto pacer = [](double rate) { return rate > 0 ? std::make_shared<Pacer>(rate) : nullptr; };
  pacers.of[Index(Tier::kDram)] = pacer(options.dram_gigabytes_per_second);
  pacers.of[Index(Tier::kCxl)] = pacer(options.cxl_gigabytes_per_second);
  // In the `cpu` kind the engine's tensor is DRAM too.
  if (options.device_kind == DeviceKind::kCpu) pacers.of[Index(Tier::kDevice)] = pacers.of[Index(Tier::kDram)];
  return pacers;
}

}  // namespace hybridgen
