#include "backend/host_tiers.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hybridgen {

absl::StatusOr<std::unique_ptr<HostTiers>> HostTiers::Create(const HostTiersOptions& options) {
  auto tiers = std::unique_ptr<HostTiers>(new HostTiers(options));
  int64_t device_offset = 0;  // the roles share the device, one behind the other
  for (const Tier tier : {Tier::kDram, Tier::kCxl}) {
    const bool cxl = tier == Tier::kCxl;
    for (const PageRole role : kPageRoles) {
      const int64_t pages = (cxl ? options.cxl_pages : options.dram_pages)[Index(role)];
      if (pages == 0) continue;
      ArenaOptions arena = options.arena;
      arena.name = absl::StrCat(TierName(tier), role == PageRole::kKey ? " keys" : " values");
      arena.node = cxl ? options.cxl_node : options.dram_node;
      if (cxl) {
        arena.dax_device = options.cxl_device;
        arena.dax_offset = device_offset;
      }
      absl::StatusOr<std::unique_ptr<Arena>> memory = Arena::Create(pages * options.page_bytes[Index(role)], arena);
      if (!memory.ok()) return memory.status();
      if (cxl && !options.cxl_device.empty()) device_offset += (*memory)->bytes();
      TierArena entry{tier, role, *std::move(memory), {}};
      if (options.registrar != nullptr) {
        absl::StatusOr<RegistrationReport> report = entry.memory->Register(*options.registrar);
        if (!report.ok()) return report.status();
        entry.pin = report->pin;
      }
      tiers->base_[Index(tier)][Index(role)] = reinterpret_cast<uint64_t>(entry.memory->data());
      tiers->arenas_.push_back(std::move(entry));
    }
  }
  ArenaOptions zero = options.arena;
  zero.name = "zero page";
  absl::StatusOr<std::unique_ptr<Arena>> zeros =
      Arena::Create(std::max(options.page_bytes[0], options.page_bytes[1]), zero);
  if (!zeros.ok()) return zeros.status();
  tiers->zero_ = *std::move(zeros);
  return tiers;
}

}  // namespace hybridgen
