// An accelerator as the device worker sees it: its memory, and one queue of work that it does in order. The CUDA
// runtime is one implementation; tests run the same kernels on the host.
#ifndef BACKEND_DEVICE_STREAM_H_
#define BACKEND_DEVICE_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/cuda/joint_launch.h"
#include "kernels/cuda/launch.h"
#include "memory/device_registration.h"

namespace hybridgen {

// A place in the queue. Places are numbered from 1 in the order of Mark; 0 is before everything.
using StreamMark = int64_t;

// Queueing neither allocates nor waits for the device. One thread drives a stream. An error of the work itself is
// final: Passed, Wait and everything queued later return it.
class DeviceStream {
 public:
  virtual ~DeviceStream() = default;

  virtual const char* name() const = 0;    // of the device, for the log line
  virtual int num_processors() const = 0;  // thread blocks that run side by side, at least
  // The engine's queue, on which work goes from now on, behind all that was queued before. Null: the device's default.
  virtual absl::Status SwitchTo(CUstream_st* queue) = 0;
  // Whether the engine captures this queue in a graph.
  virtual absl::StatusOr<bool> Capturing(CUstream_st* queue) = 0;
  // Between the two, kernels go into the graph of a queue that is captured, and nothing but kernels may be queued.
  virtual void BeginCapture(CUstream_st* queue) = 0;
  virtual void EndCapture() = 0;

  // Memory at fixed addresses, aligned to 256 bytes, content undefined. The stream outlives it.
  virtual absl::StatusOr<std::shared_ptr<void>> AllocateDevice(size_t bytes) = 0;
  // Host memory near the device, which maps it at the same address.
  virtual absl::StatusOr<std::shared_ptr<void>> AllocatePinned(size_t bytes) = 0;
  // Maps memory of ours for the device, at the same address.
  virtual DeviceRegistrar& registrar() = 0;

  // Queued copies between device memory and memory of AllocatePinned, which keeps its content until they are passed.
  virtual absl::Status CopyToDevice(void* to, const void* from, size_t bytes) = 0;
  virtual absl::Status CopyToHost(void* to, const void* from, size_t bytes) = 0;
  virtual absl::Status Zero(void* device, size_t bytes) = 0;

  // Queued kernels. Errors: InvalidArgument with what the kernel accepts.
  virtual absl::Status WriteKv(const cuda::WriteKvParams& params) = 0;
  virtual absl::Status Decode(const cuda::AttendParams& params) = 0;
  virtual absl::Status Prefill(const cuda::AttendParams& params) = 0;
  virtual absl::Status Merge(const cuda::MergeParams& params) = 0;
  virtual absl::Status PackPages(const cuda::RepackParams& params) = 0;
  virtual absl::Status UnpackPages(const cuda::RepackParams& params) = 0;
  virtual absl::Status Publish(const cuda::PublishParams& params) = 0;
  virtual absl::Status Await(const cuda::AwaitParams& params) = 0;

  // Places whose time is kept, for statistics: makes `count` of them once, and returns the number of the first.
  virtual absl::StatusOr<int> MakeStamps(int count) = 0;
  // Queued. A stamp is queued again when its last time has been asked for.
  virtual absl::Status Stamp(int stamp) = 0;
  // Seconds between two stamps, both passed.
  virtual absl::StatusOr<double> SecondsBetween(int from, int to) = 0;

  virtual absl::StatusOr<StreamMark> Mark() = 0;
  // Whether everything queued before the mark is done.
  virtual absl::StatusOr<bool> Passed(StreamMark mark) = 0;
  // Errors: DeadlineExceeded; that of the work.
  virtual absl::Status Wait(StreamMark mark, absl::Duration timeout) = 0;
};

}  // namespace hybridgen

#endif  // BACKEND_DEVICE_STREAM_H_
