// A step's streamed host pages, which the device attends from a ring of staging pages in its own memory: cut into
// rounds, each of which fills the ring anew.
#ifndef BACKEND_STREAMED_ROUNDS_H_
#define BACKEND_STREAMED_ROUNDS_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "backend/step_plan.h"
#include "kernels/cuda/params.h"

namespace hybridgen {

// Jobs that fill the ring for the layers of one window.
struct RingJobs {
  Range old_pages;  // hold tokens of earlier steps
  Range new_pages;  // this step writes all of their tokens: a layer that brings K and V copies none of these
};

struct StreamedRound {
  // Of the lists of StreamedRounds.
  Range decode;
  Range prefill;
  Range merges;
  Range slots;              // of tokens first_token, first_token + 1, ...
  int32_t first_token = 0;  // row of the step's key and value
};

// Everything is the same for all layers but the jobs, of which a layer with a window needs fewer.
struct StreamedRounds {
  std::vector<StreamedRound> rounds;  // in the order in which they run
  std::vector<RingJobs> jobs_of;      // [round][window]
  // The strided side is relative to the ring, the packed side to the layer's place in a host page.
  std::vector<cuda::RepackJob> jobs;
  // Slots of the ring that this step's new tokens are written to, as the host page may not have them yet; -1: none.
  std::vector<int64_t> slots;
  std::vector<cuda::AttendItem> decode;
  std::vector<cuda::AttendItem> prefill;
  int32_t max_decode_tokens = 0;  // of an item
  int32_t max_prefill_tokens = 0;
  std::vector<cuda::MergeItem> merges;  // of a round's partials with those before, into the sequence's row

  void Clear();
};

struct RingLimits {
  int32_t pages = 0;  // that the ring holds, 1 or more
  // A host page is one job per head group: the groups' distances in a page of the ring and in host memory, bytes.
  int head_groups = 1;
  uint64_t group_bytes = 0;
  uint64_t head_group_stride = 0;
};

// Gives pages their places. A page that several sequences of a round read is copied once.
class RoundBuilder {
 public:
  struct Place {
    int32_t round = 0;
    int32_t index = 0;  // of the page in the ring
  };

  // Fills the rounds' jobs and slots of `out`, which is empty. The spans outlive the builder. `page_bytes`: of a page
  // of the ring.
  RoundBuilder(const RingLimits& limits, int page_tokens, uint64_t page_bytes, size_t num_windows,
               absl::Span<const WriteRun> host_writes, StreamedRounds& out);

  // `first_seen`: [window] the first position that the page's reader looks at.
  Place Add(const PlanPage& page, absl::Span<const int32_t> first_seen);
  // After the last page and the last item.
  void Finish();

 private:
  struct Entry {
    uint64_t k = 0;
    uint64_t v = 0;
    int32_t num_tokens = 0;
    bool is_new = false;
  };

  void EndRound();

  const RingLimits limits_;
  const int page_tokens_;
  const uint64_t page_bytes_;
  const size_t num_windows_;
  StreamedRounds& out_;
  absl::flat_hash_map<uint64_t, const WriteRun*> written_;  // by the page's K
  // Of the round under way.
  std::vector<Entry> entries_;                      // [page of the ring]
  std::vector<uint8_t> seen_;                       // [page of the ring][window]
  absl::flat_hash_map<uint64_t, int32_t> index_;    // of a page of the ring, by K
  std::vector<std::pair<int32_t, int64_t>> slots_;  // token, slot
};

}  // namespace hybridgen

#endif  // BACKEND_STREAMED_ROUNDS_H_
