#include "backend/cuda_staging.h"

#include <algorithm>
#include <utility>

namespace hybridgen {
namespace {

constexpr size_t kPagesOfAJob = 2;  // at most: K and V

}  // namespace

absl::Status CudaStaging::Start(int64_t bytes) {
  const size_t pages = std::max(kPagesOfAJob, static_cast<size_t>(bytes) / page_bytes_);
  absl::StatusOr<std::shared_ptr<void>> pinned = stream_->AllocatePinned(pages * page_bytes_);
  if (!pinned.ok()) return pinned.status();
  pinned_ = *std::move(pinned);
  for (size_t i = 0; i < pages; ++i) free_.push_back(reinterpret_cast<uint64_t>(pinned_.get()) + i * page_bytes_);
  return absl::OkStatus();
}

// The page's place in pinned memory.
uint64_t CudaStaging::Stage(uint64_t page, Chunk& chunk) {
  const uint64_t staged = free_.back();
  free_.pop_back();
  chunk.pages.push_back(staged);
  void* const host = reinterpret_cast<void*>(page);
  void* const pinned = reinterpret_cast<void*>(staged);
  chunk.copies.push_back(chunk.publishes ? HostCopy{host, pinned, page_bytes_} : HostCopy{pinned, host, page_bytes_});
  return staged;
}

// Jobs of one batch and direction, from the front, for which there is room.
CudaStaging::Chunk CudaStaging::NextChunk() {
  Chunk chunk;
  chunk.batch = waiting_.front().batch;
  chunk.publishes = waiting_.front().publishes;
  while (!waiting_.empty() && free_.size() >= kPagesOfAJob) {
    const StagedJob& next = waiting_.front();
    if (next.batch != chunk.batch || next.publishes != chunk.publishes) break;
    chunk.jobs.push_back(next.job);
    if (next.stage_k) chunk.jobs.back().packed_k = Stage(next.job.packed_k, chunk);
    if (next.stage_v) chunk.jobs.back().packed_v = Stage(next.job.packed_v, chunk);
    waiting_.pop_front();
  }
  return chunk;
}

absl::Status CudaStaging::Begin(Chunk& chunk, bool on_device) {
  chunk.on_device = on_device;
  if (!on_device) {
    absl::StatusOr<int64_t> number = copies_.Start(chunk.copies);
    if (number.ok()) chunk.number = *number;
    return number.status();
  }
  absl::StatusOr<RepackQueue::Entry> entry = queue_->Queue(chunk.jobs, chunk.publishes ? chunk.jobs.size() : 0);
  if (entry.ok()) chunk.entry = *std::move(entry);
  return entry.status();
}

// Whether the chunk is through.
absl::StatusOr<bool> CudaStaging::Advance(Chunk& chunk) {
  if (chunk.on_device) {
    absl::StatusOr<bool> passed = queue_->Finish(chunk.entry);
    if (!passed.ok() || !*passed) return passed;
  } else if (copies_.done() < chunk.number) {
    return false;
  }
  // A publish begins on the device, a recall with the host.
  if (chunk.on_device != chunk.publishes) return true;
  if (absl::Status status = Begin(chunk, !chunk.on_device); !status.ok()) return status;
  return false;
}

absl::Status CudaStaging::Pump() {
  for (auto chunk = chunks_.begin(); chunk != chunks_.end();) {
    absl::StatusOr<bool> through = Advance(*chunk);
    if (!through.ok()) return through.status();
    if (!*through) {
      ++chunk;
      continue;
    }
    free_.insert(free_.end(), chunk->pages.begin(), chunk->pages.end());
    chunk = chunks_.erase(chunk);
  }
  while (!waiting_.empty() && free_.size() >= kPagesOfAJob) {
    chunks_.push_back(NextChunk());
    if (absl::Status status = Begin(chunks_.back(), chunks_.back().publishes); !status.ok()) return status;
  }
  return absl::OkStatus();
}

bool CudaStaging::Holds(int64_t batch) const {
  if (!waiting_.empty() && waiting_.front().batch <= batch) return true;
  return std::any_of(chunks_.begin(), chunks_.end(), [batch](const Chunk& chunk) { return chunk.batch <= batch; });
}

absl::Status CudaStaging::Drain(absl::Duration timeout) {
  for (;;) {
    if (absl::Status status = Pump(); !status.ok()) return status;
    if (chunks_.empty()) return absl::OkStatus();  // and nothing waits, as all pages are free
    const Chunk& first = chunks_.front();
    absl::Status status =
        first.on_device ? stream_->Wait(first.entry.mark, timeout) : copies_.Wait(first.number, timeout);
    if (!status.ok()) return status;
  }
}

}  // namespace hybridgen
