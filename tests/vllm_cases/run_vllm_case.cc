#include "tests/vllm_cases/run_vllm_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/page_format.h"
#include "kernels/testing/attend_case.h"

namespace hybridgen {
namespace {

constexpr int kHeadSize = VllmCase::kHeadSize;
constexpr int kBlockSize = VllmCase::kBlockSize;
constexpr uint8_t kPoison = 0xff;  // NaN in every dtype
constexpr int kPaddingRows = 3;    // of the step's tensors, as a captured graph pads them
constexpr int kContextChunk = 512;

// [sequence] -> [position][head][dim], as the dtype holds them.
using Rows = std::vector<std::vector<float>>;

Rows RandomRows(const std::vector<int>& lengths, int heads, DType dtype, std::mt19937& random) {
  std::uniform_real_distribution<float> element(-2, 2);
  Rows rows;
  for (int length : lengths) {
    rows.emplace_back(static_cast<size_t>(length) * heads * kHeadSize);
    for (float& x : rows.back()) x = RoundTo(dtype, element(random));
  }
  return rows;
}

// The engine's KV tensor of two layers, of which the second is used. Strides in elements.
struct Cache {
  Cache(const std::string& layout, int blocks, int kv_heads, DType dtype) : dtype(dtype) {
    int64_t stride = 1;
    for (auto dimension = layout.rbegin(); dimension != layout.rend(); ++dimension) {
      switch (*dimension) {
        case 'L':
          layer_stride = stride, stride *= 2;
          break;
        case 'B':
          block_stride = stride, stride *= blocks;
          break;
        case 'H':
          head_stride = stride, stride *= kv_heads;
          break;
        case 'N':
          token_stride = stride, stride *= kBlockSize;
          break;
        case 'C':
          stride *= 2 * kHeadSize;
          break;
      }
    }
    bytes.assign(stride * DTypeSize(dtype), kPoison);
  }
  int64_t Index(int block, int head, int token) const {
    return layer_stride + block * block_stride + head * head_stride + token * token_stride;
  }
  uint8_t* layer() { return bytes.data() + layer_stride * DTypeSize(dtype); }

  const DType dtype;
  int64_t layer_stride = 0, block_stride = 0, head_stride = 0, token_stride = 0;
  std::vector<uint8_t> bytes;
};

class CaseRun {
 public:
  CaseRun(const VllmCase& c, const CaseTarget& target, Binding binding, uint32_t seed)
      : c_(c), target_(target), binding_(binding), random_(seed) {
    query_ = RandomRows(c.seq_lens, c.query_heads(), c.dtype, random_);
    key_ = RandomRows(c.seq_lens, c.kv_heads(), c.dtype, random_);
    value_ = RandomRows(c.seq_lens, c.kv_heads(), c.dtype, random_);
    params_.num_query_heads = c.query_heads();
    params_.scale = 1.0f / std::sqrt(static_cast<float>(kHeadSize));
    params_.sliding_window = c.window;
    if (c.sinks) {
      for (int h = 0; h < c.query_heads(); ++h) params_.sinks.push_back(static_cast<float>(h) / 2 - 1);
    }
    // Block 0 is the null block; the others are dealt in random order.
    std::vector<int32_t> free;
    for (int length : c.seq_lens) num_blocks_ += (length + kBlockSize - 1) / kBlockSize;
    for (int32_t b = 1; b < num_blocks_; ++b) free.push_back(b);
    std::shuffle(free.begin(), free.end(), random_);
    for (int length : c.seq_lens) {
      const int count = (length + kBlockSize - 1) / kBlockSize;
      tables_.emplace_back(free.end() - count, free.end());
      free.resize(free.size() - count);
      width_ = std::max(width_, count);
    }
  }

  void Run() {
    BackendOptions options = target_.options;
    options.binding = binding_;
    options.dtype = c_.dtype;
    options.num_kv_heads = c_.kv_heads();
    options.head_size = kHeadSize;
    options.block_size = kBlockSize;
    const int64_t host_block = 2 * PackedPageBytes(c_.dtype, c_.kv_heads(), kBlockSize, kHeadSize);
    if (binding_ == Binding::kTiered) options.dram_bytes = (num_blocks_ + 8) * host_block;
    auto backend = target_.create(options);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    ASSERT_TRUE(backend_->AddLayer(params_).ok());
    if (binding_ == Binding::kIdentity) {
      RunIdentity();
    } else {
      RunTiered();
    }
    backend_.reset();
  }

 private:
  void RunIdentity() {
    Cache cache(c_.layout, num_blocks_, c_.kv_heads(), c_.dtype);
    Fill(cache, /*new_tokens=*/false);
    Cache expected = cache;
    Fill(expected, /*new_tokens=*/true);
    target_.lend(cache.bytes.data(), cache.bytes.size());
    IdentityPool pool;
    pool.data = cache.layer();
    pool.num_blocks = num_blocks_;
    pool.block_stride = cache.block_stride;
    pool.head_stride = cache.head_stride;
    pool.token_stride = cache.token_stride;
    absl::Status status = backend_->BindIdentity(pool);
    ASSERT_TRUE(status.ok()) << status;
    Step(c_.seq_lens, c_.query_lens, /*check=*/true);
    backend_.reset();
    target_.take_back(cache.bytes.data());
    EXPECT_TRUE(cache.bytes == expected.bytes) << "the cache differs outside, or inside, the new tokens' slots";
  }

  void RunTiered() {
    const int64_t page = 2LL * c_.kv_heads() * kBlockSize * kHeadSize * DTypeSize(c_.dtype);
    // A step's writes must find a page each.
    const int pages = std::max({num_blocks_ / 4, 4, (kContextChunk + kBlockSize - 1) / kBlockSize + 1});
    std::vector<uint8_t> region(pages * page, kPoison);
    target_.lend(region.data(), region.size());
    TieredPool pool;
    pool.data = {region.data()};
    pool.bytes = region.size();
    pool.num_blocks = num_blocks_;
    absl::Status status = backend_->BindTiered(pool);
    ASSERT_TRUE(status.ok()) << status;
    for (size_t i = 0; i < tables_.size(); ++i) {
      status = (*backend_->Mirror())->Set(i + 1, tables_[i]);
      ASSERT_TRUE(status.ok()) << status;
    }
    for (size_t i = 0; i < tables_.size(); ++i) {
      const int context = c_.seq_lens[i] - c_.query_lens[i];
      for (int done = 0; done < context; done += kContextChunk) {
        std::vector<int> lens(tables_.size(), 0), queries(tables_.size(), 0);
        queries[i] = std::min(kContextChunk, context - done);
        lens[i] = done + queries[i];
        Step(lens, queries, /*check=*/false);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
    Step(c_.seq_lens, c_.query_lens, /*check=*/true);
    backend_.reset();
    target_.take_back(region.data());
  }

  // Writes tokens straight into the cache, those of the context or the new ones.
  void Fill(Cache& cache, bool new_tokens) const {
    for (size_t i = 0; i < tables_.size(); ++i) {
      const int context = c_.seq_lens[i] - c_.query_lens[i];
      for (int p = new_tokens ? context : 0; p < (new_tokens ? c_.seq_lens[i] : context); ++p) {
        for (int h = 0; h < c_.kv_heads(); ++h) {
          const int64_t to = cache.Index(tables_[i][p / kBlockSize], h, p % kBlockSize);
          for (int d = 0; d < kHeadSize; ++d) {
            const size_t from = (static_cast<size_t>(p) * c_.kv_heads() + h) * kHeadSize + d;
            WriteElement(c_.dtype, cache.bytes.data(), to + d, key_[i][from]);
            WriteElement(c_.dtype, cache.bytes.data(), to + kHeadSize + d, value_[i][from]);
          }
        }
      }
    }
  }

  // One step of the sequences with new tokens. q, k and v are views of one tensor, as vLLM makes them.
  void Step(const std::vector<int>& seq_lens, const std::vector<int>& query_lens, bool check) {
    std::vector<int32_t> query_start = {0}, lens, rows;
    std::vector<uint64_t> requests;
    std::vector<size_t> sequences;
    for (size_t i = 0; i < tables_.size(); ++i) {
      if (query_lens[i] == 0) continue;
      sequences.push_back(i);
      requests.push_back(i + 1);
      lens.push_back(seq_lens[i]);
      query_start.push_back(query_start.back() + query_lens[i]);
      rows.insert(rows.end(), tables_[i].begin(), tables_[i].end());
      rows.resize(sequences.size() * width_, -12345);  // the rest of a row is not to be looked at
    }
    const int tokens = query_start.back(), all = tokens + kPaddingRows;
    const int hq = c_.query_heads(), hk = c_.kv_heads();
    const int64_t row = static_cast<int64_t>(hq + 2 * hk) * kHeadSize;
    const size_t element = DTypeSize(c_.dtype);
    std::vector<uint8_t> qkv(all * row * element, kPoison);
    std::vector<uint8_t> out(static_cast<size_t>(all) * hq * kHeadSize * element, kPoison);
    for (size_t s = 0; s < sequences.size(); ++s) {
      const size_t i = sequences[s];
      for (int t = 0; t < query_start[s + 1] - query_start[s]; ++t) {
        const size_t position = lens[s] - (query_start[s + 1] - query_start[s]) + t;
        const int64_t to = (query_start[s] + t) * row;
        for (int e = 0; e < hq * kHeadSize; ++e) {
          WriteElement(c_.dtype, qkv.data(), to + e, query_[i][position * hq * kHeadSize + e]);
        }
        for (int e = 0; e < hk * kHeadSize; ++e) {
          const size_t from = position * hk * kHeadSize + e;
          WriteElement(c_.dtype, qkv.data(), to + hq * kHeadSize + e, key_[i][from]);
          WriteElement(c_.dtype, qkv.data(), to + (hq + hk) * kHeadSize + e, value_[i][from]);
        }
      }
    }
    StepBatch batch;
    batch.query_start = query_start;
    batch.seq_lens = lens;
    batch.causal = c_.mask == OracleInput::Mask::kCausal;
    if (binding_ == Binding::kTiered) {
      batch.requests = requests;
    } else {
      batch.block_tables = rows.data();
      batch.block_table_stride = width_;
    }
    absl::Status status = backend_->PlanStep(batch, plan_);
    ASSERT_TRUE(status.ok()) << status;
    target_.lend(qkv.data(), qkv.size());
    target_.lend(out.data(), out.size());
    const auto view = [&](int64_t offset) { return TensorView{qkv.data() + offset * element, row, kHeadSize}; };
    status = backend_->Forward(plan_, 0, view(0), view(hq * kHeadSize), view((hq + hk) * kHeadSize),
                               {out.data(), static_cast<int64_t>(hq) * kHeadSize, kHeadSize});
    ASSERT_TRUE(status.ok()) << status;
    status = target_.synchronize();
    ASSERT_TRUE(status.ok()) << status;
    target_.take_back(qkv.data());
    target_.take_back(out.data());
    for (size_t b = static_cast<size_t>(tokens) * hq * kHeadSize * element; b < out.size(); ++b) {
      ASSERT_EQ(out[b], kPoison) << "padding rows of the output were written";
    }
    if (!check) return;
    for (size_t s = 0; s < sequences.size(); ++s) {
      Check(sequences[s], query_start[s], query_start[s + 1] - query_start[s], lens[s], out);
      if (testing::Test::HasFatalFailure()) return;
    }
  }

  void Check(size_t i, int first_row, int count, int length, const std::vector<uint8_t>& out) const {
    const int hq = c_.query_heads(), hk = c_.kv_heads();
    OracleInput input;
    input.num_tokens = count;
    input.query_heads = hq;
    input.kv_heads = hk;
    input.head_size = kHeadSize;
    const auto element = [](const std::vector<float>& rows, int heads) {
      return [&rows, heads](int p, int h, int d) { return rows[(static_cast<size_t>(p) * heads + h) * kHeadSize + d]; };
    };
    input.query = [&, first = length - count](int t, int h, int d) {
      return query_[i][(static_cast<size_t>(first + t) * hq + h) * kHeadSize + d];
    };
    input.key = element(key_[i], hk);
    input.value = element(value_[i], hk);
    input.scale = params_.scale;
    input.sinks = params_.sinks;
    input.SetRanges(length, c_.mask, c_.window);
    const std::vector<OracleRow> rows = AttendOracle(input);
    for (int t = 0; t < count; ++t) {
      for (int h = 0; h < hq; ++h) {
        const OracleRow& row = rows[static_cast<size_t>(t) * hq + h];
        const double tolerance =
            (target_.weight_unit > 0 ? 2 : 1) *
            (OutputTolerance(row, c_.dtype, /*num_partials=*/32) + 1.01 * target_.weight_unit * row.value_magnitude);
        for (int d = 0; d < kHeadSize; ++d) {
          const float got =
              ReadElement(c_.dtype, out.data(), (static_cast<int64_t>(first_row + t) * hq + h) * kHeadSize + d);
          ASSERT_NEAR(got, row.o[d], tolerance) << "sequence " << i << ", token " << t << " of " << count << ", length "
                                                << length << ", head " << h << ", dim " << d;
        }
      }
    }
  }

  const VllmCase& c_;
  const CaseTarget& target_;
  const Binding binding_;
  std::mt19937 random_;
  LayerParams params_;
  Rows query_, key_, value_;
  int num_blocks_ = 1;
  int width_ = 0;
  std::vector<std::vector<int32_t>> tables_;
  std::unique_ptr<PagedAttentionBackend> backend_;
  Plan plan_;
};

}  // namespace

void RunVllmCase(const VllmCase& c, const CaseTarget& target, Binding binding, uint32_t seed) {
  CaseRun(c, target, binding, seed).Run();
}

}  // namespace hybridgen
