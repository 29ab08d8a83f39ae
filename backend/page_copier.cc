#include "backend/page_copier.h"

namespace hybridgen {

absl::Status PageCopier::Run(absl::Span<const CopyTask> tasks, Executor& executor) const {
  const int64_t layers = static_cast<int64_t>(layers_.size());
  return ParallelFor(executor, static_cast<int64_t>(tasks.size()) * layers,
                     [&](int, int64_t i) { CopyLayer(tasks[i / layers], static_cast<int>(i % layers)); });
}

void PageCopier::CopyLayer(const CopyTask& task, int index) const {
  const LayerPages& layer = layers_[index];
  for (int group = 0; group < layer.head_groups; ++group) CopyHeadGroup(task, layer, group);
}

void PageCopier::CopyHeadGroup(const CopyTask& task, const LayerPages& layer, int group) const {
  PageGeometry pool_geometry = layer.pool;
  pool_geometry.kv_heads = layer.host.kv_heads;
  const int64_t first_head = static_cast<int64_t>(group) * layer.host.kv_heads;
  const uint64_t pool_offset = static_cast<uint64_t>(task.device_page) * layer.pool_page_bytes +
                               first_head * layer.pool.k_head_stride * DTypeSize(layer.pool.dtype);
  const auto address = [&](PageRole role, const HostPage& page) {
    return host_->Address(role, page) + layer.HostOffset(role, group);
  };
  const auto copy = [&](PageRole role, const HostPage& to, const HostPage& from, uint64_t pool) {
    const KvRole kv = role == PageRole::kKey ? KvRole::kKey : KvRole::kValue;
    switch (task.kind) {
      case CopyTask::Kind::kPublish:
        kernels_.convert_page(kv, pool_geometry, pool + pool_offset, layer.host, address(role, to), task.num_tokens);
        return;
      case CopyTask::Kind::kRecall:
        kernels_.convert_page(kv, layer.host, address(role, to), pool_geometry, pool + pool_offset, task.num_tokens);
        return;
      case CopyTask::Kind::kMigrate:
        if (from.index < 0) return;  // this role stays
        kernels_.convert_page(kv, layer.host, address(role, from), layer.host, address(role, to), task.num_tokens);
        return;
    }
  };
  copy(PageRole::kKey, task.k, task.from_k, layer.pool_k);
  copy(PageRole::kValue, task.v, task.from_v, layer.pool_v);
}

int64_t PageCopier::LayerBytes(const CopyTask& task) const {
  const PageGeometry& g = layers_[0].host;  // the same in all layers
  const bool one_role = task.kind == CopyTask::Kind::kMigrate && (task.from_k.index < 0 || task.from_v.index < 0);
  return HostPageBytes(g) * layers_[0].head_groups * (one_role ? 1 : kNumRoles);
}

}  // namespace hybridgen
