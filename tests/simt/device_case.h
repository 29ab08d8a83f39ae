// Attention problems for the CUDA kernels on the host: sequences laid out in a poisoned page tensor, a plan of items,
// partials and merges over them, a run under the executor, and the comparison with the oracle.
#ifndef TESTS_SIMT_DEVICE_CASE_H_
#define TESTS_SIMT_DEVICE_CASE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/params.h"
#include "kernels/testing/attend_case.h"
#include "kernels/testing/red_zone.h"

namespace hybridgen::simt {

// How the page tensor is laid out; K and V of a token share a row except in kApart.
enum class Layout {
  kHeadMajor,   // [page][kv_head][token][2 * head_size], vLLM's standard content
  kTokenMajor,  // [page][token][kv_head][2 * head_size]
  kApart,       // [role][page][token][kv_head][head_size]
};

PageGeometry GeometryOf(Layout layout, DType dtype, int page_tokens, int kv_heads, int head_size);
int64_t PageStride(Layout layout, const PageGeometry& geometry);                  // elements
int64_t ValueOffset(Layout layout, const PageGeometry& geometry, int num_pages);  // of V behind K, elements

struct DeviceCase {
  AttendCase attend;  // the first sequence; others are alike but for length and seed
  Layout layout = Layout::kHeadMajor;
  int sequences = 1;
  int splits = 1;       // items per sequence; 1: complete, straight to the output. More than pages: some are empty
  int item_tokens = 0;  // query tokens per item; 0: all
  // Where the pages are: in the page tensor, or packed in host memory, from where those of one split after another are
  // unpacked into a ring of pages on the device.
  enum class Pages { kDevice, kStreamed } pages = Pages::kDevice;
  enum class Kernel { kDecode, kPrefill } kernel = Kernel::kDecode;

  std::string ToString() const;
};

// The problem in "device" memory, which is poison (NaN) wherever nothing was written, and its plan. Pages that no query
// token sees have an address that faults.
class DeviceData {
 public:
  explicit DeviceData(const DeviceCase& c);

  const DeviceCase& c() const { return case_; }
  AttendData& sequence(int i) { return *sequences_[i]; }
  const cuda::AttendParams& attend() const { return attend_; }
  const cuda::MergeParams& merge() const { return merge_; }
  // Streamed pages: the jobs of item i, which fill the ring for it.
  cuda::RepackParams Unpack(int item) const;
  uint32_t status() const { return status_; }
  const RedZoned<uint16_t>& output() const { return *output_; }
  // To be changed before a run: by query token of the batch, and query elements as bits.
  std::vector<int32_t>& kv_end() { return kv_end_; }
  std::vector<uint16_t>& query() { return query_; }

  // Every output against the oracle, and red zones. `weight_unit`: rounding of the weights before they meet V (0:
  // none).
  void ExpectMatchesOracle(double weight_unit);

 private:
  int SplitBegin(int num_pages, int split) const { return num_pages * split / case_.splits; }
  void AddPages(int sequence);
  void Plan();

  DeviceCase case_;
  std::vector<std::unique_ptr<AttendData>> sequences_;
  int num_tokens_ = 0;
  PageGeometry geometry_;
  std::vector<uint8_t> tensor_;  // of geometry_.dtype
  std::vector<int> places_;      // of pages in the tensor
  int64_t value_offset_ = 0;
  std::vector<uint16_t> query_;
  std::vector<KvPage> pages_;
  std::vector<cuda::RepackJob> jobs_;  // by page
  std::vector<cuda::AttendItem> items_;
  std::vector<cuda::MergeItem> merges_;
  std::vector<int32_t> kv_begin_, kv_end_, position_, first_token_, first_page_, num_pages_;
  std::vector<float> slopes_, sinks_;
  uint32_t status_ = 0;
  std::unique_ptr<RedZoned<float>> partial_o_, partial_lse_, lse_;
  std::unique_ptr<RedZoned<uint16_t>> output_;
  cuda::AttendParams attend_;
  cuda::MergeParams merge_;
};

// Decode or prefill and, where items are partials, merge. Threads run in the order that `seed` draws. Returns the
// rounding of the weights in the kernel that was chosen.
double RunAttend(DeviceData& data, uint64_t seed);

// A run and its comparison.
void CheckAttend(const DeviceCase& c);

// The unit roundoff of a 16-bit dtype.
double UnitOf(DType dtype);

// Types of queries and KV that the kernels take, to be one parameter of a cover.
struct DevicePair {
  DType dtype;
  DType kv;
};
constexpr DevicePair kDevicePairs[] = {{DType::kFloat16, DType::kFloat16},    {DType::kBFloat16, DType::kBFloat16},
                                       {DType::kFloat16, DType::kFloat8E4M3}, {DType::kBFloat16, DType::kFloat8E4M3},
                                       {DType::kFloat16, DType::kFloat8E5M2}, {DType::kBFloat16, DType::kFloat8E5M2}};
void SetTypes(AttendCase& c, const DevicePair& pair);

// Few choices that hold every pair of values of every two parameters: rows of indices, row[i] < sizes[i].
std::vector<std::vector<int>> PairwiseCover(const std::vector<int>& sizes, uint32_t seed);

}  // namespace hybridgen::simt

#endif  // TESTS_SIMT_DEVICE_CASE_H_
