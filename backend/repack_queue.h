// Queues kernels that pack or unpack pages, and keeps their jobs until these have run.
#ifndef BACKEND_REPACK_QUEUE_H_
#define BACKEND_REPACK_QUEUE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "backend/device_stream.h"
#include "backend/device_table.h"

namespace hybridgen {

class RepackQueue {
 public:
  // What was queued together. Its jobs' memory is the queue's again when it is finished.
  struct Entry {
    StreamMark mark = 0;
    int64_t num_jobs = 0;
    bool timed = false;
    std::unique_ptr<DeviceTable<cuda::RepackJob>> jobs;
  };

  // `geometry`: of the strided side of all jobs. `stream` outlives the queue.
  RepackQueue(DeviceStream* stream, const PageGeometry& geometry) : stream_(stream), geometry_(geometry) {}
  absl::Status Start();

  // Packs the first `packed` jobs and unpacks the others. May allocate.
  absl::StatusOr<Entry> Queue(const std::vector<cuda::RepackJob>& jobs, size_t packed);
  // Whether the entry has run; each is finished once.
  absl::StatusOr<bool> Finish(Entry& entry);

  // That the device took for all jobs, by the times of some entries.
  double seconds() const { return timed_jobs_ == 0 ? 0 : timed_seconds_ * all_jobs_ / timed_jobs_; }

 private:
  DeviceStream* const stream_;
  const PageGeometry geometry_;
  std::vector<std::unique_ptr<DeviceTable<cuda::RepackJob>>> spare_;  // of finished entries
  int stamp_ = 0;                                                     // of the begin, followed by that of the end
  bool timing_ = false;                                               // an entry under way has the stamps
  double all_jobs_ = 0;
  double timed_jobs_ = 0;
  double timed_seconds_ = 0;
};

}  // namespace hybridgen

#endif  // BACKEND_REPACK_QUEUE_H_
