// An engine for tests: drives a backend as vLLM does, at random, and checks every answer against the double-precision
// oracle. Continuous batching, chunked prefill, prefix sharing (also within a step), preemption, draft tokens that are
// rejected, blocks reused at random.
#ifndef BACKEND_RANDOM_ENGINE_H_
#define BACKEND_RANDOM_ENGINE_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/digest_check.h"
#include "backend/engine_device.h"
#include "backend/paged_attention_backend.h"
#include "gtest/gtest.h"
#include "kernels/testing/attend_case.h"
#include "nlohmann/json.hpp"
#include "tests/oracle/attention_oracle.h"

namespace hybridgen {

class Engine {
 public:
  Engine(const Shape& shape, BackendOptions options, int device_pages, int num_blocks, int drafts, uint32_t seed,
         EngineDevice device = EngineDevice())
      : device_(std::move(device)),
        shape_(shape),
        graphs_(device_, shape_),
        num_blocks_(num_blocks),
        drafts_(drafts),
        tiered_(options.binding == Binding::kTiered),
        int8_(options.host_page_format == HostPageFormat::kInt8),
        random_(seed) {
    options.dtype = shape.dtype;
    options.kv_dtype = shape.kv_dtype;
    options.num_kv_heads = shape.kv_heads;
    options.head_size = shape.head_size;
    options.block_size = shape.block_size;
    options.speculative_tokens = drafts;
    options.executor = ExecutorKind::kPool;
    options.num_threads = 2;
    absl::StatusOr<std::unique_ptr<PagedAttentionBackend>> backend =
        PagedAttentionBackend::Create(options, device_.stream);
    if (!backend.ok()) {
      ADD_FAILURE() << backend.status();
      return;
    }
    backend_ = *std::move(backend);
    const int64_t page = 2 * shape.kv_heads * shape.block_size * shape.head_size;  // elements
    const int64_t pages = tiered_ ? device_pages : num_blocks;
    TieredPool pool;
    for (int l = 0; l < shape.layers; ++l) {
      LayerParams params;
      params.num_query_heads = shape.query_heads();
      params.scale = 0.3f;
      // Mixed layers, as in models with window and full attention.
      if (l == 0) {
        for (int h = 0; h < shape.query_heads(); ++h) params.alibi_slopes.push_back(0.05f * static_cast<float>(h));
      } else {
        params.sliding_window = 37;
        for (int h = 0; h < shape.query_heads(); ++h) params.sinks.push_back(static_cast<float>(h) - 1.0f);
      }
      if (IsFloat8(shape.kv())) {  // of few bits, so that a scaled element is a float32
        params.k_scale = l == 0 ? 0.4375f : 1.25f;
        params.v_scale = l == 0 ? 0.015625f : 0.71875f;
      }
      EXPECT_TRUE(backend_->AddLayer(params).ok());
      params_.push_back(params);
      // Poison: whatever is read without having been written shows as NaN.
      tensors_.emplace_back(pages * page * DTypeSize(shape.kv()), 0xff);
      if (device_.stream != nullptr) device_.lend(tensors_.back().data(), tensors_.back().size());
      pool.data.push_back(tensors_.back().data());
    }
    if (tiered_) {
      pool.bytes = tensors_[0].size();
      pool.num_blocks = num_blocks;
      const absl::Status status = backend_->BindTiered(pool);
      EXPECT_TRUE(status.ok()) << status;
      head_groups_ = static_cast<int>(Statistics()["head_groups"]["groups"].size());
    } else {
      for (int l = 0; l < shape.layers; ++l) {
        IdentityPool identity;
        identity.layer = l;
        identity.data = tensors_[l].data();
        identity.num_blocks = num_blocks;
        identity.block_stride = page;
        identity.head_stride = static_cast<int64_t>(shape.block_size) * 2 * shape.head_size;
        identity.token_stride = 2 * shape.head_size;
        EXPECT_TRUE(backend_->BindIdentity(identity).ok());
      }
    }
    graphs_.Capture(*backend_);
    for (int b = 1; b < num_blocks; ++b) free_.push_back(b);
    std::shuffle(free_.begin(), free_.end(), random_);
  }

  ~Engine() {
    Settle();
    backend_.reset();
    for (const std::vector<uint8_t>& tensor : tensors_) {
      if (device_.stream != nullptr) device_.take_back(tensor.data());
    }
    graphs_.Release();
  }

  bool ok() const { return backend_ != nullptr; }
  PagedAttentionBackend& backend() { return *backend_; }
  nlohmann::json Statistics() const { return nlohmann::json::parse(backend_->StatisticsJson()); }
  int preemptions() const { return preemptions_; }
  int prefix_hits() const { return prefix_hits_; }
  int replays() const { return replays_; }
  // That have been checked, by step, block, layer and KV head.
  int64_t page_digests_found() const { return page_digests_found_; }
  // Of every layer that has been looked at: what its answers are, as bits.
  const std::vector<size_t>& digests() const { return digests_; }

  void Step(int token_budget) {
    if (requests_.size() < 5 && Uniform(0, 2) == 0) AddRequest();
    if (!requests_.empty() && Uniform(0, 11) == 0) Finish(PickRequest());
    if (requests_.empty()) AddRequest();

    std::vector<uint64_t> ids;
    std::vector<int32_t> query_start = {0}, seq_lens, query_lens;
    for (auto it = requests_.begin(); it != requests_.end() && token_budget > 0; ++it) {
      Request& r = it->second;
      if (r.computed == r.length) GrowLength(r, 1 + (drafts_ > 0 ? Uniform(0, drafts_) : 0));
      int tokens = std::min(r.length - r.computed, token_budget);
      if (!EnsureBlocks(it->first, r, r.computed + tokens)) continue;  // no block left: wait for a preemption
      token_budget -= tokens;
      ids.push_back(it->first);
      query_lens.push_back(tokens);
      seq_lens.push_back(r.computed + tokens);
      query_start.push_back(query_start.back() + tokens);
      r.computed += tokens;
    }
    if (ids.empty()) {
      Preempt(PickRequest());
      return;
    }
    // A request that arrives in this very step and shares a prefix that this step writes.
    if (Uniform(0, 3) == 0) ShareWithinStep(ids, query_lens, seq_lens, query_start);
    Run(ids, query_start, seq_lens);
    for (size_t i = 0; i < ids.size(); ++i) {
      Request& r = requests_[ids[i]];
      if (drafts_ > 0 && query_lens[i] > 1 && r.computed == r.length && r.computed > drafts_ + 1) {
        Reject(r, Uniform(0, std::min(drafts_, query_lens[i] - 1)));
      }
    }
  }

 private:
  // A layer on its way, and the sequence of it whose answer is checked.
  struct Launched {
    std::vector<uint8_t> q, k, v, out;
    Request request;
    int layer = 0;
    int first_row = 0;
    int count = 0;
    int length = 0;
    int tokens = 0;  // of the step; the tensors may have more rows, of padding
    std::vector<float> query;
  };

  int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  uint64_t PickRequest() {
    auto it = requests_.begin();
    std::advance(it, Uniform(0, static_cast<int>(requests_.size()) - 1));
    return it->first;
  }

  void GrowLength(Request& r, int by) {
    r.length += by;
    r.k.resize(shape_.layers);
    r.v.resize(shape_.layers);
    std::uniform_real_distribution<float> element(-2, 2);
    for (int l = 0; l < shape_.layers; ++l) {
      for (std::vector<float>* x : {&r.k[l], &r.v[l]}) {
        while (x->size() < static_cast<size_t>(r.length) * shape_.kv_heads * shape_.head_size) {
          // What 8-bit host pages hold without rounding: multiples of 2^-6, the largest of each row 127 of them.
          const float step = 0x1p-6f;
          const bool largest = x->size() % shape_.head_size == 0;
          x->push_back(int8_ ? step * static_cast<float>(largest ? 127 : Uniform(-127, 127))
                             : RoundTo(shape_.dtype, element(random_)));
        }
      }
    }
  }

  void AddRequest() {
    const uint64_t id = next_id_++;
    Request r;
    // A prefix of another request's computed full blocks, as the prefix cache would find it.
    if (!requests_.empty() && Uniform(0, 1) == 0) {
      const Request& donor = requests_[PickRequest()];
      TakePrefix(donor, AcceptedBlocks(donor), r);
    }
    GrowLength(r, Uniform(1, 90));
    requests_[id] = std::move(r);
    if (tiered_) {
      EXPECT_TRUE((*backend_->Mirror())->Set(id, requests_[id].blocks).ok());
    }
  }

  // Full blocks that no rejected draft will be written to again: what a prefix cache may hand to another request.
  int AcceptedBlocks(const Request& donor) const { return std::max(0, donor.computed - drafts_) / shape_.block_size; }

  void TakePrefix(const Request& donor, int full_blocks, Request& r) {
    const int shared = full_blocks > 0 ? Uniform(1, full_blocks) : 0;
    if (shared == 0) return;
    ++prefix_hits_;
    r.blocks.assign(donor.blocks.begin(), donor.blocks.begin() + shared);
    for (int32_t b : r.blocks) ++references_[b];
    r.computed = r.length = shared * shape_.block_size;
    r.k = donor.k;
    r.v = donor.v;
    for (int l = 0; l < shape_.layers; ++l) {
      r.k[l].resize(static_cast<size_t>(r.length) * shape_.kv_heads * shape_.head_size);
      r.v[l].resize(r.k[l].size());
    }
  }

  void ShareWithinStep(std::vector<uint64_t>& ids, std::vector<int32_t>& query_lens, std::vector<int32_t>& seq_lens,
                       std::vector<int32_t>& query_start) {
    const Request& donor = requests_[ids[Uniform(0, static_cast<int>(ids.size()) - 1)]];
    Request r;
    TakePrefix(donor, AcceptedBlocks(donor), r);
    if (r.blocks.empty()) return;
    const uint64_t id = next_id_++;
    GrowLength(r, Uniform(1, 20));
    requests_[id] = std::move(r);
    Request& added = requests_[id];
    if (tiered_) {
      EXPECT_TRUE((*backend_->Mirror())->Set(id, added.blocks).ok());
    }
    if (!EnsureBlocks(id, added, added.length)) return;
    ids.push_back(id);
    query_lens.push_back(added.length - added.computed);
    seq_lens.push_back(added.length);
    query_start.push_back(query_start.back() + query_lens.back());
    added.computed = added.length;
  }

  bool EnsureBlocks(uint64_t id, Request& r, int tokens) {
    const int needed = (tokens + shape_.block_size - 1) / shape_.block_size;
    std::vector<int32_t> added;
    while (static_cast<int>(r.blocks.size()) < needed) {
      if (free_.empty()) break;
      added.push_back(free_.front());
      free_.pop_front();
      references_[added.back()] = 1;
      r.blocks.push_back(added.back());
    }
    if (tiered_ && !added.empty()) {
      EXPECT_TRUE((*backend_->Mirror())->Append(id, added).ok());
    }
    return static_cast<int>(r.blocks.size()) >= needed;
  }

  void Release(uint64_t id) {
    for (int32_t b : requests_[id].blocks) {
      if (--references_[b] == 0) free_.push_back(b);
    }
    if (tiered_) (*backend_->Mirror())->Remove(id);
  }

  void Finish(uint64_t id) {
    Release(id);
    requests_.erase(id);
  }

  // Its blocks go, its tokens stay and are computed again.
  void Preempt(uint64_t id) {
    ++preemptions_;
    Release(id);
    Request& r = requests_[id];
    r.blocks.clear();
    r.computed = 0;
    if (tiered_) {
      EXPECT_TRUE((*backend_->Mirror())->Set(id, r.blocks).ok());
    }
  }

  // The last `count` tokens were drafts that the model refused: other tokens take their slots.
  void Reject(Request& r, int count) {
    r.length -= count;
    r.computed -= count;
    for (int l = 0; l < shape_.layers; ++l) {
      r.k[l].resize(static_cast<size_t>(r.length) * shape_.kv_heads * shape_.head_size);
      r.v[l].resize(r.k[l].size());
    }
  }

  void Run(const std::vector<uint64_t>& ids, const std::vector<int32_t>& query_start,
           const std::vector<int32_t>& seq_lens) {
    StepBatch batch;
    batch.query_start = query_start;
    batch.seq_lens = seq_lens;
    std::vector<int32_t> rows;
    const int64_t stride = num_blocks_;
    if (tiered_) {
      batch.requests = ids;
    } else {
      rows.assign(ids.size() * stride, std::numeric_limits<int32_t>::min());  // absurd tails
      for (size_t i = 0; i < ids.size(); ++i) {
        const std::vector<int32_t>& blocks = requests_[ids[i]].blocks;
        std::copy(blocks.begin(), blocks.end(), rows.begin() + i * stride);
      }
      batch.block_tables = rows.data();
      batch.block_table_stride = stride;
    }
    absl::Status status = backend_->PlanStep(batch, plan_);
    ASSERT_TRUE(status.ok()) << status;
    // Of one request, in turn.
    const auto digested = std::next(requests_.begin(), steps_launched_ % static_cast<int>(requests_.size()));
    page_digests_found_ += ExpectPageDigestsOf(*backend_, shape_, params_, head_groups_, digested->second);
    if (testing::Test::HasFailure()) return;

    const int tokens = query_start.back();
    const size_t graph = graphs_.For(query_start);
    const bool replayed = graph < device_.graphs.size();
    const int padded = replayed ? device_.graphs[graph].num_tokens : tokens;
    if (replayed) {
      EXPECT_TRUE(backend_->CheckReplay(plan_, device_.graphs[graph]).ok());
      status = backend_->BeginStep(plan_, &device_.graphs[graph], nullptr);
      ASSERT_TRUE(status.ok()) << status;
    }
    const int hq = shape_.query_heads(), hk = shape_.kv_heads, d = shape_.head_size;
    const size_t element = DTypeSize(shape_.dtype);
    std::uniform_real_distribution<float> distribution(-2, 2);
    for (int l = 0; l < shape_.layers; ++l) {
      std::vector<float> query(static_cast<size_t>(tokens) * hq * d);
      for (float& x : query) x = RoundTo(shape_.dtype, distribution(random_));
      Launched launched;
      std::vector<uint8_t>& q = launched.q;
      q.assign(static_cast<size_t>(padded) * hq * d * element, 0xff);
      launched.k.assign(static_cast<size_t>(padded) * hk * d * element, 0xff);
      launched.v = launched.k;
      launched.out.assign(q.size() + 128, 0xff);  // red zone of 64 bytes on both sides
      launched.tokens = tokens;
      for (size_t i = 0; i < query.size(); ++i) WriteElement(shape_.dtype, q.data(), i, query[i]);
      for (size_t i = 0; i < ids.size(); ++i) {
        const Request& r = requests_[ids[i]];
        const int64_t first = seq_lens[i] - (query_start[i + 1] - query_start[i]);
        const int64_t count = static_cast<int64_t>(query_start[i + 1] - query_start[i]) * hk * d;
        for (int64_t e = 0; e < count; ++e) {
          const int64_t to = static_cast<int64_t>(query_start[i]) * hk * d + e;
          WriteElement(shape_.dtype, launched.k.data(), to, r.k[l][first * hk * d + e]);
          WriteElement(shape_.dtype, launched.v.data(), to, r.v[l][first * hk * d + e]);
        }
      }
      if (device_.stream != nullptr) {
        for (const auto* tensor : {&q, &launched.k, &launched.v, &launched.out}) {
          device_.lend(tensor->data(), tensor->size());
        }
      }
      if (replayed) {
        graphs_.Fill(l, launched.q, launched.k, launched.v, launched.out.data() + 64);
      } else {
        status = backend_->Forward(plan_, l, {q.data(), hq * d, d}, {launched.k.data(), hk * d, d},
                                   {launched.v.data(), hk * d, d}, {launched.out.data() + 64, hq * d, d});
        ASSERT_TRUE(status.ok()) << status;
      }
      // One sequence a layer keeps the oracle cheap.
      const size_t checked = Uniform(0, static_cast<int>(ids.size()) - 1);
      launched.request = requests_[ids[checked]];
      launched.layer = l;
      launched.first_row = query_start[checked];
      launched.count = query_start[checked + 1] - query_start[checked];
      launched.length = seq_lens[checked];
      launched.query = std::move(query);
      launched_.push_back(std::move(launched));
    }
    if (replayed) {
      ++replays_;
      status = device_.replay(graph);
      ASSERT_TRUE(status.ok()) << status;
      for (int l = 0; l < shape_.layers; ++l) {
        Launched& launched = launched_[launched_.size() - shape_.layers + l];
        graphs_.Read(l, launched.q.size(), launched.out.data() + 64);
      }
    }
    if (++steps_launched_ % device_.steps_ahead == 0) Settle();
  }

  // Looks at the answers of what has been launched.
  void Settle() {
    if (device_.stream != nullptr) {
      const absl::Status status = device_.synchronize();
      ASSERT_TRUE(status.ok()) << status;
      for (const Launched& launched : launched_) {
        for (const auto* tensor : {&launched.q, &launched.k, &launched.v, &launched.out}) {
          device_.take_back(tensor->data());
        }
      }
    }
    const std::vector<Launched> done = std::exchange(launched_, {});
    for (const Launched& launched : done) {
      const std::vector<uint8_t>& out = launched.out;
      for (int i = 0; i < 64; ++i) {
        ASSERT_EQ(out[i], 0xff);
        ASSERT_EQ(out[out.size() - 1 - i], 0xff);
      }
      const size_t answered =
          static_cast<size_t>(launched.tokens) * shape_.query_heads() * shape_.head_size * DTypeSize(shape_.dtype);
      for (size_t i = 64 + answered; i < out.size(); ++i) ASSERT_EQ(out[i], 0xff) << "padding was written";
      digests_.push_back(std::hash<std::string_view>()({reinterpret_cast<const char*>(out.data()) + 64, answered}));
      Check(launched.request, launched.layer, launched.first_row, launched.count, launched.length, launched.query,
            out.data() + 64);
      if (testing::Test::HasFatalFailure()) return;
    }
  }

  // An element as it comes out of the cache.
  float Cached(float x, float scale) const {
    return IsFloat8(shape_.kv()) ? RoundTo(shape_.kv(), x / scale) * scale : x;
  }

  void Check(const Request& r, int l, int first_row, int count, int length, const std::vector<float>& query,
             const uint8_t* out) {
    const int hq = shape_.query_heads(), hk = shape_.kv_heads, d = shape_.head_size;
    OracleInput input;
    input.num_tokens = count;
    input.query_heads = hq;
    input.kv_heads = hk;
    input.head_size = d;
    input.query = [&](int t, int h, int i) { return query[(static_cast<size_t>(first_row + t) * hq + h) * d + i]; };
    input.key = [&](int p, int h, int i) {
      return Cached(r.k[l][(static_cast<size_t>(p) * hk + h) * d + i], params_[l].k_scale);
    };
    input.value = [&](int p, int h, int i) {
      return Cached(r.v[l][(static_cast<size_t>(p) * hk + h) * d + i], params_[l].v_scale);
    };
    input.scale = params_[l].scale;
    input.alibi_slopes = params_[l].alibi_slopes;
    input.sinks = params_[l].sinks;
    input.SetRanges(length, OracleInput::Mask::kCausal, params_[l].sliding_window);
    std::vector<OracleRow> rows = AttendOracle(input);
    if (int8_) AddInt8Errors(input, rows);
    for (int t = 0; t < count; ++t) {
      for (int h = 0; h < hq; ++h) {
        const OracleRow& row = rows[static_cast<size_t>(t) * hq + h];
        const double tolerance =
            (device_.stream == nullptr ? 1 : 2) * (OutputTolerance(row, shape_.dtype, /*num_partials=*/16) +
                                                   1.01 * device_.weight_unit * row.value_magnitude);
        for (int i = 0; i < d; ++i) {
          const float got = ReadElement(shape_.dtype, out, (static_cast<int64_t>(first_row + t) * hq + h) * d + i);
          ASSERT_NEAR(got, row.o[i], tolerance) << "layer " << l << " token " << t << " of " << count << ", length "
                                                << length << ", head " << h << ", dim " << i;
        }
      }
    }
  }

  const EngineDevice device_;
  const Shape shape_;
  EngineGraphs graphs_;
  const int num_blocks_;
  const int drafts_;
  const bool tiered_;
  const bool int8_;
  std::mt19937 random_;
  std::unique_ptr<PagedAttentionBackend> backend_;
  std::vector<LayerParams> params_;
  std::vector<std::vector<uint8_t>> tensors_;
  std::map<uint64_t, Request> requests_;
  std::deque<int32_t> free_;
  std::map<int32_t, int> references_;
  Plan plan_;
  std::vector<Launched> launched_;
  std::vector<size_t> digests_;
  int head_groups_ = 1;
  int64_t page_digests_found_ = 0;
  int replays_ = 0;
  int steps_launched_ = 0;
  uint64_t next_id_ = 1;
  int preemptions_ = 0;
  int prefix_hits_ = 0;
};

}  // namespace hybridgen

#endif  // BACKEND_RANDOM_ENGINE_H_
