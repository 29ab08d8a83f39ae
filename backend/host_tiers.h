// The host tiers' memory: one arena per (KV head group, tier, role), and the addresses of the pages in them.
#ifndef BACKEND_HOST_TIERS_H_
#define BACKEND_HOST_TIERS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memory/arena.h"
#include "memory/block_manager.h"
#include "memory/device_registration.h"
#include "memory/tier.h"

namespace hybridgen {

struct HostTiersOptions {
  int64_t page_bytes[kNumRoles] = {0, 0};  // of one page, all layers and KV head groups, which share it evenly
  int dram_pages[kNumRoles] = {0, 0};
  int cxl_pages[kNumRoles] = {0, 0};
  std::vector<int> dram_nodes = {-1};    // NUMA node of each KV head group; -1: wherever the process allocates
  int cxl_node = -1;                     // NUMA node; -1 and no device: plain memory stands for CXL
  std::string cxl_device;                // "/dev/daxX.Y"; empty: none
  DeviceRegistrar* registrar = nullptr;  // of the accelerator, to which all pages are registered; null: none. Outlives
  ArenaOptions arena;                    // what arenas ask of the system; name, node and device are filled in
};

struct TierArena {
  Tier tier = Tier::kDram;
  PageRole role = PageRole::kKey;
  int head_group = 0;
  std::unique_ptr<Arena> memory;
  PinReport pin;  // zeros without a registrar
};

class HostTiers {
 public:
  // Reserves every page at once, and registers it. Pages that the registrar refuses are counted and used by the CPU.
  // Errors: ResourceExhausted naming tier, wanted and available bytes; otherwise as Arena::Create.
  static absl::StatusOr<std::unique_ptr<HostTiers>> Create(const HostTiersOptions& options);

  // Address of the page's layer 0 in head group 0. Those of group g lie g * head_group_stride() bytes behind it.
  uint64_t Address(PageRole role, const HostPage& page) const {
    const int r = Index(role);
    return base_[Index(page.tier)][r] + static_cast<uint64_t>(page.index) * group_page_bytes_[r];
  }
  // A page of zeros, as large as the larger role's; in head groups as any other.
  uint64_t ZeroPage() const { return zero_page_; }
  uint64_t head_group_stride() const { return head_group_stride_; }

  // Bytes of one block on the host, both roles, all layers.
  int64_t block_bytes() const { return options_.page_bytes[0] + options_.page_bytes[1]; }
  const HostTiersOptions& options() const { return options_; }
  const std::vector<TierArena>& arenas() const { return arenas_; }
  // Whether the device reaches all of [address, address + bytes), of host pages.
  bool Registered(uint64_t address, int64_t bytes) const;
  // Why a device attends no host pages itself; empty: it may, as it reaches them all.
  std::string WhyNotStreamed() const;
  // Of all arenas and the pages of zeros.
  const PinReport& pin() const { return pin_; }

 private:
  explicit HostTiers(const HostTiersOptions& options) : options_(options) {}

  const HostTiersOptions options_;
  int64_t group_page_bytes_[kNumRoles] = {0, 0};  // of one head group's part of a page
  uint64_t head_group_stride_ = 0;
  std::vector<TierArena> arenas_;
  uint64_t base_[kNumTiers][kNumRoles] = {};  // of head group 0
  uint64_t zero_page_ = 0;
  std::vector<std::unique_ptr<Arena>> zeros_;  // [head group]
  PinReport pin_;
};

}  // namespace hybridgen

#endif  // BACKEND_HOST_TIERS_H_
