// The CPU's part of a shared call, without Bazel's libraries: packed pages, threads, the CPU kernels, and a thread's
// loop that answers the joint's calls as docs/joint.md says (the backend's own dispatcher needs Abseil).
#ifndef TESTS_GPU_HOST_PART_H_
#define TESTS_GPU_HOST_PART_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "kernels/joint_protocol.h"
#include "kernels/kernel_set.h"

namespace hybridgen {

// The fastest kernels of this CPU for pages of this class. The table of kernels/kernel_table.h, which needs Abseil.
KernelSet KernelsOf(const PageGeometry& geometry);

// Threads that wait by spinning, so that a run begins within microseconds.
class SpinPool {
 public:
  explicit SpinPool(int threads);  // beside the caller's; 0: the caller alone
  ~SpinPool();
  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }
  // Calls `run` once for every i in [0, count), by all threads.
  void ParallelFor(int count, const std::function<void(int)>& run);

 private:
  void Loop();
  void Take();

  std::vector<std::thread> threads_;
  const std::function<void(int)>* run_ = nullptr;
  int count_ = 0;
  std::atomic<int> next_{0};
  std::atomic<int> busy_{0};  // threads that have not ended the present run
  std::atomic<uint64_t> epoch_{0};
  std::atomic<bool> stop_{false};
};

struct HostPartOptions {
  DType dtype = DType::kFloat16;
  int kv_heads = 1;
  int group = 1;
  int head_size = 128;
  int page_tokens = 16;
  int first_position = 0;  // of its first token in the sequence
  int num_tokens = 0;      // 0: the part is empty
};

// One sequence's host pages, and their attention for one query token that sees them all.
class HostPart {
 public:
  // Bytes of its pages.
  static size_t PageBytes(const HostPartOptions& options);
  // `pages`: PageBytes, packed as [page][role]; borrowed, content undefined.
  HostPart(const HostPartOptions& options, char* pages, SpinPool* pool);

  // key, value: [token of the part][kv_head][dim].
  void Write(const uint16_t* key, const uint16_t* value);
  // query: [head][dim] of the dtype; o: [head][dim], lse: [head], float32. False: a logit was +inf.
  bool Attend(const void* query, float* o, float* lse);

 private:
  struct Scratch {
    std::vector<char> kernel;
    std::vector<float> state;  // max, sum, acc of all heads' rows
  };

  bool AttendSplit(int split, const void* query);
  QueryTile Tile(const void* query, int kv_head) const;

  const HostPartOptions options_;
  const int heads_;
  PageGeometry geometry_;
  const KernelSet kernels_;
  SpinPool* const pool_;
  const int splits_;
  std::vector<KvPage> pages_;                   // addresses
  std::vector<Scratch> scratch_;                // [split]
  std::vector<float> partial_o_, partial_lse_;  // [split][head]
  int32_t kv_begin_ = 0, kv_end_ = 0;
};

// Answers calls first, first + 1, ... of the joint in `table`, `count` of them, with the part's attention; the words
// are those of kernels/joint_protocol.h. An infinite logit is answered with an error and ends it. Returns the number of
// calls that were answered.
uint64_t Serve(const JointTable& table, uint64_t first, uint64_t count, HostPart& part);

// Bytes a second that `pool` reads from `bytes` of memory at `data` (aligned to 64): the best of five.
double ReadCeiling(SpinPool& pool, const char* data, size_t bytes);

// Name of the CPU as /proc/cpuinfo has it, and how many CPUs this process may run on.
const char* CpuModel();
int CpusOfProcess();

}  // namespace hybridgen

#endif  // TESTS_GPU_HOST_PART_H_
