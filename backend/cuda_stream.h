// A stream of the CUDA runtime. Compiled against it where nvcc is; elsewhere creation says that the build has none.
#ifndef BACKEND_CUDA_STREAM_H_
#define BACKEND_CUDA_STREAM_H_

#include <memory>

#include "absl/status/statusor.h"
#include "backend/device_stream.h"

namespace hybridgen {

// On the calling thread's current device, with all kernels loaded.
// Errors: Unimplemented in a build without CUDA; Unavailable, with the runtime's text, without a driver or a device;
// FailedPrecondition for a device that the kernels do not run on.
absl::StatusOr<std::shared_ptr<DeviceStream>> CreateCudaStream();

}  // namespace hybridgen

#endif  // BACKEND_CUDA_STREAM_H_
