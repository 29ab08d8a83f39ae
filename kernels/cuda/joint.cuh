// The device's side of the joint (kernels/joint_protocol.h) as kernels: one publishes a call's rows, one waits for the
// CPU's answer.
#ifndef KERNELS_CUDA_JOINT_CUH_
#define KERNELS_CUDA_JOINT_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/joint_launch.h"

namespace hybridgen::cuda {

constexpr int kPublishThreads = 128;
constexpr uint32_t kPollNanoseconds = 200;  // about a fifth of what a read over the link takes

// The memory operations of the protocol.
struct JointOps {
  HG_DEVICE void store(uint64_t* p, uint64_t v) { *p = v; }
  HG_DEVICE uint64_t load_acquire_sys(const uint64_t* p) { return arch::LoadAcquireSystem(p); }
  HG_DEVICE void store_release_sys(uint64_t* p, uint64_t v) { arch::StoreReleaseSystem(p, v); }
  HG_DEVICE void fence_sys() { arch::FenceSystem(); }
  HG_DEVICE uint64_t now_ns() { return arch::GlobalTimer(); }
  HG_DEVICE void pause() { arch::NanoSleep(kPollNanoseconds); }
};

// Grid: blocks of warps; a warp takes one (row, head) after the other. Every thread fences what it stored; the block
// that finishes last publishes, ordered behind the others by the counter between two fences.
HG_KERNEL HG_LAUNCH_BOUNDS(kPublishThreads) PublishKernel(PublishParams p) {
  JointOps ops;
  const uint64_t first = p.table.plan->first_sequence;
  if (first >= kJointFirstSequence) {
    unsigned char* const slot = JointSlot(p.table, first + p.call);
    const int units = p.head_size * 2 / 16;
    const int warps = p.num_blocks * (kPublishThreads / arch::kWarpSize);
    for (const PublishPart& part : p.parts) {
      for (int64_t pair = arch::BlockIndex().x * (kPublishThreads / arch::kWarpSize) + arch::WarpIndex();
           pair < static_cast<int64_t>(part.num_rows) * part.heads; pair += warps) {
        const int64_t token = part.tokens[pair / part.heads], head = pair % part.heads;
        if (token < 0) continue;
        const char* const from = static_cast<const char*>(part.from.data) +
                                 (token * part.from.token_stride + head * part.from.head_stride) * 2;
        unsigned char* const to = slot + part.offset + pair * p.head_size * 2;
        for (int i = arch::LaneIndex(); i < units; i += arch::kWarpSize) {
          arch::StoreOnce16(to + 16 * i, arch::LoadOnce16(from + 16 * i));
        }
      }
    }
  }
  ops.fence_sys();
  arch::SyncThreads();
  if (arch::ThreadIndex() != 0) return;
  if (arch::AtomicAdd(p.blocks_done, 1) + 1 != static_cast<uint32_t>(p.num_blocks)) return;
  *p.blocks_done = 0;
  ops.fence_sys();
  JointPublish(ops, p.table, p.call);
}

// One warp, of which one thread polls.
HG_KERNEL HG_LAUNCH_BOUNDS(arch::kWarpSize) AwaitKernel(AwaitParams p) {
  if (arch::ThreadIndex() != 0) return;
  JointOps ops;
  if (JointWait(ops, p.table, p.call) != JointOutcome::kAnswered) arch::Trap("the joint has no answer");
}

// Blocks that copy in parallel: one warp has one (row, head), up to what saturates a link.
inline int PublishBlocks(const PublishParams& p) {
  constexpr int kMostBlocks = 32;
  int64_t pairs = 0;
  for (const PublishPart& part : p.parts) pairs += static_cast<int64_t>(part.num_rows) * part.heads;
  const int64_t warps = kPublishThreads / arch::kWarpSize;
  const int64_t blocks = (pairs + warps - 1) / warps;
  return static_cast<int>(blocks < 1 ? 1 : blocks > kMostBlocks ? kMostBlocks : blocks);
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_JOINT_CUH_
