#include "backend/repack_queue.h"

#include <utility>

namespace hybridgen {

absl::Status RepackQueue::Start() {
  absl::StatusOr<int> stamp = stream_->MakeStamps(2);
  if (stamp.ok()) stamp_ = *stamp;
  return stamp.status();
}

absl::StatusOr<RepackQueue::Entry> RepackQueue::Queue(const std::vector<cuda::RepackJob>& jobs, size_t packed) {
  Entry entry;
  entry.num_jobs = static_cast<int64_t>(jobs.size());
  entry.timed = !std::exchange(timing_, true);
  if (!spare_.empty()) {
    entry.jobs = std::move(spare_.back());
    spare_.pop_back();
  } else {
    entry.jobs = std::make_unique<DeviceTable<cuda::RepackJob>>();
  }
  if (!entry.jobs->Holds(jobs.size())) {
    if (absl::Status status = entry.jobs->Grow(*stream_, jobs.size()); !status.ok()) return status;
  }
  if (absl::Status status = entry.jobs->Upload(*stream_, jobs, 0); !status.ok()) return status;
  if (entry.timed) {
    if (absl::Status status = stream_->Stamp(stamp_); !status.ok()) return status;
  }
  cuda::RepackParams params;
  params.geometry = geometry_;
  if (packed > 0) {
    params.jobs = entry.jobs->data();
    params.num_jobs = static_cast<int>(packed);
    if (absl::Status status = stream_->PackPages(params); !status.ok()) return status;
  }
  if (packed < jobs.size()) {
    params.jobs = entry.jobs->data() + packed;
    params.num_jobs = static_cast<int>(jobs.size() - packed);
    if (absl::Status status = stream_->UnpackPages(params); !status.ok()) return status;
  }
  if (entry.timed) {
    if (absl::Status status = stream_->Stamp(stamp_ + 1); !status.ok()) return status;
  }
  absl::StatusOr<StreamMark> mark = stream_->Mark();
  if (!mark.ok()) return mark.status();
  entry.mark = *mark;
  return entry;
}

absl::StatusOr<bool> RepackQueue::Finish(Entry& entry) {
  absl::StatusOr<bool> passed = stream_->Passed(entry.mark);
  if (!passed.ok() || !*passed) return passed;
  all_jobs_ += entry.num_jobs;
  if (entry.timed) {
    absl::StatusOr<double> seconds = stream_->SecondsBetween(stamp_, stamp_ + 1);
    if (!seconds.ok()) return seconds.status();
    timed_jobs_ += entry.num_jobs;
    timed_seconds_ += *seconds;
    timing_ = false;
  }
  spare_.push_back(std::move(entry.jobs));
  return true;
}

}  // namespace hybridgen
