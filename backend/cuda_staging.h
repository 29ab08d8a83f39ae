// Publishes and recalls of host pages that the device does not reach, because they could not be registered with it: by
// way of pinned memory, which a host thread fills or empties (docs/cuda_device.md).
#ifndef BACKEND_CUDA_STAGING_H_
#define BACKEND_CUDA_STAGING_H_

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "backend/device_stream.h"
#include "backend/host_copies.h"
#include "backend/repack_queue.h"

namespace hybridgen {

struct StagedJob {
  int64_t batch = 0;      // named by the caller
  bool publishes = true;  // device to host; else a recall
  cuda::RepackJob job;
  bool stage_k = false;  // the device does not reach the page; at least one of the two
  bool stage_v = false;
};

// Driven by the planning thread: nothing moves on but in Pump. A publish is packed into pinned memory in the stream's
// order, then copied to its page; a recall is copied from its page, then queued for unpacking. What does not fit the
// pinned memory waits for room.
class CudaStaging {
 public:
  // `page_bytes`: of the packed page of a job, one role. `stream` and `queue` outlive the object.
  CudaStaging(DeviceStream* stream, RepackQueue* queue, size_t page_bytes)
      : stream_(stream), queue_(queue), page_bytes_(page_bytes) {}
  // Takes pinned memory of so many bytes, and of two pages at least. Errors: ResourceExhausted.
  absl::Status Start(int64_t bytes);

  void Add(const StagedJob& job) { waiting_.push_back(job); }
  absl::Status Pump();
  // Whether a job of the batch, or of one before it, is not done.
  bool Holds(int64_t batch) const;
  // Until nothing is left. Errors: DeadlineExceeded.
  absl::Status Drain(absl::Duration timeout);

  double host_seconds() const { return copies_.seconds(); }

 private:
  // Jobs that go through together.
  struct Chunk {
    int64_t batch = 0;
    bool publishes = true;
    bool on_device = false;  // else with the host thread
    std::vector<cuda::RepackJob> jobs;
    std::vector<HostCopy> copies;
    std::vector<uint64_t> pages;  // of the pinned memory
    RepackQueue::Entry entry;     // on the device
    int64_t number = 0;           // of the host copies
  };

  uint64_t Stage(uint64_t page, Chunk& chunk);
  Chunk NextChunk();
  absl::Status Begin(Chunk& chunk, bool on_device);
  absl::StatusOr<bool> Advance(Chunk& chunk);

  DeviceStream* const stream_;
  RepackQueue* const queue_;
  const size_t page_bytes_;
  std::shared_ptr<void> pinned_;
  std::vector<uint64_t> free_;  // pages of it, addresses
  std::deque<StagedJob> waiting_;
  std::list<Chunk> chunks_;
  HostCopies copies_;  // ends first
};

}  // namespace hybridgen

#endif  // BACKEND_CUDA_STAGING_H_
