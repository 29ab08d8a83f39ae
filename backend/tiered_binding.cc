#include "backend/tiered_binding.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "memory/memory_budget.h"

namespace hybridgen {
namespace {

// Share of the device tier that is kept free or evictable without a copy.
constexpr int kWatermarkDivisor = 4;

// A tier larger than what may be reserved is refused even where the engine would use less of it: the size is a mistake.
absl::Status CheckTierFits(const char* field, int64_t bytes, const MemoryBudget& budget) {
  if (!budget.bytes.has_value() || bytes <= *budget.bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("bind tiered: ", field, " is ", bytes, "; accepted: 0 to ",
                                                   *budget.bytes, ", which is what may be reserved now (limited by ",
                                                   budget.limited_by, ")"));
}

absl::Status CheckPool(const TieredPool& pool, int num_layers) {
  if (num_layers == 0 || static_cast<int>(pool.data.size()) != num_layers) {
    return absl::InvalidArgumentError(absl::StrCat("bind tiered: ", pool.data.size(), " regions for ", num_layers,
                                                   " layers; accepted: one region for each added layer"));
  }
  if (pool.num_blocks < 2 || pool.num_blocks > kMaxBlocks) {
    return absl::InvalidArgumentError(
        absl::StrCat("bind tiered: num_blocks is ", pool.num_blocks, "; accepted: 2 to ", kMaxBlocks));
  }
  if (pool.bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("bind tiered: bytes is ", pool.bytes, "; accepted: 0 or more"));
  }
  for (size_t i = 0; i < pool.data.size(); ++i) {
    if (pool.data[i] == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("bind tiered: data[", i, "] is null; accepted: the layer's region"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

PageGeometry GeometryOf(const BackendOptions& options, PageFormat format) {
  PageGeometry g;
  g.format = format;
  g.dtype = options.kv();
  g.page_tokens = options.block_size;
  g.kv_heads = options.num_kv_heads;
  g.head_size = options.head_size;
  return g;
}

int64_t DevicePageBytes(const BackendOptions& options) {
  return static_cast<int64_t>(2 * DTypeSize(options.kv())) * options.num_kv_heads * options.block_size *
         options.head_size;
}

absl::StatusOr<std::unique_ptr<TieredBinding>> BindTieredPool(const BackendOptions& options,
                                                              const HeadGroups& head_groups, const KernelSet& kernels,
                                                              const TieredPool& pool, int num_layers,
                                                              const TieredSystem& system) {
  if (absl::Status status = CheckPool(pool, num_layers); !status.ok()) return status;
  absl::Status fits;
  for (const int node : head_groups.nodes) {
    if (!fits.ok()) return fits;
    fits = CheckTierFits(head_groups.count == 1 ? "dram_bytes" : "dram_bytes / head_groups",
                         options.dram_bytes / head_groups.count, system.arena.budget(node));
  }
  if (fits.ok() && options.cxl_device.empty()) {  // a device's size is checked when it is mapped
    fits = CheckTierFits("cxl_bytes", options.cxl_bytes, system.arena.budget(options.cxl_node));
  }
  if (!fits.ok()) return fits;
  std::vector<void*> stored;  // distinct regions, in the order of their first layer
  for (void* region : pool.data) {
    if (std::find(stored.begin(), stored.end(), region) == stored.end()) stored.push_back(region);
  }
  const int64_t stored_layers = static_cast<int64_t>(stored.size());
  const int64_t device_page = DevicePageBytes(options);
  const PageGeometry host_pages = GeometryOf(
      options, options.host_page_format == HostPageFormat::kInt8 ? PageFormat::kPackedInt8V1 : PageFormat::kPackedV1);
  const int64_t host_page = HostPageBytes(host_pages);

  BlockManagerOptions manager;
  manager.num_blocks = static_cast<int>(pool.num_blocks);
  manager.block_size = options.block_size;
  manager.device_pages = static_cast<int>(std::min(pool.bytes / device_page, pool.num_blocks - 1));
  manager.publish_mode = options.device_kind == DeviceKind::kCpu ? PublishMode::kMove : PublishMode::kCopy;
  manager.publish_lag_tokens = options.speculative_tokens + 1;
  manager.device_low_watermark = manager.device_pages / kWatermarkDivisor;

  PlacementRequest request;
  request.dram_bytes = options.dram_bytes;
  request.cxl_bytes = options.cxl_bytes;
  request.page_bytes[0] = request.page_bytes[1] = host_page * stored_layers;
  request.blocks = pool.num_blocks - 1;
  const MeasureTier measure = system.measure != nullptr ? system.measure : [&](Tier tier) {
    return MeasureTierSpeed(options, head_groups, tier);
  };
  absl::StatusOr<ChosenPlacement> choice =
      ChoosePlacement(options, request.page_bytes[0], request.page_bytes[1], measure);
  if (!choice.ok()) return choice.status();
  request.policy = choice->policy;
  request.value_share_on_cxl = choice->value_share_on_cxl;
  request.dram_weight = options.interleave_dram_weight;
  request.cxl_weight = options.interleave_cxl_weight;
  absl::StatusOr<Placement> placement = PlaceHostPages(request);
  if (!placement.ok()) return placement.status();
  if (manager.device_pages + placement->host_blocks < pool.num_blocks - 1) {
    return absl::ResourceExhaustedError(
        absl::StrCat("bind tiered: the engine has ", pool.num_blocks - 1, " blocks of ", 2 * host_page * stored_layers,
                     " bytes; the device tier holds ", manager.device_pages, " and the host tiers ",
                     placement->host_blocks, " (dram_bytes ", options.dram_bytes, ", cxl_bytes ", options.cxl_bytes,
                     "); raise dram_bytes or cxl_bytes, or give the engine fewer blocks"));
  }
  HostTiersOptions tiers;
  for (int role = 0; role < kNumRoles; ++role) {
    tiers.page_bytes[role] = request.page_bytes[role];
    tiers.dram_pages[role] = manager.dram_pages[role] = placement->dram_pages[role];
    tiers.cxl_pages[role] = manager.cxl_pages[role] = placement->cxl_pages[role];
    manager.cxl_share[role] = placement->cxl_share[role];
  }
  tiers.dram_nodes = head_groups.nodes;
  tiers.cxl_node = options.cxl_node;
  tiers.cxl_device = options.cxl_device;
  tiers.registrar = system.registrar;
  tiers.arena = system.arena;

  absl::StatusOr<std::unique_ptr<BlockManager>> blocks = BlockManager::Create(manager);
  if (!blocks.ok()) return blocks.status();
  absl::StatusOr<std::unique_ptr<HostTiers>> host = HostTiers::Create(tiers);
  if (!host.ok()) return host.status();

  std::vector<LayerPages> copied;  // [stored layer]
  for (int64_t s = 0; s < stored_layers; ++s) {
    LayerPages pages;
    pages.pool = GeometryOf(options, PageFormat::kStrided);
    pages.pool.k_token_stride = pages.pool.v_token_stride = 2 * options.head_size;
    pages.pool.k_head_stride = pages.pool.v_head_stride =
        static_cast<int64_t>(options.block_size) * 2 * options.head_size;
    pages.pool_k = reinterpret_cast<uint64_t>(stored[s]);
    pages.pool_v = pages.pool_k + options.head_size * DTypeSize(options.kv());
    pages.pool_page_bytes = device_page;
    pages.pool_pages = manager.device_pages;
    pages.host = host_pages;
    pages.host.kv_heads = options.num_kv_heads / head_groups.count;
    pages.host_k = pages.host_v = s * host_page / head_groups.count;
    pages.head_groups = head_groups.count;
    pages.head_group_stride = (*host)->head_group_stride();
    copied.push_back(pages);
  }

  auto binding = std::make_unique<TieredBinding>();
  binding->pool = pool;
  binding->stored_layers = stored_layers;
  for (void* region : pool.data) {
    binding->stored_layer.push_back(static_cast<int>(std::find(stored.begin(), stored.end(), region) - stored.begin()));
    binding->pages.push_back(copied[binding->stored_layer.back()]);
  }
  binding->choice = *std::move(choice);
  binding->placement = *std::move(placement);
  binding->blocks = *std::move(blocks);
  binding->host = *std::move(host);
  binding->watch = std::make_unique<PlacementWatch>(&binding->host->arenas(), std::chrono::steady_clock::now());
  binding->mirror = std::make_unique<BlockTableMirror>(pool.num_blocks);
  if (options.page_digests == PageDigests::kOnPublish) {
    absl::StatusOr<std::unique_ptr<BlockDigests>> digests =
        BlockDigests::Create(kernels, binding->host.get(), copied, pool.num_blocks);
    if (!digests.ok()) return digests.status();
    binding->digests = *std::move(digests);
  }
  binding->copier = std::make_shared<const PageCopier>(kernels, binding->host.get(), std::move(copied));
  return binding;
}

void AddTieredStatistics(const BackendOptions& options, const TieredBinding& binding, BackendStatistics& statistics) {
  const BlockManagerStats blocks = binding.blocks->Stats();
  statistics.blocks = blocks;
  if (binding.digests != nullptr) statistics.page_digests = binding.digests->statistics();
  const HostTiersOptions& host = binding.host->options();
  for (const Tier tier : {Tier::kDevice, Tier::kDram, Tier::kCxl}) {
    const int t = Index(tier);
    TierStatistics& s = statistics.tiers[t];
    // A device page holds both roles of a block.
    const int64_t device_bytes = binding.stored_layers * DevicePageBytes(options) / 2;
    const int64_t key_bytes = tier == Tier::kDevice ? device_bytes : host.page_bytes[0];
    const int64_t value_bytes = tier == Tier::kDevice ? device_bytes : host.page_bytes[1];
    s.capacity_bytes = blocks.capacity_pages[t][0] * key_bytes + blocks.capacity_pages[t][1] * value_bytes;
    s.resident_key_bytes = blocks.resident_pages[t][0] * key_bytes;
    s.resident_value_bytes = blocks.resident_pages[t][1] * value_bytes;
    if (tier != Tier::kDevice) s.configured = s.capacity_bytes > 0;
  }
  TierStatistics& dram = statistics.tiers[Index(Tier::kDram)];
  dram.node = host.dram_nodes.size() == 1 ? host.dram_nodes[0] : -1;
  dram.paced_gigabytes_per_second = options.dram_gigabytes_per_second;
  dram.emulated = options.dram_gigabytes_per_second > 0;
  TierStatistics& cxl = statistics.tiers[Index(Tier::kCxl)];
  cxl.node = options.cxl_node;
  cxl.paced_gigabytes_per_second = options.cxl_gigabytes_per_second;
  cxl.emulated = CxlIsEmulated(options);

  PlacementStatistics& placement = statistics.placement;
  placement.host_page_format = HostPageFormatName(options.host_page_format);
  placement.host_block_bytes = binding.host->block_bytes();
  placement.policy = PlacementPolicyName(binding.choice.policy);
  placement.reason = binding.choice.reason;
  std::copy_n(binding.placement.cxl_share, kNumRoles, placement.cxl_share);
  const std::vector<ArenaPlacement> watched = binding.watch->Report();
  std::string numa_note;
  for (size_t i = 0; i < watched.size(); ++i) {
    const TierArena& arena = binding.host->arenas()[i];
    const int t = Index(arena.tier), r = Index(arena.role);
    ArenaStatistics s;
    s.tier = arena.tier;
    s.role = arena.role;
    s.node = arena.memory->node();
    s.head_group = arena.head_group;
    const int64_t page_bytes = host.page_bytes[r] / static_cast<int64_t>(host.dram_nodes.size());
    s.capacity_bytes = blocks.capacity_pages[t][r] * page_bytes;
    s.resident_bytes = blocks.resident_pages[t][r] * page_bytes;
    s.sampled_pages_on_node = watched[i].newest.pages_on_node;
    s.sampled_pages_unknown = watched[i].newest.pages_unknown;
    s.misplaced_pages = watched[i].newest.pages_elsewhere;
    s.repaired_pages = watched[i].repairs.repaired;
    s.unmovable_pages = watched[i].repairs.unmovable;
    s.no_room_pages = watched[i].repairs.no_room;
    s.registered_bytes = arena.pin.registered_bytes;
    s.pin_failures = arena.pin.failures;
    if (arena.tier == Tier::kCxl) cxl.node = s.node;  // a device tells its node
    placement.arenas.push_back(std::move(s));
    // What the kernel permits is the same for all arenas: one line is enough.
    if (numa_note.empty()) numa_note = arena.memory->note();
    if (numa_note.empty()) numa_note = watched[i].note;
    if (arena.pin.failures > 0) {
      placement.notes.push_back(
          absl::StrCat(TierName(arena.tier), " ", PageRoleName(arena.role), ": ", arena.pin.failed_bytes,
                       " bytes are not registered with the device: ", arena.pin.first_error.message()));
    }
  }
  if (!numa_note.empty()) placement.notes.push_back(std::move(numa_note));
}

}  // namespace hybridgen
