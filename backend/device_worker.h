// The device tier's half of a call: an accelerator seen as a queue of work in order, like a CUDA stream.
//
// Protocol of one layer, driven by the calling thread:
//   BeginLayer     device: write its pages' new K/V
//   HostWritten    host pages hold the layer's new K/V: device may attend its items (streamed host pages among them)
//   HostAttended   the CPU worker's partials are complete: device merges and writes the output
//   WaitLayer      the output is complete
#ifndef BACKEND_DEVICE_WORKER_H_
#define BACKEND_DEVICE_WORKER_H_

#include <vector>

#include "absl/status/status.h"
#include "backend/layer_call.h"
#include "memory/block_manager.h"

namespace hybridgen {

// Totals since creation, seconds.
struct DeviceSeconds {
  double attend = 0;
  double merge = 0;
  double transfer = 0;  // copies between tiers
};

class DeviceWorker {
 public:
  virtual ~DeviceWorker() = default;

  // `call` stays valid until WaitLayer returned. Errors of the work itself are returned by WaitLayer.
  virtual absl::Status BeginLayer(const LayerCall& call) = 0;
  virtual void HostWritten() = 0;
  virtual void HostAttended() = 0;
  // Errors: DeadlineExceeded from the watchdog; the worker is then dead and refuses everything with FailedPrecondition.
  virtual absl::Status WaitLayer() = 0;

  // Queued behind the layers begun before, ahead of those begun after.
  virtual absl::Status EnqueueCopies(std::vector<CopyTask> tasks) = 0;
  // Copies whose bytes are in place, in order; each is returned once.
  virtual std::vector<CopyTask> TakeFinishedCopies() = 0;
  // Waits until everything queued is done. Errors: as WaitLayer.
  virtual absl::Status Drain() = 0;

  virtual int num_workers() const = 0;
  virtual int64_t read_bytes(Tier tier) const = 0;
  virtual DeviceSeconds seconds() const = 0;
};

}  // namespace hybridgen

#endif  // BACKEND_DEVICE_WORKER_H_
