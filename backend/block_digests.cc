#include "backend/block_digests.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hybridgen {

BlockDigests::BlockDigests(const KernelSet& kernels, const HostTiers* host, std::vector<LayerPages> layers,
                           int64_t num_blocks)
    : build_digest_(kernels.selection.build_digest),
      host_(host),
      layers_(std::move(layers)),
      layout_(DigestLayoutOf(layers_[0].host.kv_heads, layers_[0].host.head_size)),
      built_(num_blocks, kNotBuilt) {}

absl::StatusOr<std::unique_ptr<BlockDigests>> BlockDigests::Create(const KernelSet& kernels, const HostTiers* host,
                                                                   std::vector<LayerPages> layers, int64_t num_blocks) {
  auto digests = std::unique_ptr<BlockDigests>(new BlockDigests(kernels, host, std::move(layers), num_blocks));
  const std::vector<int>& nodes = host->options().dram_nodes;
  const int64_t num_layers = static_cast<int64_t>(digests->layers_.size());
  const int64_t bytes = num_blocks * num_layers * static_cast<int64_t>(digests->layout_.bytes);
  for (size_t group = 0; group < nodes.size(); ++group) {
    ArenaOptions arena = host->options().arena;
    arena.name = nodes.size() > 1 ? absl::StrCat("page digests of head group ", group) : "page digests";
    arena.node = nodes[group];
    absl::StatusOr<std::unique_ptr<Arena>> memory = Arena::Create(bytes, arena);
    if (!memory.ok()) {
      return absl::Status(
          memory.status().code(),
          absl::StrCat("bind tiered: page_digests takes ", bytes, " bytes beside the host tiers for each of ",
                       nodes.size(), " KV head groups (", num_blocks, " blocks, ", num_layers, " layers, ",
                       digests->layout_.bytes,
                       " bytes a digest); lower dram_bytes or turn page_digests off: ", memory.status().message()));
    }
    digests->statistics_.reserved_bytes += (*memory)->bytes();
    digests->arenas_.push_back(*std::move(memory));
  }
  return digests;
}

absl::Status BlockDigests::Build(absl::Span<const CopyTask> published, Executor* executor) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<CopyTask> tasks;
  for (const CopyTask& task : published) {
    // A block that gave up its host copy is published again with the same content.
    if (built_[task.block] == task.generation) continue;
    built_[task.block] = kNotBuilt;
    tasks.push_back(task);
  }
  const int64_t groups = static_cast<int64_t>(arenas_.size());
  const int64_t parts = static_cast<int64_t>(layers_.size()) * groups;
  const int64_t count = static_cast<int64_t>(tasks.size()) * parts;
  const auto build = [&](int, int64_t i) {
    BuildOne(tasks[i / parts], static_cast<int>(i % parts / groups), static_cast<int>(i % groups));
  };
  if (executor != nullptr) {
    if (absl::Status status = ParallelFor(*executor, count, build); !status.ok()) return status;
  } else {
    for (int64_t i = 0; i < count; ++i) build(0, i);
  }
  for (const CopyTask& task : tasks) built_[task.block] = task.generation;
  statistics_.blocks += static_cast<int64_t>(tasks.size());
  statistics_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return absl::OkStatus();
}

void BlockDigests::BuildOne(const CopyTask& task, int layer, int head_group) const {
  const LayerPages& pages = layers_[layer];
  build_digest_(pages.host, host_->Address(PageRole::kKey, task.k) + pages.HostOffset(PageRole::kKey, head_group),
                host_->Address(PageRole::kValue, task.v) + pages.HostOffset(PageRole::kValue, head_group),
                task.num_tokens, Address(layer, head_group, task.block));
}

}  // namespace hybridgen
