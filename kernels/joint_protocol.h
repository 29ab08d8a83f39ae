// The joint between a device stream and the CPU worker, as device code sees it: the words that both sides share, and
// the publishing and waiting steps. POD and free of the standard library, so that CUDA kernels and host code include
// it. docs/joint.md has the whole protocol.
#ifndef KERNELS_JOINT_PROTOCOL_H_
#define KERNELS_JOINT_PROTOCOL_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define HG_JOINT_DEVICE __device__ inline
#define HG_JOINT_ANY __host__ __device__ constexpr
#else
#define HG_JOINT_DEVICE inline
#define HG_JOINT_ANY constexpr
#endif

namespace hybridgen {

// A flag has such a line to itself: two lines of a CPU, which prefetches them in pairs, and one of a GPU's L2.
constexpr size_t kJointLine = 128;  // bytes

// A slot's answer in one 64-bit word, so that state and sequence cannot be torn: (sequence << 8) | state.
enum class JointState : uint8_t {
  kAnswered = 1,  // the partials of `sequence` are complete
  kError = 2,     // the joint is dead since `sequence`; final, no other word follows it
};
HG_JOINT_ANY uint64_t JointWord(JointState state, uint64_t sequence) {
  return sequence << 8 | static_cast<uint64_t>(state);
}
HG_JOINT_ANY JointState JointWordState(uint64_t word) { return static_cast<JointState>(word & 0xff); }
HG_JOINT_ANY uint64_t JointWordSequence(uint64_t word) { return word >> 8; }

// Calls are numbered without gaps from here. The slots begin as if calls 0 and 1 had been answered, so that the word
// before an answer to s is always the answer to s - 2.
constexpr uint64_t kJointFirstSequence = 2;
// JointPlan::first_sequence of a step in which the CPU has no part: publishing and waiting do nothing.
constexpr uint64_t kJointIdle = 1;

struct alignas(kJointLine) JointFlag {
  uint64_t value;
  uint8_t unused[kJointLine - sizeof(uint64_t)];
};

// In host memory that the device maps, at a fixed address.
struct JointControl {
  // Offset 0. Written by the device: the newest call whose query is complete in its slot.
  JointFlag published;
  // Offset 128. Written by the device: JointWord(kError, s) when its wait for s ended without an answer; before that 0.
  JointFlag device_failure;
  // Offsets 256 and 384. Written by the host: the answer word of calls of even and of odd sequence.
  JointFlag answer[2];
};
static_assert(offsetof(JointControl, published) == 0, "layout is shared with compiled kernels");
static_assert(offsetof(JointControl, device_failure) == 128, "layout is shared with compiled kernels");
static_assert(offsetof(JointControl, answer) == 256, "layout is shared with compiled kernels");
static_assert(sizeof(JointControl) == 512, "layout is shared with compiled kernels");

// What a step tells the device. Lives in device memory at a fixed address and is replaced by a stream-ordered copy
// ahead of the step's first kernel, so that captured kernels, whose parameters are frozen, still see this step's
// values. All zero: there is no plan, and waiting is an error.
struct JointPlan {
  uint64_t first_sequence;  // call i of the step (its i-th layer with a CPU part) has first_sequence + i; or kJointIdle
  uint64_t wait_timeout_ns;  // how long the device waits for one answer
  uint64_t runs;             // 0 as copied; counted by the device: a plan is good for one run of the step's kernels
};
static_assert(sizeof(JointPlan) == 24, "layout is shared with compiled kernels");

// Addresses, by value a kernel parameter: constant for the life of the joint, therefore safe to capture.
// Slot p, for calls of parity p, begins at slots + p * slot_bytes: query, then o and lse of the partials (partial.h).
struct JointTable {
  JointControl* control;
  JointPlan* plan;  // device memory, owned by the device worker
  unsigned char* slots;
  uint64_t slot_bytes;
  uint64_t o_offset;  // bytes from the slot's begin; the query lies at 0
  uint64_t lse_offset;
};

HG_JOINT_ANY unsigned char* JointSlot(const JointTable& table, uint64_t sequence) {
  return table.slots + (sequence & 1) * table.slot_bytes;
}

// Memory operations that a policy `Ops` supplies. `sys` is system scope: device and host.
//   void store(uint64_t* p, uint64_t v)              plain, may become visible late and in any order
//   uint64_t load_acquire_sys(const uint64_t* p)     what is loaded later is at least as new
//   void store_release_sys(uint64_t* p, uint64_t v)  what this thread stored earlier is visible first
//   void fence_sys()                                 what this thread stored earlier is visible before what it
//                                                    or, after a barrier, its block stores later
//   uint64_t now_ns()                                a clock of the device
//   void pause()                                     between two polls

// Publishing, first half, by every thread of one block: thread `thread` of `threads` stores its part of the query.
// `query`: `words` 64-bit words, device memory. A barrier of the block must follow, then JointPublish by one thread.
// A kernel that already holds the query may store it itself and end with ops.fence_sys() likewise.
template <typename Ops>
HG_JOINT_DEVICE void JointStoreQuery(Ops& ops, const JointTable& table, uint32_t call, const uint64_t* query,
                                     uint32_t words, uint32_t thread, uint32_t threads) {
  if (table.plan->first_sequence < kJointFirstSequence) return;
  uint64_t* slot = reinterpret_cast<uint64_t*>(JointSlot(table, table.plan->first_sequence + call));
  for (uint32_t i = thread; i < words; i += threads) ops.store(slot + i, query[i]);
  ops.fence_sys();
}

// Publishing, second half, by one thread. Call 0 comes first. The stream must have waited for call - 2, of this step or
// the one before: its slot is used again.
template <typename Ops>
HG_JOINT_DEVICE void JointPublish(Ops& ops, const JointTable& table, uint32_t call) {
  JointPlan& plan = *table.plan;
  if (call == 0) ++plan.runs;
  if (plan.first_sequence < kJointFirstSequence || plan.runs != 1) return;
  ops.store_release_sys(&table.control->published.value, plan.first_sequence + call);
}

enum class JointOutcome : uint8_t {
  kAnswered = 0,      // the partials lie in the slot; or the plan is idle and there are none
  kWorkerFailed = 1,  // the host says that the joint is dead
  kDeadline = 2,      // neither an answer nor an error in time
  kOutOfOrder = 3,    // no plan, a plan that was run before, or a slot that holds a later call
};

// Waits for the answer to `call`, by one thread. On any outcome but kAnswered the caller must trap (`__trap()`):
// nothing that is queued behind may run, so that no token of the step leaves.
template <typename Ops>
HG_JOINT_DEVICE JointOutcome JointWait(Ops& ops, const JointTable& table, uint32_t call) {
  const JointPlan& plan = *table.plan;
  if (plan.first_sequence == kJointIdle) return JointOutcome::kAnswered;
  const uint64_t sequence = plan.first_sequence + call;
  const uint64_t* answer = &table.control->answer[sequence & 1].value;
  JointOutcome outcome = JointOutcome::kOutOfOrder;
  const uint64_t start = ops.now_ns();
  while (plan.first_sequence >= kJointFirstSequence && plan.runs == 1) {
    const uint64_t word = ops.load_acquire_sys(answer);
    if (JointWordState(word) == JointState::kError) {
      outcome = JointOutcome::kWorkerFailed;
      break;
    }
    if (word == JointWord(JointState::kAnswered, sequence)) return JointOutcome::kAnswered;
    if (JointWordSequence(word) > sequence) break;
    if (ops.now_ns() - start >= plan.wait_timeout_ns) {
      outcome = JointOutcome::kDeadline;
      break;
    }
    ops.pause();
  }
  ops.store_release_sys(&table.control->device_failure.value, JointWord(JointState::kError, sequence));
  return outcome;
}

}  // namespace hybridgen

#endif  // KERNELS_JOINT_PROTOCOL_H_
