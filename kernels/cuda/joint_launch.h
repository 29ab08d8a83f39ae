// Launchers of the joint's kernels (docs/joint.md); the contract of launch.h holds for them.
#ifndef KERNELS_CUDA_JOINT_LAUNCH_H_
#define KERNELS_CUDA_JOINT_LAUNCH_H_

#include "kernels/cuda/launch.h"
#include "kernels/joint_protocol.h"

namespace hybridgen::cuda {

// Rows that the CPU needs for a call: row i is that of token tokens[i] of `from`, and lands contiguous,
// [row][head][head_size], `offset` bytes behind the begin of the call's slot. A negative token has no row.
struct PublishPart {
  Rows from;
  const int32_t* tokens = nullptr;  // [num_rows], device memory
  int num_rows = 0;
  int heads = 0;
  uint64_t offset = 0;  // bytes, a multiple of 16
};

struct PublishParams {
  JointTable table;
  uint32_t call = 0;     // in its step
  PublishPart parts[3];  // query, and key and value of the tokens that the CPU writes
  int head_size = 0;     // 16-bit elements, a multiple of 8
  // Device memory, one word per stream, zero before and after.
  uint32_t* blocks_done = nullptr;
  int num_blocks = 0;  // of the grid; the launcher sets it
};

struct AwaitParams {
  JointTable table;
  uint32_t call = 0;
};

LaunchStatus Check(const PublishParams& params);

// Loads the joint's kernels, as LoadKernels does the others.
LaunchStatus LoadJointKernels();

LaunchStatus LaunchPublish(const PublishParams& params, CUstream_st* stream);
// A stream on which the wait fails is dead: nothing that is queued behind runs.
LaunchStatus LaunchAwait(const AwaitParams& params, CUstream_st* stream);

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_JOINT_LAUNCH_H_
