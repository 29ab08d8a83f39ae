#include "backend/cuda_copies.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace hybridgen {

// Addresses of the task's block, by layer and head group.
void CudaCopies::AddJobs(const CopyTask& task, std::vector<cuda::RepackJob>& jobs) const {
  for (const LayerPages& layer : layers_) {
    for (int group = 0; group < layer.head_groups; ++group) {
      const uint64_t head_bytes = static_cast<uint64_t>(group) * layer.host.kv_heads *
                                  static_cast<uint64_t>(layer.pool.k_head_stride) * DTypeSize(layer.pool.dtype);
      const uint64_t pool = static_cast<uint64_t>(task.device_page) * layer.pool_page_bytes + head_bytes;
      const uint64_t host = group * layer.head_group_stride;
      jobs.push_back({layer.pool_k + pool, layer.pool_v + pool,
                      host_->Address(PageRole::kKey, task.k) + layer.host_k + host,
                      host_->Address(PageRole::kValue, task.v) + layer.host_v + host, task.num_tokens});
    }
  }
}

absl::Status CudaCopies::Enqueue(std::vector<CopyTask> tasks) {
  std::vector<cuda::RepackJob> jobs;
  for (const CopyTask& task : tasks) {
    if (task.kind == CopyTask::Kind::kPublish) AddJobs(task, jobs);
  }
  const size_t packed = jobs.size();
  for (const CopyTask& task : tasks) {
    if (task.kind == CopyTask::Kind::kRecall) AddJobs(task, jobs);
    if (task.kind == CopyTask::Kind::kMigrate) {
      return absl::InternalError(absl::StrCat("cuda device: block ", task.block,
                                              " is to migrate between host tiers; accepted: publishes and recalls"));
    }
  }
  Batch batch;
  batch.tasks = std::move(tasks);
  if (!spare_.empty()) {
    batch.jobs = std::move(spare_.back());
    spare_.pop_back();
  } else {
    batch.jobs = std::make_unique<DeviceTable<cuda::RepackJob>>();
  }
  if (absl::Status status = Launch(jobs, packed, batch); !status.ok()) return status;
  in_flight_.push_back(std::move(batch));
  return absl::OkStatus();
}

absl::Status CudaCopies::Launch(const std::vector<cuda::RepackJob>& jobs, size_t packed, Batch& batch) {
  if (!batch.jobs->Holds(jobs.size())) {
    if (absl::Status status = batch.jobs->Grow(*stream_, jobs.size()); !status.ok()) return status;
  }
  if (absl::Status status = batch.jobs->Upload(*stream_, jobs, 0); !status.ok()) return status;
  cuda::RepackParams params;
  params.geometry = layers_[0].pool;
  params.geometry.kv_heads = layers_[0].host.kv_heads;
  if (packed > 0) {
    params.jobs = batch.jobs->data();
    params.num_jobs = static_cast<int>(packed);
    if (absl::Status status = stream_->PackPages(params); !status.ok()) return status;
  }
  if (packed < jobs.size()) {
    params.jobs = batch.jobs->data() + packed;
    params.num_jobs = static_cast<int>(jobs.size() - packed);
    if (absl::Status status = stream_->UnpackPages(params); !status.ok()) return status;
  }
  absl::StatusOr<StreamMark> mark = stream_->Mark();
  if (!mark.ok()) return mark.status();
  batch.mark = *mark;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<CopyTask>> CudaCopies::TakeFinished() {
  std::vector<CopyTask> finished;
  while (!in_flight_.empty()) {
    absl::StatusOr<bool> passed = stream_->Passed(in_flight_.front().mark);
    if (!passed.ok()) return passed.status();
    if (!*passed) break;
    Batch& batch = in_flight_.front();
    finished.insert(finished.end(), batch.tasks.begin(), batch.tasks.end());
    spare_.push_back(std::move(batch.jobs));
    in_flight_.pop_front();
  }
  return finished;
}

}  // namespace hybridgen
