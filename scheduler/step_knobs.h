// What the scheduler decides per step, and what it learns from: the seam between planning and feedback.
#ifndef SCHEDULER_STEP_KNOBS_H_
#define SCHEDULER_STEP_KNOBS_H_

#include <cstdint>

namespace hybridgen {

// Measured over the last completed step, all layers together.
struct StepTimings {
  double device_seconds = 0;    // device worker attending
  double cpu_seconds = 0;       // CPU worker attending
  double transfer_seconds = 0;  // pages moving between tiers
  int64_t device_bytes = 0;     // KV bytes read by the device worker
  int64_t cpu_bytes = 0;        // KV bytes read by the CPU worker
};

// What was added between two totals.
inline StepTimings operator-(const StepTimings& now, const StepTimings& before) {
  return {now.device_seconds - before.device_seconds, now.cpu_seconds - before.cpu_seconds,
          now.transfer_seconds - before.transfer_seconds, now.device_bytes - before.device_bytes,
          now.cpu_bytes - before.cpu_bytes};
}

struct StepKnobs {
  double streaming_share = 0;  // f in [0, 1]: share of host-resident tokens that the device attends
  int publish_blocks = 0;      // most blocks to publish this step
  int recall_blocks = 0;       // most blocks to bring back to the device this step
};

// Chooses the knobs of the next step from the timings of the last. One per backend; driven by the planning thread.
class KnobPolicy {
 public:
  virtual ~KnobPolicy() = default;
  virtual StepKnobs Next(const StepTimings& last) = 0;
};

// The configured knobs, whatever is measured.
class FixedKnobs final : public KnobPolicy {
 public:
  explicit FixedKnobs(const StepKnobs& knobs) : knobs_(knobs) {}
  StepKnobs Next(const StepTimings&) override { return knobs_; }

 private:
  const StepKnobs knobs_;
};

}  // namespace hybridgen

#endif  // SCHEDULER_STEP_KNOBS_H_
