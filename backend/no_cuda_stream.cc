// A build without CUDA.
#include "backend/cuda_stream.h"

namespace hybridgen {

absl::StatusOr<std::shared_ptr<DeviceStream>> CreateCudaStream() {
  return absl::UnimplementedError(
      "create backend: device_kind cuda is not part of this build, which was made without nvcc; accepted: cpu, "
      "emulated");
}

}  // namespace hybridgen
