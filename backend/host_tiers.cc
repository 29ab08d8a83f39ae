#include "backend/host_tiers.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

absl::StatusOr<std::unique_ptr<Arena>> Reserve(int64_t bytes, int node, const std::string& name) {
  ArenaOptions options;
  options.node = node;
  options.name = name;
  return Arena::Create(bytes, options);
}

}  // namespace

absl::StatusOr<std::unique_ptr<HostTiers>> HostTiers::Create(const HostTiersOptions& options) {
  auto tiers = std::unique_ptr<HostTiers>(new HostTiers(options));
  for (const Tier tier : {Tier::kDram, Tier::kCxl}) {
    const int* pages = tier == Tier::kDram ? options.dram_pages : options.cxl_pages;
    const int node = tier == Tier::kDram ? options.dram_node : options.cxl_node;
    for (int role = 0; role < kNumRoles; ++role) {
      if (pages[role] == 0) continue;
      absl::StatusOr<std::unique_ptr<Arena>> arena = Reserve(
          pages[role] * options.page_bytes[role], node, absl::StrCat(TierName(tier), role == 0 ? " keys" : " values"));
      if (!arena.ok()) return arena.status();
      tiers->base_[static_cast<int>(tier)][role] = reinterpret_cast<uint64_t>((*arena)->data());
      tiers->arenas_[static_cast<int>(tier)][role] = *std::move(arena);
    }
  }
  absl::StatusOr<std::unique_ptr<Arena>> zero =
      Reserve(std::max(options.page_bytes[0], options.page_bytes[1]), /*node=*/-1, "zero page");
  if (!zero.ok()) return zero.status();
  tiers->zero_ = *std::move(zero);
  return tiers;
}

}  // namespace hybridgen
