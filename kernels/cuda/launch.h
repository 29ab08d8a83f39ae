// Launchers of the CUDA kernels: what backend/ calls. Needs no CUDA header. A launch checks its arguments, enqueues one
// kernel on the stream and returns; it neither allocates nor synchronises, so it may be captured in a graph.
#ifndef KERNELS_CUDA_LAUNCH_H_
#define KERNELS_CUDA_LAUNCH_H_

#include "kernels/cuda/params.h"

struct CUstream_st;  // of cudaStream_t

namespace hybridgen::cuda {

enum class LaunchStatus : uint8_t {
  kOk,
  kUnsupportedDType,     // of q and new keys: float16 and bfloat16; of pages: the same, or float8
  kUnsupportedHeadSize,  // 64, 96, 128, 256; data movement: a multiple of 8 (float8: 16) up to 512
  kUnsupportedPage,      // page_tokens is a multiple of 16 (writing: positive)
  kUnsupportedGroup,     // query heads are a multiple of KV heads
  kMisaligned,           // a pointer or stride is not a multiple of 16 bytes
  kTooLarge,             // more blocks than a grid has
  kDriver,               // the CUDA runtime refused the launch; its own error is kept for cudaGetLastError
};

// What the status means and which values are accepted.
const char* LaunchStatusText(LaunchStatus status);

// Loads every kernel on the current device. Call it once per device before the first launch: loading on demand may wait
// for work that is on the device, and the larger kernels' shared memory must be asked for.
LaunchStatus LoadKernels();

LaunchStatus LaunchWriteKv(const WriteKvParams& params, CUstream_st* stream);
// Attention over pages on the device: decode for a few query rows per item, prefill for many. The results are the same
// within rounding; prefill wants an item's pages in the order of their positions.
LaunchStatus LaunchDecode(const AttendParams& params, CUstream_st* stream);
LaunchStatus LaunchPrefill(const AttendParams& params, CUstream_st* stream);
LaunchStatus LaunchChosen(const ChosenParams& params, CUstream_st* stream);
LaunchStatus LaunchMerge(const MergeParams& params, CUstream_st* stream);
LaunchStatus LaunchPackPages(const RepackParams& params, CUstream_st* stream);
LaunchStatus LaunchUnpackPages(const RepackParams& params, CUstream_st* stream);

// The checks that the launchers make first.
LaunchStatus Check(const WriteKvParams& params);
LaunchStatus Check(const AttendParams& params);
LaunchStatus Check(const ChosenParams& params);
LaunchStatus Check(const MergeParams& params);
LaunchStatus Check(const RepackParams& params);

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_LAUNCH_H_
