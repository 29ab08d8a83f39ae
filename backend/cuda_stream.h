// A stream of the CUDA runtime. Compiled against it where nvcc is; elsewhere creation says that the build has none.
#ifndef BACKEND_CUDA_STREAM_H_
#define BACKEND_CUDA_STREAM_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "backend/device_stream.h"

namespace hybridgen {

// Whether a stream can be had, as far as can be told without initialising CUDA, which a process that forks must not do.
// Errors: Unimplemented in a build without CUDA; Unavailable without a driver, or with one that is too old.
absl::Status CudaStatus();

// On the device of this ordinal, with all kernels loaded.
// Errors: those of CudaStatus; Unavailable, with the runtime's text, without such a device; FailedPrecondition for a
// device that the kernels do not run on.
absl::StatusOr<std::shared_ptr<DeviceStream>> CreateCudaStream(int device);

}  // namespace hybridgen

#endif  // BACKEND_CUDA_STREAM_H_
