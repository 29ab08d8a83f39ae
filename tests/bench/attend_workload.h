// Work for the attention and selection kernels: sequences in shuffled pages over one big piece of memory.
#ifndef TESTS_BENCH_ATTEND_WORKLOAD_H_
#define TESTS_BENCH_ATTEND_WORKLOAD_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/kernel_set.h"
#include "tests/oracle/attention_oracle.h"

namespace hybridgen {

// Anonymous memory on huge pages where the system grants them, filled with a repeated pattern.
class KvMemory {
 public:
  // Errors: ResourceExhausted when the system refuses.
  static absl::StatusOr<std::unique_ptr<KvMemory>> Create(size_t bytes);
  ~KvMemory();
  // Does nothing if what it holds has this name already; else repeats the bytes that `make` gives.
  void Fill(const std::string& name, const std::function<std::vector<char>()>& make);
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  KvMemory() = default;
  void* mapping_ = nullptr;
  size_t mapped_ = 0;
  char* data_ = nullptr;  // aligned to a huge page
  size_t bytes_ = 0;
  std::string filled_;  // name
};

// What is measured: `decode` reads all of the memory in turn, `cache` one short sequence again and again (arithmetic
// without memory), `prefill` tiles of many query tokens. Of the K that decode reads, `stored` stores the logits and
// `summary` folds them; `digests` bounds them from page digests, whose boxes are whatever the memory holds.
enum class AttendKind : uint8_t { kDecode, kCache, kPrefill, kStored, kSummary, kDigests };

struct AttendConfig {
  KernelSet kernels;
  AttendKind kind = AttendKind::kDecode;
  DType dtype = DType::kFloat32;  // of KV and queries; of KV alone where it is float8, queries are then bfloat16
  PageFormat format = PageFormat::kPackedV1;
  int page_tokens = 128;
  int group = 1;  // query heads per KV head
  int head_size = 128;
  int kv_heads = 8;

  std::string Name() const;  // "decode/avx512/bfloat16/packed/page128/group4/d128"
};

class AttendWorkload {
 public:
  AttendWorkload(const AttendConfig& config, KvMemory* memory, int threads);
  AttendWorkload(const AttendWorkload&) = delete;
  AttendWorkload& operator=(const AttendWorkload&) = delete;

  // Attends one item: all KV heads of a range of pages, a few pages at a time, as the CPU worker does. Items beyond the
  // last one begin anew. Returns the bytes read, without padding. Threads may run items side by side.
  int64_t RunItem(int thread, int64_t item);
  // Item 0 against the oracle. Errors: DataLoss naming the first element that is wrong.
  absl::Status Verify();

  double largest_error() const { return largest_error_; }  // that Verify saw, of any element of the output
  int64_t run_bytes() const;                               // contiguous in memory per page, role and KV head
  double flops_per_byte() const;
  double tokens_per_byte() const;  // tokens of a sequence that one byte stands for

 private:
  struct Thread {
    std::vector<float> max, sum, acc, o;  // of all KV heads
    std::vector<uint32_t> bins;
    std::vector<float> logits;  // of all KV heads, or the bounds of the pages
    std::vector<char> scratch;
  };

  int64_t token_bytes() const;  // of K and V, or of K, in all KV heads
  int64_t role_bytes() const;   // of one token, KV head and role
  int rows() const { return num_tokens_ * config_.group; }
  int slots() const;                                 // logits or bounds of a row of an item
  float* Logits(Thread& thread, int kv_head) const;  // [row][slots()]
  void RunPages(Thread& thread, const KvPage* pages, int first, int count, int kv_head, int next_kv_head);
  OracleInput Problem(int kv_head) const;  // item 0
  absl::Status VerifyRow(int kv_head, int row);
  absl::Status VerifyBounds(const OracleInput& in, int kv_head, int row);
  QueryTile Tile(int kv_head) const;
  RowState Rows(Thread& thread, int kv_head) const;
  float ElementOf(KvRole role, int position, int kv_head, int dim) const;
  std::vector<char> RandomInt8Pages() const;

  AttendConfig config_;
  PageGeometry geometry_;
  int num_tokens_;      // query tokens of a tile
  int pages_per_item_;  // consecutive pages of one sequence
  int64_t num_items_;
  std::vector<KvPage> pages_;
  std::vector<char> q_;  // [kv_head][token][group][head_size]
  std::vector<int32_t> kv_begin_, kv_end_;
  std::vector<Thread> threads_;
  double largest_error_ = 0;
};

}  // namespace hybridgen

#endif  // TESTS_BENCH_ATTEND_WORKLOAD_H_
