// The host's end of the joint: a native thread that answers the calls which a device stream publishes, with the CPU
// worker, and a watchdog beside it. It holds no Python lock and makes no CUDA call. docs/joint.md has the protocol.
//
// Life: Create; then per engine step, by the thread that launches it, BeginStep, a stream-ordered copy of the step's
// plan to the device, and the step's kernels. Nothing ends a step: its last answer does. Any failure is final: the
// joint is dead, every wait of the device ends in an error, and a new backend is needed.
#ifndef BACKEND_JOINT_DISPATCHER_H_
#define BACKEND_JOINT_DISPATCHER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "backend/joint_memory.h"
#include "backend/joint_watchdog.h"

namespace hybridgen {

// One published call. The memory is the call's slot.
struct JointCall {
  uint64_t sequence = 0;
  int32_t index = 0;            // in its step
  const void* query = nullptr;  // layouts: JointCallBytes
  float* o = nullptr;
  float* lse = nullptr;
};

// The CPU worker's part of a call: reads the query, writes the partials. Runs on the dispatcher's thread, usually
// AttentionWorker::Attend over an executor that this thread is the caller of; other threads that store past the cache
// fence their own stores. An error is the end of the joint. It must not throw, and what it refers to must outlive a
// worker that is stuck.
using JointWork = std::function<absl::Status(const JointCall& call)>;

struct JointOptions {
  JointCallBytes bytes;
  // A worker that takes longer for one call has failed. The device waits for twice as long at least, so that it hears
  // of the failure and does not guess at it.
  absl::Duration worker_timeout = absl::Seconds(5);
  absl::Duration device_timeout = absl::Seconds(10);
  // While a step is in flight the thread polls for its next call: without a break for this long, then yielding.
  absl::Duration spin = absl::Microseconds(30);
  int cpu = -1;  // the thread is pinned to it; -1: not pinned

  JointAllocator allocate;  // empty: plain memory

  // For tests. Empty: the steady clock; sfence.
  std::function<int64_t()> now_ns;       // of worker_timeout
  std::function<void()> publish_stores;  // makes this thread's non-temporal stores visible, before the answer
};

class JointDispatcher {
 public:
  // Errors: InvalidArgument naming field, value and accepted values; ResourceExhausted without memory; Internal when
  // the system refuses a thread.
  static absl::StatusOr<std::unique_ptr<JointDispatcher>> Create(JointOptions options);
  // Steps in flight are cancelled. The memory must outlive the device's use of it: the stream is idle, or has failed.
  // A stuck worker is abandoned with its thread and keeps the memory.
  ~JointDispatcher();

  // Announces a step with `num_calls` calls, answered by `work`, and returns the plan to copy to the device. The plan
  // stays unchanged until all calls of the step have been answered.
  // Errors: InvalidArgument for num_calls < 1; FailedPrecondition with kMaxStepsInFlight steps not answered, or when
  // the joint is dead.
  absl::StatusOr<const JointPlan*> BeginStep(int32_t num_calls, JointWork work);

  // Ok, or why the joint died.
  absl::Status status() const;
  const JointMemory& memory() const;

 private:
  struct State;

  explicit JointDispatcher(std::shared_ptr<State> state) : state_(std::move(state)) {}

  const std::shared_ptr<State> state_;  // the thread keeps it alive when it is abandoned
  std::unique_ptr<JointWatchdog> watchdog_;
  std::thread thread_;
};

}  // namespace hybridgen

#endif  // BACKEND_JOINT_DISPATCHER_H_
