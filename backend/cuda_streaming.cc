#include "backend/cuda_streaming.h"

namespace hybridgen {

absl::Status CudaStreaming::Reserve(int64_t pages, uint64_t page_bytes) {
  if (ring_ != nullptr) return absl::OkStatus();
  absl::StatusOr<std::shared_ptr<void>> ring = stream_->AllocateDevice(pages * page_bytes);
  if (!ring.ok()) return ring.status();
  ring_ = *std::move(ring);
  return absl::OkStatus();
}

absl::Status CudaStreaming::Unpack(const LayerCall& call, Range jobs) const {
  if (jobs.size() == 0) return absl::OkStatus();
  const LayerPages& pages = *call.pages;
  cuda::RepackParams p;
  p.jobs = memory_->tables().streamed.jobs.data() + jobs.begin;
  p.num_jobs = jobs.size();
  p.base.strided_k = reinterpret_cast<uint64_t>(ring_.get());
  p.base.strided_v = p.base.strided_k + (pages.pool_v - pages.pool_k);
  p.base.packed_k = pages.host_k;
  p.base.packed_v = pages.host_v;
  p.geometry = pages.pool;
  p.geometry.kv_heads = pages.host.kv_heads;
  return stream_->UnpackPages(p);
}

// The CPU worker writes this step's tokens to their host pages whenever it gets to it. So they come from the engine's
// tensors here too, over what was copied of a page that holds older tokens as well; the CPU does not touch the latter.
absl::Status CudaStreaming::Fill(const LayerCall& call, const cuda::WriteKvParams& write, const StreamedRound& round,
                                 const RingJobs& jobs) const {
  if (absl::Status status = Unpack(call, jobs.old_pages); !status.ok()) return status;
  if (call.key.data == nullptr) return Unpack(call, jobs.new_pages);  // what an earlier layer of the step has written
  if (round.slots.size() == 0) return absl::OkStatus();
  const auto from = [&](const cuda::Rows& rows) {
    const int64_t offset = round.first_token * rows.token_stride * static_cast<int64_t>(DTypeSize(write.dtype));
    return cuda::Rows{static_cast<char*>(rows.data) + offset, rows.token_stride, rows.head_stride};
  };
  cuda::WriteKvParams p = write;
  p.key = from(write.key);
  p.value = from(write.value);
  p.num_tokens = round.slots.size();
  p.slots = memory_->tables().streamed.slots.data() + round.slots.begin;
  p.k_cache = ring_.get();
  p.v_cache = static_cast<char*>(ring_.get()) + (call.pages->pool_v - call.pages->pool_k);
  return stream_->WriteKv(p);
}

absl::Status CudaStreaming::Run(const LayerCall& call, const StreamedRounds& streamed, int window,
                                LayerArguments arguments) const {
  auto& [write, attend, merge] = arguments;
  const auto& t = memory_->tables().streamed;
  const size_t windows = streamed.jobs_of.size() / streamed.rounds.size();
  attend.k_base = reinterpret_cast<uint64_t>(ring_.get());
  attend.v_base = attend.k_base + (call.pages->pool_v - call.pages->pool_k);
  for (size_t r = 0; r < streamed.rounds.size(); ++r) {
    const StreamedRound& round = streamed.rounds[r];
    if (absl::Status status = Fill(call, write, round, streamed.jobs_of[r * windows + window]); !status.ok())
      return status;
    if (round.decode.size() > 0) {
      attend.items = t.decode.data() + round.decode.begin;
      attend.num_items = round.decode.size();
      attend.max_item_tokens = streamed.max_decode_tokens;
      if (absl::Status status = stream_->Decode(attend); !status.ok()) return status;
    }
    if (round.prefill.size() > 0) {
      attend.items = t.prefill.data() + round.prefill.begin;
      attend.num_items = round.prefill.size();
      attend.max_item_tokens = streamed.max_prefill_tokens;
      if (absl::Status status = stream_->Prefill(attend); !status.ok()) return status;
    }
    if (round.merges.size() > 0) {
      merge.items = t.merges.data() + round.merges.begin;
      merge.num_items = round.merges.size();
      if (absl::Status status = stream_->Merge(merge); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace hybridgen
