// One attention problem over pages, for tests and benchmarks of the CPU kernels: random data in poisoned pages, a run
// through a kernel set, and the comparison with the oracle.
#ifndef KERNELS_TESTING_ATTEND_CASE_H_
#define KERNELS_TESTING_ATTEND_CASE_H_

#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernel_set.h"
#include "tests/oracle/attention_oracle.h"

namespace hybridgen {

// Address of a page that nobody may read. Not mapped on any Linux: reading it ends the test.
constexpr uint64_t kPoisonedPage = 4096 - 64;

struct AttendCase {
  DType dtype = DType::kFloat32;  // of queries, and of KV unless kv_dtype is set
  std::optional<DType> kv_dtype;  // float8
  float v_scale = 1.0f;           // of float8; short enough that an element times it is a float32
  DType output = DType::kFloat32;
  PageFormat format = PageFormat::kPackedV1;
  int page_tokens = 16;
  int kv_heads = 2;
  int group = 1;
  int head_size = 64;
  int length = 40;     // tokens of the sequence
  int num_tokens = 1;  // query tokens: its last ones
  OracleInput::Mask mask = OracleInput::Mask::kCausal;
  int window = 0;
  float scale = 0.25f;
  float soft_cap = 0.0f;
  bool alibi = false;
  bool sinks = false;
  uint32_t seed = 1;

  DType kv() const { return kv_dtype.value_or(dtype); }
  // KV of this type, and queries: of 16 bits where it is float8, which then has a V scale.
  void SetStorage(DType kv);
  std::string ToString() const;
};

// Draws the shape of a case: pages, heads, tokens, mask and what shapes its logits; up to `most_before` tokens come
// before those of the query. What is stored, sinks and the seed are the caller's.
void DrawShape(std::mt19937& random, int most_before, AttendCase& c);

// The data of a case. Pages lie shuffled in one buffer whose every unused element is NaN; pages that no query token
// sees have an address that faults. In 8-bit pages (kPackedInt8V1) keys and values are replaced by what the pages hold.
class AttendData {
 public:
  explicit AttendData(const AttendCase& c);
  AttendData(const AttendData&) = delete;  // the oracle's callbacks refer to it
  AttendData& operator=(const AttendData&) = delete;

  const AttendCase& c() const { return case_; }
  // Problem of one KV head, as the oracle sees it. Fields may be changed before RunCase.
  OracleInput& oracle(int kv_head) { return oracle_[kv_head]; }
  // Rebuilds the pages after a change of oracle ranges or of elements, in the given format.
  void BuildPages(PageFormat format);
  // The error that 8-bit pages may have made of an element, for an oracle over what was put in: half a step. Of a row
  // that holds 0 or what is not finite: 0.
  static float HalfInt8Step(const float* row, int head_size);
  // As stored, that is without scales.
  float& key(int position, int kv_head, int dim) { return key_[Index(position, kv_head, dim)]; }
  float& value(int position, int kv_head, int dim) { return value_[Index(position, kv_head, dim)]; }
  float& query(int token, int head, int dim) {
    return query_[(static_cast<size_t>(token) * heads() + head) * case_.head_size + dim];
  }
  int heads() const { return case_.kv_heads * case_.group; }
  const PageGeometry& geometry() const { return geometry_; }
  const std::vector<KvPage>& pages() const { return pages_; }
  QueryTile Tile(int kv_head) const;
  AttendArgs Args(int kv_head) const;  // all pages

 private:
  size_t Index(int position, int kv_head, int dim) const {
    return (static_cast<size_t>(position) * case_.kv_heads + kv_head) * case_.head_size + dim;
  }
  // Writes a token's row into an 8-bit page and reads it back.
  void WriteInt8(KvRole role, uint64_t page, int kv_head, int token, float* row) const;

  AttendCase case_;
  std::vector<float> query_, key_, value_;  // by logical index, rounded to their dtypes
  std::vector<uint8_t> query_bytes_;        // [token][head][dim] of the dtype
  std::vector<float> slopes_, sinks_;
  std::vector<OracleInput> oracle_;
  PageGeometry geometry_;
  std::vector<uint8_t> page_bytes_;
  std::vector<KvPage> pages_;
};

// Finished rows of one KV head.
struct AttendResult {
  KernelResult status = KernelResult::kOk;
  std::vector<float> o;    // [token][group][head_size], widened
  std::vector<float> lse;  // [token][group]
};

// One step of a run: pages of one format that are folded into the state.
struct AttendStep {
  const AttendData* data;
  std::vector<KvPage> pages;
};

// Init, fold all steps, finalise; every output between red zones, scratch and state filled with NaN before. `tile`
// and sinks come from the first step. Fails the current test if a red zone is hit.
AttendResult RunSteps(const KernelSet& kernels, const std::vector<AttendStep>& steps, int kv_head, const float* sinks,
                      DType output);
// All pages, with the case's sinks and output dtype.
AttendResult RunCase(const KernelSet& kernels, AttendData& data, int kv_head);

// Fails the current test where the result differs from the oracle by more than the arithmetic explains: float32, or
// that of 8-bit pages.
void ExpectMatchesOracle(AttendData& data, int kv_head, const AttendResult& result, int num_partials = 1);

// Case, both: build the data, run every KV head on `kernels`, compare.
void CheckCase(const KernelSet& kernels, const AttendCase& c);

// Kernel sets of this CPU. Prints the ones that it lacks, once.
const std::vector<KernelSet>& RunnableKernelSets();

// The row of matrix tiles with tiles in C++, if this CPU has the rest of what it needs; else prints what it lacks.
const std::vector<KernelSet>& EmulatedKernelSets();

// HYBRIDGEN_TEST_SEED or `fallback`; prints the seed and the command that repeats the test with it.
uint32_t TestSeed(const char* target, uint32_t fallback);

// Rounds to the dtype and back.
float RoundTo(DType dtype, float x);

}  // namespace hybridgen

#endif  // KERNELS_TESTING_ATTEND_CASE_H_
