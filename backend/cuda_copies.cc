#include "backend/cuda_copies.h"

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

// One head group's part of a device page.
PageGeometry PoolGeometry(const LayerPages& layer) {
  PageGeometry geometry = layer.pool;
  geometry.kv_heads = layer.host.kv_heads;
  return geometry;
}

size_t HostPageBytes(const LayerPages& layer) {
  const PageGeometry& g = layer.host;
  return PackedPageBytes(g.dtype, g.kv_heads, g.page_tokens, g.head_size);
}

}  // namespace

CudaCopies::CudaCopies(DeviceStream* stream, const HostTiers* host, std::vector<LayerPages> layers)
    : host_(host), layers_(std::move(layers)), queue_(stream, PoolGeometry(layers_[0])) {
  if (host->pin().failures > 0) {
    staging_ = std::make_unique<CudaStaging>(stream, &queue_, HostPageBytes(layers_[0]));
  }
}

absl::Status CudaCopies::Start(int64_t staging_bytes) {
  if (absl::Status status = queue_.Start(); !status.ok()) return status;
  return staging_ == nullptr ? absl::OkStatus() : staging_->Start(staging_bytes);
}

// Addresses of the task's block, by layer and head group.
void CudaCopies::AddJobs(const CopyTask& task, std::vector<cuda::RepackJob>& direct) {
  for (const LayerPages& layer : layers_) {
    for (int group = 0; group < layer.head_groups; ++group) {
      const uint64_t head_bytes = static_cast<uint64_t>(group) * layer.host.kv_heads *
                                  static_cast<uint64_t>(layer.pool.k_head_stride) * DTypeSize(layer.pool.dtype);
      const uint64_t pool = static_cast<uint64_t>(task.device_page) * layer.pool_page_bytes + head_bytes;
      const cuda::RepackJob job = {layer.pool_k + pool, layer.pool_v + pool,
                                   host_->Address(PageRole::kKey, task.k) + layer.HostOffset(PageRole::kKey, group),
                                   host_->Address(PageRole::kValue, task.v) + layer.HostOffset(PageRole::kValue, group),
                                   task.num_tokens};
      StagedJob staged = {batches_, task.kind == CopyTask::Kind::kPublish, job};
      if (staging_ != nullptr) {
        staged.stage_k = !host_->Registered(job.packed_k, HostPageBytes(layer));
        staged.stage_v = !host_->Registered(job.packed_v, HostPageBytes(layer));
      }
      if (staged.stage_k || staged.stage_v) {
        staging_->Add(staged);
      } else {
        direct.push_back(job);
      }
    }
  }
}

absl::Status CudaCopies::Enqueue(std::vector<CopyTask> tasks) {
  for (const CopyTask& task : tasks) {
    if (task.kind == CopyTask::Kind::kMigrate) {
      return absl::InternalError(absl::StrCat("cuda device: block ", task.block,
                                              " is to migrate between host tiers; accepted: publishes and recalls"));
    }
  }
  ++batches_;
  std::vector<cuda::RepackJob> jobs;
  for (const CopyTask& task : tasks) {
    if (task.kind == CopyTask::Kind::kPublish) AddJobs(task, jobs);
  }
  const size_t packed = jobs.size();
  for (const CopyTask& task : tasks) {
    if (task.kind == CopyTask::Kind::kRecall) AddJobs(task, jobs);
  }
  Batch batch;
  batch.number = batches_;
  batch.tasks = std::move(tasks);
  if (!jobs.empty()) {
    absl::StatusOr<RepackQueue::Entry> direct = queue_.Queue(jobs, packed);
    if (!direct.ok()) return direct.status();
    batch.direct = *std::move(direct);
  }
  in_flight_.push_back(std::move(batch));
  return staging_ == nullptr ? absl::OkStatus() : staging_->Pump();
}

absl::StatusOr<std::vector<CopyTask>> CudaCopies::TakeFinished() {
  if (staging_ != nullptr) {
    if (absl::Status status = staging_->Pump(); !status.ok()) return status;
  }
  std::vector<CopyTask> finished;
  while (!in_flight_.empty()) {
    Batch& batch = in_flight_.front();
    if (batch.direct.has_value()) {
      absl::StatusOr<bool> passed = queue_.Finish(*batch.direct);
      if (!passed.ok()) return passed.status();
      if (!*passed) break;
      batch.direct.reset();
    }
    if (staging_ != nullptr && staging_->Holds(batch.number)) break;
    finished.insert(finished.end(), batch.tasks.begin(), batch.tasks.end());
    in_flight_.pop_front();
  }
  return finished;
}

absl::Status CudaCopies::DrainStaging(absl::Duration timeout) {
  return staging_ == nullptr ? absl::OkStatus() : staging_->Drain(timeout);
}

}  // namespace hybridgen
