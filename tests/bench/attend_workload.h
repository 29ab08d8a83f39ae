// Decode and prefill work for the attention kernels: sequences in shuffled pages over one big piece of memory.
#ifndef TESTS_BENCH_ATTEND_WORKLOAD_H_
#define TESTS_BENCH_ATTEND_WORKLOAD_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/kernel_set.h"

namespace hybridgen {

// Anonymous memory on huge pages where the system grants them, filled with a repeated pattern of random elements.
class KvMemory {
 public:
  // Errors: ResourceExhausted when the system refuses.
  static absl::StatusOr<std::unique_ptr<KvMemory>> Create(size_t bytes);
  ~KvMemory();
  void Fill(DType dtype);  // does nothing if it holds this type already
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  KvMemory() = default;
  void* mapping_ = nullptr;
  size_t mapped_ = 0;
  char* data_ = nullptr;  // aligned to a huge page
  size_t bytes_ = 0;
  int filled_ = -1;  // DType
};

// What is measured: `decode` reads all of the memory in turn, `cache` one short sequence again and again (arithmetic
// without memory), `prefill` tiles of many query tokens.
enum class AttendKind : uint8_t { kDecode, kCache, kPrefill };

struct AttendConfig {
  KernelSet kernels;
  AttendKind kind = AttendKind::kDecode;
  DType dtype = DType::kFloat32;  // of KV and queries
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
  // last one begin anew. Returns the bytes of K and V. Threads may run items side by side.
  int64_t RunItem(int thread, int64_t item);
  // Item 0 against the oracle. Errors: DataLoss naming the first element that is wrong.
  absl::Status Verify();

  int64_t run_bytes() const;  // contiguous in memory per page, role and KV head
  double flops_per_byte() const;

 private:
  struct Thread {
    std::vector<float> max, sum, acc, o;  // of all KV heads
    std::vector<char> scratch;
  };

  QueryTile Tile(int kv_head) const;
  RowState Rows(Thread& thread, int kv_head) const;
  float ElementOf(KvRole role, int position, int kv_head, int dim) const;

  AttendConfig config_;
  PageGeometry geometry_;
  int num_tokens_;      // query tokens of a tile
  int pages_per_item_;  // consecutive pages of one sequence
  int64_t num_items_;
  std::vector<KvPage> pages_;
  std::vector<char> q_;  // [kv_head][token][group][head_size]
  std::vector<int32_t> kv_begin_, kv_end_;
  std::vector<Thread> threads_;
};

}  // namespace hybridgen

#endif  // TESTS_BENCH_ATTEND_WORKLOAD_H_
