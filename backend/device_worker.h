// The device tier's half of a call, and who brings in the CPU's: an accelerator seen as a queue of work in order.
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
  double host = 0;      // of the CPU worker, attending
  double wait = 0;      // of the calling thread for the device
};

class DeviceWorker {
 public:
  virtual ~DeviceWorker() = default;

  static absl::Status NoGraphs() {
    return absl::UnimplementedError("graphs: the device kind has none; accepted: device kind cuda");
  }

  // One layer of a step, the CPU worker's part included: new K/V of all tiers are written, then all are attended and
  // the output is written. A device with a queue of its own returns when the work is queued; `call.plan` may then be
  // planned again at once, and what goes wrong later is told by a later call.
  // Errors: those of the work; FailedPrecondition from a device that has failed before.
  virtual absl::Status RunLayer(const LayerCall& call) = 0;

  // Takes up a planned step ahead of its layers: what changes from step to step is queued for the device, on `stream`,
  // and `plan` may be planned again at once. `page_bytes`: LayerPages::pool_page_bytes of the layers. RunLayer does it
  // for a step that nobody took up. With `graph`, the step's layers are those of the graph that was captured for the
  // shape: the caller queues the graph next, and calls nothing of the device before.
  // Errors: those of the work; FailedPrecondition, after which the device goes on, for a step that its graph does not
  // serve.
  virtual absl::Status BeginStep(const StepPlan& /*plan*/, uint64_t /*page_bytes*/, const GraphShape* graph,
                                 CUstream_st* /*stream*/) {
    return graph == nullptr ? absl::OkStatus() : NoGraphs();
  }
  // Whether BeginStep would take the plan up for the graph.
  virtual absl::Status CheckReplay(const StepPlan& /*plan*/, const GraphShape& /*graph*/) { return NoGraphs(); }
  // Takes up a step without tokens for a graph whose layers are captured, or run to warm up, by the RunLayers that
  // follow. Errors: InvalidArgument for the shape.
  virtual absl::Status BeginCapture(const GraphShape& /*graph*/, uint64_t /*page_bytes*/, CUstream_st* /*stream*/) {
    return NoGraphs();
  }

  // Queued behind the layers begun before, ahead of those begun after.
  virtual absl::Status EnqueueCopies(std::vector<CopyTask> tasks) = 0;
  // Copies whose bytes are in place, in order; each is returned once.
  virtual std::vector<CopyTask> TakeFinishedCopies() = 0;
  // Waits until everything queued is done. Errors: DeadlineExceeded from a watchdog, after which the device refuses
  // everything with FailedPrecondition; those of the work.
  virtual absl::Status Drain() = 0;

  // The last step up to `newest` with which all that was ever queued is done.
  virtual int64_t CompletedStep(int64_t newest) = 0;

  virtual int num_workers() const = 0;
  // Of a device with a queue of its own: of the steps that CompletedStep, or a wait, has found done.
  virtual int64_t read_bytes(Tier tier) const = 0;
  virtual DeviceSeconds seconds() const = 0;
};

}  // namespace hybridgen

#endif  // BACKEND_DEVICE_WORKER_H_
