// The tiered binding: carves the engine's tensor into device pages, splits and reserves the host tiers, and makes what
// plans steps over them.
#ifndef BACKEND_TIERED_BINDING_H_
#define BACKEND_TIERED_BINDING_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "backend/backend_options.h"
#include "backend/block_digests.h"
#include "backend/block_table_mirror.h"
#include "backend/host_tiers.h"
#include "backend/layer_call.h"
#include "backend/page_copier.h"
#include "backend/placement_choice.h"
#include "backend/placement_watch.h"
#include "backend/statistics.h"
#include "kernels/kernel_table.h"
#include "memory/block_manager.h"
#include "memory/placement.h"

namespace hybridgen {

struct TieredPool {
  std::vector<void*> data;  // [layer]; layers that share KV name the same region
  int64_t bytes = 0;        // of each region
  int64_t num_blocks = 0;   // engine block ids; 0 is the null block
};

inline bool operator==(const TieredPool& a, const TieredPool& b) {
  return a.data == b.data && a.bytes == b.bytes && a.num_blocks == b.num_blocks;
}

// Members are in order of construction: each may refer to those before it.
struct TieredBinding {
  TieredPool pool;
  int64_t stored_layers = 0;      // layers with KV of their own
  std::vector<LayerPages> pages;  // [layer]
  std::vector<int> stored_layer;  // [layer] index among those with KV of their own
  ChosenPlacement choice;
  Placement placement;
  std::unique_ptr<BlockManager> blocks;
  std::unique_ptr<HostTiers> host;
  std::unique_ptr<PlacementWatch> watch;
  std::unique_ptr<BlockTableMirror> mirror;
  std::shared_ptr<const PageCopier> copier;
  std::unique_ptr<BlockDigests> digests;  // null without BackendOptions::page_digests

  // Of what the block holds now, `layer` as the engine counts; null: there is none.
  const void* FindDigest(int layer, int head_group, int32_t block) const {
    if (digests == nullptr) return nullptr;
    return digests->Find(stored_layer[layer], head_group, block, blocks->generation(block));
  }
};

// Most block ids of a tensor, with which addresses cannot overflow.
constexpr int64_t kMaxBlocks = int64_t{1} << 30;

// Strides are left at 0.
PageGeometry GeometryOf(const BackendOptions& options, PageFormat format);

// Bytes of one block of one layer in the engine's tensor, K and V.
int64_t DevicePageBytes(const BackendOptions& options);

// What binding asks of the machine; tests replace it.
struct TieredSystem {
  ArenaOptions arena;                    // as HostTiersOptions::arena
  MeasureTier measure;                   // null: MeasureTierSpeed
  DeviceRegistrar* registrar = nullptr;  // as HostTiersOptions::registrar
};

// Reserves the host tiers, and digests, in full.
// Errors: InvalidArgument for a malformed pool; ResourceExhausted with the sizes when a tier is larger than what may be
// reserved, when all tiers together cannot hold pool.num_blocks, or when there is no room for digests.
absl::StatusOr<std::unique_ptr<TieredBinding>> BindTieredPool(const BackendOptions& options,
                                                              const HeadGroups& head_groups, const KernelSet& kernels,
                                                              const TieredPool& pool, int num_layers,
                                                              const TieredSystem& system = TieredSystem());

// Fills in what a binding knows: sizes and residency of the tiers, placement, blocks. The bytes read are the workers'.
void AddTieredStatistics(const BackendOptions& options, const TieredBinding& binding, BackendStatistics& statistics);

}  // namespace hybridgen

#endif  // BACKEND_TIERED_BINDING_H_
