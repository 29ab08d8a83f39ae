// Graphs that hold a step's layers on the CUDA device: the counts that their launches have, and steps padded to them
// (docs/cuda_device.md).
#ifndef BACKEND_CUDA_GRAPHS_H_
#define BACKEND_CUDA_GRAPHS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "backend/cuda_host_part.h"
#include "backend/cuda_plan.h"
#include "backend/layer_call.h"

namespace hybridgen {

struct CudaGraphLimits {
  int32_t max_tokens = 0;    // of a graph; 0: none are captured
  int64_t max_pages = 0;     // on the device, of a step that is replayed
  int32_t query_tokens = 1;  // of a sequence, at most: what decode takes
  int device_workers = 0;    // SplitOptions::device_workers of the plans
  size_t num_windows = 0;    // of CudaPlanLimits
  int num_layers = 0;
  bool joined = false;  // the CPU may have a part
};

struct CudaGraph {
  GraphShape shape;
  // A step whose lists are as long as those of any step may be: what the graph's layers launch.
  CudaStep launches;
  std::vector<HostLayer> layers;  // captured so far, in the order of the step
};

class CudaGraphs {
 public:
  explicit CudaGraphs(const CudaGraphLimits& limits) : limits_(limits) {}

  // For a capture: the graph of this shape, which stays where it is. Errors: InvalidArgument with what is accepted.
  absl::StatusOr<CudaGraph*> Make(const GraphShape& shape);
  // For a replay. Errors: FailedPrecondition unless all layers of the shape's graph have been captured.
  absl::StatusOr<CudaGraph*> Find(const GraphShape& shape);
  // Pads a step that was built with as many rows as the graph has tokens, with entries that do nothing. Errors:
  // FailedPrecondition, naming what does not fit; the step is then of no use.
  absl::Status Pad(const CudaGraph& graph, CudaStep& step) const;
  // A step as large as one of any graph.
  CudaStep Largest() const;

 private:
  CudaStep LaunchesOf(const GraphShape& shape) const;

  const CudaGraphLimits limits_;
  std::map<std::pair<int32_t, int32_t>, CudaGraph> graphs_;  // by tokens and query tokens
};

}  // namespace hybridgen

#endif  // BACKEND_CUDA_GRAPHS_H_
