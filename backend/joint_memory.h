// The host's side of the joint's memory: its layout, and the operations by which the host reads and writes the flags.
// docs/joint.md has the table of who writes what.
#ifndef BACKEND_JOINT_MEMORY_H_
#define BACKEND_JOINT_MEMORY_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/joint_protocol.h"

namespace hybridgen {

// The largest call that the joint carries, bytes.
struct JointCallBytes {
  int64_t query = 0;  // [tokens][query heads][head size] of the model's dtype
  int64_t o = 0;      // [partial rows][query heads][head size] float32
  int64_t lse = 0;    // [partial rows][query heads] float32
};

// Gives `bytes` bytes at a kJointLine boundary, which stay at their address until the pointer is released. Beside a
// GPU: pinned, mapped at the same address, on the GPU's NUMA node.
using JointAllocator = std::function<absl::StatusOr<std::shared_ptr<void>>(size_t bytes)>;
// Plain memory, for devices that are no devices.
absl::StatusOr<std::shared_ptr<void>> AllocatePlainJointMemory(size_t bytes);

// Control words, the steps' plans for the device to copy, and two slots, in one allocation. Threads share it; each word
// has the writers that docs/joint.md names.
class JointMemory {
 public:
  static constexpr int kMaxStepsInFlight = 2;

  // Errors: InvalidArgument for sizes below 1; the allocator's.
  static absl::StatusOr<std::unique_ptr<JointMemory>> Create(const JointCallBytes& bytes,
                                                             const JointAllocator& allocate);

  // The kernels' parameter; `plan` is null, the device worker puts in its own copy's address.
  const JointTable& table() const { return table_; }
  // Source of the stream-ordered copy of a step's plan. Plain memory: the launching thread writes it before it queues
  // the copy, and again only when a call of that step has been published.
  JointPlan& plan(int64_t step) { return plans_[step % kMaxStepsInFlight].plan; }
  // Source of that copy for a step in which the CPU has no part.
  const JointPlan& idle_plan() const { return plans_[kMaxStepsInFlight].plan; }

  // The newest call whose query lies complete in its slot.
  uint64_t Published() const { return __atomic_load_n(&table_.control->published.value, __ATOMIC_ACQUIRE); }
  // Non-zero: the device gave up waiting; JointWord(kError, sequence).
  uint64_t DeviceFailure() const { return __atomic_load_n(&table_.control->device_failure.value, __ATOMIC_ACQUIRE); }
  // The newest call that has been answered.
  uint64_t Answered() const;

  // Releases the answer to `sequence`: its partials, visible by now, may be read. False: the joint was retired before;
  // nothing is changed, so that a late worker's answer satisfies no wait.
  bool Answer(uint64_t sequence);
  // Retires both slots: every wait from now on ends in an error that names `sequence`. False, and nothing changed, when
  // `sequence` has been answered or the joint has been retired.
  bool Retire(uint64_t sequence);

  const void* Query(uint64_t sequence) const { return JointSlot(table_, sequence); }
  float* PartialO(uint64_t sequence) const {
    return reinterpret_cast<float*>(JointSlot(table_, sequence) + table_.o_offset);
  }
  float* PartialLse(uint64_t sequence) const {
    return reinterpret_cast<float*>(JointSlot(table_, sequence) + table_.lse_offset);
  }

 private:
  struct alignas(kJointLine) PlanLine {
    JointPlan plan;
  };

  JointMemory() = default;

  uint64_t* AnswerWord(uint64_t sequence) const { return &table_.control->answer[sequence & 1].value; }

  std::shared_ptr<void> memory_;
  JointTable table_ = {};
  PlanLine* plans_ = nullptr;
};

}  // namespace hybridgen

#endif  // BACKEND_JOINT_MEMORY_H_
