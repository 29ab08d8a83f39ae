// A build without CUDA.
#include "backend/cuda_stream.h"

namespace hybridgen {

absl::Status CudaStatus() {
  return absl::UnimplementedError(
      "device kind cuda: this build, made without nvcc, has no CUDA code; accepted on the CPU: cpu, emulated");
}

absl::StatusOr<std::shared_ptr<DeviceStream>> CreateCudaStream(int /*device*/) { return CudaStatus(); }

}  // namespace hybridgen
