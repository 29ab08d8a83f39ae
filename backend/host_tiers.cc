#include "backend/host_tiers.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// A head group's arena, at the same place in the addresses of each group.
struct Part {
  Tier tier = Tier::kDram;
  PageRole role = PageRole::kKey;
  int64_t offset = 0;
  int64_t bytes = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HostTiers>> HostTiers::Create(const HostTiersOptions& options) {
  auto tiers = std::unique_ptr<HostTiers>(new HostTiers(options));
  const int groups = static_cast<int>(options.dram_nodes.size());
  ArenaOptions device = options.arena;
  device.dax_device = options.cxl_device;
  const absl::StatusOr<int64_t> cxl_alignment = Arena::Alignment(device);
  if (!cxl_alignment.ok()) return cxl_alignment.status();

  std::vector<Part> parts;
  int64_t end = 0;
  for (const Tier tier : {Tier::kDram, Tier::kCxl}) {
    const int64_t alignment = tier == Tier::kCxl ? *cxl_alignment : kHugePageBytes;
    for (const PageRole role : kPageRoles) {
      const int64_t page_bytes = tiers->group_page_bytes_[Index(role)] = options.page_bytes[Index(role)] / groups;
      const int64_t pages = (tier == Tier::kCxl ? options.cxl_pages : options.dram_pages)[Index(role)];
      if (pages == 0) continue;
      parts.push_back({tier, role, RoundUp(end, alignment), RoundUp(pages * page_bytes, alignment)});
      end = parts.back().offset + parts.back().bytes;
    }
  }
  const int64_t zero_offset = end;
  const int64_t zero_bytes =
      RoundUp(std::max(tiers->group_page_bytes_[0], tiers->group_page_bytes_[1]), kHugePageBytes);
  const int64_t stride = RoundUp(zero_offset + zero_bytes, *cxl_alignment);
  tiers->head_group_stride_ = stride;

  // What is left at the end is addresses only, so that the last arena can be taken too.
  absl::StatusOr<std::unique_ptr<AddressRange>> range =
      AddressRange::Reserve(groups * stride + kHugePageBytes, *cxl_alignment);
  if (!range.ok()) return range.status();
  const uint64_t begin = reinterpret_cast<uint64_t>((*range)->span().data());
  for (const Part& part : parts) tiers->base_[Index(part.tier)][Index(part.role)] = begin + part.offset;
  tiers->zero_page_ = begin + zero_offset;
  const auto create = [&](ArenaOptions arena, int64_t offset, int64_t bytes) -> absl::StatusOr<std::unique_ptr<Arena>> {
    const int64_t gap = begin + offset - reinterpret_cast<uint64_t>((*range)->span().data());
    if (gap > 0) {
      if (absl::Status status = (*range)->Take(gap).status(); !status.ok()) return status;
    }
    arena.within = range->get();
    return Arena::Create(bytes, arena);
  };

  const auto pin = [&](Arena& arena) -> absl::StatusOr<PinReport> {
    if (options.registrar == nullptr) return PinReport{};
    absl::StatusOr<RegistrationReport> report = arena.Register(*options.registrar);
    if (!report.ok()) return report.status();
    PinReport& total = tiers->pin_;
    if (total.failures == 0) total.first_error = report->pin.first_error;
    total.registered_bytes += report->pin.registered_bytes;
    total.failed_bytes += report->pin.failed_bytes;
    total.failures += report->pin.failures;
    return report->pin;
  };

  int64_t device_offset = 0;  // the arenas share the device, one behind the other
  for (int group = 0; group < groups; ++group) {
    const std::string suffix = groups > 1 ? absl::StrCat(" of head group ", group) : "";
    for (const Part& part : parts) {
      const bool cxl = part.tier == Tier::kCxl;
      ArenaOptions arena = options.arena;
      arena.name = absl::StrCat(TierName(part.tier), part.role == PageRole::kKey ? " keys" : " values", suffix);
      arena.node = cxl ? options.cxl_node : options.dram_nodes[group];
      if (cxl) {
        arena.dax_device = options.cxl_device;
        arena.dax_offset = device_offset;
      }
      absl::StatusOr<std::unique_ptr<Arena>> memory = create(arena, group * stride + part.offset, part.bytes);
      if (!memory.ok()) return memory.status();
      if (cxl && !options.cxl_device.empty()) device_offset += (*memory)->bytes();
      const absl::StatusOr<PinReport> report = pin(**memory);
      if (!report.ok()) return report.status();
      tiers->arenas_.push_back({part.tier, part.role, group, *std::move(memory), *report});
    }
    ArenaOptions zero = options.arena;
    zero.name = absl::StrCat("zero page", suffix);
    zero.node = options.dram_nodes[group];
    absl::StatusOr<std::unique_ptr<Arena>> zeros = create(zero, group * stride + zero_offset, zero_bytes);
    if (!zeros.ok()) return zeros.status();
    if (absl::Status status = pin(**zeros).status(); !status.ok()) return status;
    tiers->zeros_.push_back(*std::move(zeros));
  }
  return tiers;
}

bool HostTiers::Registered(uint64_t address, int64_t bytes) const {
  if (options_.registrar != nullptr && pin_.failures == 0) return true;
  const std::byte* const data = reinterpret_cast<const std::byte*>(address);
  return std::any_of(arenas_.begin(), arenas_.end(),
                     [&](const TierArena& arena) { return arena.memory->Registered(data, bytes); });
}

std::string HostTiers::WhyNotStreamed() const {
  if (pin_.failures == 0) return "";
  return absl::StrCat("streaming_share is 0, for ", pin_.failed_bytes,
                      " bytes of host pages could not be registered with the device: ", pin_.first_error.message(),
                      "; see RLIMIT_MEMLOCK and the container's limits, or lower dram_bytes or cxl_bytes");
}

}  // namespace hybridgen
