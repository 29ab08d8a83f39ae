// Executes the block manager's copies: repacks pages between the device tier's format and the host format.
#ifndef BACKEND_PAGE_COPIER_H_
#define BACKEND_PAGE_COPIER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "backend/executor.h"
#include "backend/host_tiers.h"
#include "backend/layer_call.h"
#include "kernels/kernel_table.h"
#include "memory/block_manager.h"

namespace hybridgen {

class PageCopier {
 public:
  // One entry of `layers` per stored layer (layers that share KV appear once). All pointers outlive the copier.
  PageCopier(const KernelSet& kernels, const HostTiers* host, std::vector<LayerPages> layers)
      : kernels_(kernels), host_(host), layers_(std::move(layers)) {}

  // Copies every layer of the tasks' blocks; both roles, or for a migration those that move. Does not report to the
  // block manager: that is the planning thread's.
  absl::Status Run(absl::Span<const CopyTask> tasks, Executor& executor) const;

  // The parts of a copy: one stored layer of the task's block.
  const std::vector<LayerPages>& layers() const { return layers_; }
  int num_layers() const { return static_cast<int>(layers_.size()); }
  void CopyLayer(const CopyTask& task, int layer) const;
  // Bytes that CopyLayer writes, at most.
  int64_t LayerBytes(const CopyTask& task) const;

 private:
  void CopyHeadGroup(const CopyTask& task, const LayerPages& layer, int group) const;

  const KernelSet kernels_;
  const HostTiers* const host_;
  const std::vector<LayerPages> layers_;
};

}  // namespace hybridgen

#endif  // BACKEND_PAGE_COPIER_H_
