// Names of the memory tiers and page roles.
#ifndef MEMORY_TIER_H_
#define MEMORY_TIER_H_

#include <cstdint>

namespace hybridgen {

// Where a page lies. Values are part of the C ABI (hybridgen.h).
enum class Tier : uint8_t { kDevice = 0, kDram = 1, kCxl = 2 };
constexpr int kNumTiers = 3;

constexpr const char* TierName(Tier tier) {
  switch (tier) {
    case Tier::kDevice:
      return "device";
    case Tier::kDram:
      return "dram";
    case Tier::kCxl:
      return "cxl";
  }
  return "unknown";
}

// Of the two host tiers.
constexpr Tier OtherTier(Tier host_tier) { return host_tier == Tier::kDram ? Tier::kCxl : Tier::kDram; }

// What a host page holds. A device page holds both.
enum class PageRole : uint8_t { kKey = 0, kValue = 1 };
constexpr int kNumRoles = 2;
constexpr PageRole kPageRoles[kNumRoles] = {PageRole::kKey, PageRole::kValue};

constexpr const char* PageRoleName(PageRole role) { return role == PageRole::kKey ? "K" : "V"; }

// Position in arrays by tier or role.
constexpr int Index(Tier tier) { return static_cast<int>(tier); }
constexpr int Index(PageRole role) { return static_cast<int>(role); }

}  // namespace hybridgen

#endif  // MEMORY_TIER_H_
