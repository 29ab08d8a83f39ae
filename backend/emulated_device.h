// The `emulated` device kind: threads of its own and the engine's tensor stand for an accelerator and its memory, so
// that split, publish, evict, recall and merge run for real where there is none. Its times are never GPU times.
#ifndef BACKEND_EMULATED_DEVICE_H_
#define BACKEND_EMULATED_DEVICE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "backend/attention_worker.h"
#include "backend/device_worker.h"
#include "backend/page_copier.h"
#include "kernels/kernel_table.h"

namespace hybridgen {

struct EmulatedDeviceOptions {
  int num_threads = 1;
  DType dtype = DType::kFloat32;
  int head_size = 0;
  int num_kv_heads = 0;
  double gigabytes_per_second = 0;  // paces attention to this read rate; 0: as fast as it goes
  absl::Duration timeout = absl::Seconds(60);
  KernelSet kernels;
  AttentionWorker* host = nullptr;  // the CPU worker, which RunLayer drives; outlives the device
  // Null without host tiers; then EnqueueCopies is refused.
  std::shared_ptr<const PageCopier> copier;
};

// Protocol of one layer, driven by the calling thread:
//   BeginLayer     device: write its pages' new K/V
//   HostWritten    host pages hold the layer's new K/V: device may attend its items (streamed host pages among them)
//   HostAttended   the CPU worker's partials are complete: device merges and writes the output
//   WaitLayer      the output is complete
class EmulatedDevice : public DeviceWorker {
 public:
  // `call` stays valid until WaitLayer returned. Errors of the work itself are returned by WaitLayer.
  virtual absl::Status BeginLayer(const LayerCall& call) = 0;
  virtual void HostWritten() = 0;
  virtual void HostAttended() = 0;
  // Errors: as Drain.
  virtual absl::Status WaitLayer() = 0;
};

absl::StatusOr<std::unique_ptr<EmulatedDevice>> CreateEmulatedDevice(const EmulatedDeviceOptions& options);

}  // namespace hybridgen

#endif  // BACKEND_EMULATED_DEVICE_H_
