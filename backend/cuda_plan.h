// A step's plan as the CUDA worker runs it: arrays for the device's kernels, and the CPU's part cut into the calls of
// the joint (docs/cuda_device.md).
#ifndef BACKEND_CUDA_PLAN_H_
#define BACKEND_CUDA_PLAN_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "backend/step_plan.h"
#include "backend/streamed_rounds.h"
#include "kernels/attention.h"
#include "kernels/cuda/params.h"
#include "memory/tier.h"

namespace hybridgen {

// Row numbers of partials: row t is that of query token t, rows from the number of tokens on are those of splits and of
// sequences with streamed pages, and from here on follow those of the CPU, of the call that is merged.
constexpr int32_t kFirstHostRow = 1 << 30;

// One call of the joint, in every layer the same.
struct CudaCall {
  Range query_rows;          // of CudaStep::query_tokens
  Range write_rows;          // of CudaStep::write_tokens
  Range host_writes;         // of CudaStep::host.host_writes
  Range cpu_items;           // of CudaStep::host.cpu_items
  Range cpu_merges;          // of CudaStep::host.merges: the CPU's splits into row r of the call, for query row r
  Range joins;               // of CudaStep::joins
  int32_t partial_rows = 0;  // that its items write
  std::vector<int32_t> cpu_group_ends;  // as StepPlan::cpu_group_ends, relative to cpu_items.begin
};

struct CudaPlanLimits {
  int page_tokens = 0;
  uint64_t page_bytes = 0;       // of a page of the engine's tensor
  std::vector<int32_t> windows;  // the distinct sliding windows of the layers; 0: none
  int32_t decode_tokens = 16;    // query tokens of an item up to which it is decode
  int32_t max_call_rows = 256;   // query rows, and written rows, of one call
  int head_groups = 1;
  int32_t rows = 0;  // of the step's tensors, at least: a graph's
  RingLimits ring;
};

struct CudaStep {
  int64_t step = 0;
  int32_t num_tokens = 0;  // rows of the step's tensors
  // The device's part. Pages lie relative to the layer's K and V.
  std::vector<int64_t> slots;  // [num_tokens], negative: not written; empty: nothing is written to the device
  std::vector<KvPage> pages;   // streamed ones relative to the ring
  // Items of few query rows, and of many.
  struct Items {
    std::vector<cuda::AttendItem> list;
    int32_t max_tokens = 0;  // of an item
  };
  Items decode;
  Items prefill;
  std::vector<int32_t> kv_begin;               // [window][num_tokens]
  std::vector<int32_t> kv_end;                 // [num_tokens]
  std::vector<int32_t> position;               // [num_tokens]
  std::vector<cuda::MergeItem> output_merges;  // splits of tokens that the CPU has no part in, into the output
  std::vector<cuda::MergeItem> row_merges;     // splits of the others, into the sequence's row, ahead of the rounds
  std::vector<cuda::MergeItem> joins;          // of that row and the CPU's, into the output; by call
  int32_t partial_rows = 0;                    // below kFirstHostRow
  StreamedRounds streamed;
  // [window][tier] K tokens and V tokens that the device reads, summed over items
  std::vector<std::array<int64_t, kNumTiers>> read_tokens;
  // The CPU's part.
  std::vector<int32_t> query_tokens;  // the step's token of each query row; negative: none
  std::vector<int32_t> write_tokens;  // and of each row of key and value
  std::vector<CudaCall> calls;        // empty: the CPU has no part
  // What the CPU worker runs, spans of it by call. Sequences are cut with the calls: their query_start is such that
  // token t of the sequence's query is row query_start + t of the call.
  StepPlan host;
  int32_t host_partial_rows = 0;  // the most of all calls

  void Clear();
};

// Fills `step`, whose memory is reused. The plan was split for a device worker.
void BuildCudaStep(const StepPlan& plan, const CudaPlanLimits& limits, CudaStep& step);

}  // namespace hybridgen

#endif  // BACKEND_CUDA_PLAN_H_
