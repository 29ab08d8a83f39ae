// One sequence in shuffled pages on the device: written, attended in parts, merged, and compared with double precision.
#ifndef TESTS_GPU_PROBLEM_CUH_
#define TESTS_GPU_PROBLEM_CUH_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/gpu/device.cuh"

namespace hybridgen::cuda {

struct Case {
  DType dtype = DType::kFloat16;
  int head_size = 128, group = 1, kv_heads = 1, page_tokens = 16;
  int length = 100;  // tokens of the sequence
  int tokens = 1;    // query tokens, its last ones
  int splits = 1;
  int window = 0;
  float soft_cap = 0.0f;
  enum class Kernel { kDecode, kPrefill } kernel = Kernel::kDecode;

  std::string ToString() const;
};

class Problem {
 public:
  Problem(const Case& c, uint32_t seed);

  // K and V of all tokens to their pages, by the write kernel.
  void Write();
  // All pages, and the merge of the splits, into the output.
  void Attend();
  // For cases of one query token: its pages in two parts, the first `device_pages` and the others, which a call shares
  // between device and CPU. Each is cut into `splits`, up to the case's.
  void CutParts(int device_pages, int splits);
  enum class Part { kDevice, kOther };
  void AttendPart(Part part);
  // The device's part and the CPU's row in `host` become the output; null: both parts were attended on the device.
  void MergeParts(const Partials* host);

  // Packs all pages to mapped host memory and unpacks them again: whether the cache holds the same bits.
  bool RepackKeepsBits();
  // Jobs between the pages from `first` on and packed pages, two roles each, from `packed` on.
  std::vector<RepackJob> Jobs(int first, char* packed) const;
  // The largest error over its tolerance; infinity for NaN and for an infinite logit.
  double WorstError() const;
  void PoisonOutput();

  int num_pages() const { return pages_; }
  int heads() const { return heads_; }
  const PageGeometry& geometry() const { return geometry_; }
  Rows query() const { return {query_.data(), static_cast<int64_t>(heads_) * c_.head_size, c_.head_size}; }
  const std::vector<uint16_t>& query_bits() const { return q_; }
  const std::vector<uint16_t>& key_bits() const { return k_; }  // [token][kv_head][dim]
  const std::vector<uint16_t>& value_bits() const { return v_; }
  int64_t page_bytes() const { return 2 * PageElements(); }  // of both roles
  uint16_t* page(int i) const { return cache_.data() + place_[i] * PageElements(); }
  int64_t kv_bytes() const { return static_cast<int64_t>(c_.length) * c_.kv_heads * c_.head_size * 4; }

 private:
  int64_t PageElements() const { return static_cast<int64_t>(2) * c_.kv_heads * c_.page_tokens * c_.head_size; }
  std::vector<uint16_t> Random(size_t count, uint32_t seed) const;
  AttendParams Params() const;

  const Case c_;
  const int heads_, pages_;
  const std::vector<uint16_t> k_, v_, q_;
  Device<uint16_t> key_, value_, query_, cache_, output_;
  Device<float> partial_o_, partial_lse_;
  Device<uint32_t> status_;
  PageGeometry geometry_;
  std::vector<int64_t> place_;  // of pages in the cache
  std::vector<int32_t> position_, kv_begin_, kv_end_;
  std::unique_ptr<Device<int64_t>> slots_;
  std::unique_ptr<Device<KvPage>> list_;
  std::unique_ptr<Device<AttendItem>> items_, part_items_;
  std::unique_ptr<Device<MergeItem>> merges_, part_merges_;
  std::unique_ptr<Device<int32_t>> ranges_[3];
  int part_splits_ = 0;
};

}  // namespace hybridgen::cuda

#endif  // TESTS_GPU_PROBLEM_CUH_
