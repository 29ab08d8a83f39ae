#include <cmath>
#include <numeric>
#include <random>
#include <string>

#include "tests/gpu/problem.cuh"

namespace hybridgen::cuda {
namespace {

uint16_t Narrow(DType dtype, float x) { return dtype == DType::kFloat16 ? FloatToFloat16(x) : FloatToBFloat16(x); }

std::vector<float> Widen(DType dtype, const std::vector<uint16_t>& bits) {
  std::vector<float> x(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    x[i] = dtype == DType::kFloat16 ? Float16ToFloat(bits[i]) : BFloat16ToFloat(bits[i]);
  }
  return x;
}

// Items over [0, pages); the partials of split s begin at row first_row + s * tokens.
std::vector<AttendItem> Split(int pages, int splits, int first_row, bool complete, int tokens = 1) {
  std::vector<AttendItem> items(splits);
  for (int s = 0; s < splits; ++s) {
    items[s].num_tokens = tokens;
    items[s].first_page = static_cast<int>(static_cast<int64_t>(pages) * s / splits);
    items[s].num_pages = static_cast<int>(static_cast<int64_t>(pages) * (s + 1) / splits) - items[s].first_page;
    items[s].partial_row = complete ? -1 : first_row + s * tokens;
  }
  return items;
}

}  // namespace

std::string Case::ToString() const {
  return std::string(DTypeName(dtype)) + ", head size " + std::to_string(head_size) + ", group " +
         std::to_string(group) + ", pages of " + std::to_string(page_tokens) + ", length " + std::to_string(length) +
         ", query tokens " + std::to_string(tokens) + ", splits " + std::to_string(splits) + ", window " +
         std::to_string(window) + ", soft cap " + std::to_string(soft_cap) +
         (kernel == Kernel::kPrefill ? ", prefill" : ", decode");
}

Problem::Problem(const Case& c, uint32_t seed)
    : c_(c),
      heads_(c.kv_heads * c.group),
      pages_((c.length + c.page_tokens - 1) / c.page_tokens),
      k_(Random(static_cast<size_t>(c.length) * c.kv_heads * c.head_size, seed)),
      v_(Random(k_.size(), seed + 1)),
      q_(Random(static_cast<size_t>(c.tokens) * heads_ * c.head_size, seed + 2)),
      key_(k_),
      value_(v_),
      query_(q_),
      cache_(static_cast<size_t>(pages_) * PageElements()),
      output_(q_.size()),
      partial_o_(static_cast<size_t>(c.tokens) * 2 * c.splits * heads_ * c.head_size),
      partial_lse_(partial_o_.size() / c.head_size),
      status_(std::vector<uint32_t>{0}),
      place_(pages_) {
  geometry_.dtype = c.dtype;
  geometry_.page_tokens = c.page_tokens;
  geometry_.kv_heads = c.kv_heads;
  geometry_.head_size = c.head_size;
  geometry_.k_token_stride = geometry_.v_token_stride = 2 * c.head_size;
  geometry_.k_head_stride = geometry_.v_head_stride = static_cast<int64_t>(c.page_tokens) * 2 * c.head_size;
  std::iota(place_.begin(), place_.end(), 0);
  std::shuffle(place_.begin(), place_.end(), std::mt19937(seed));
  std::vector<int64_t> slots(c.length);
  for (int t = 0; t < c.length; ++t) slots[t] = place_[t / c.page_tokens] * c.page_tokens + t % c.page_tokens;
  std::vector<KvPage> list(pages_);
  for (int i = 0; i < pages_; ++i) {
    list[i].k = list[i].v = place_[i] * page_bytes();
    list[i].first_position = i * c.page_tokens;
    list[i].num_tokens = std::min(c.page_tokens, c.length - i * c.page_tokens);
  }
  for (int t = 0; t < c.tokens; ++t) {
    position_.push_back(c.length - c.tokens + t);
    kv_end_.push_back(position_[t] + 1);
    kv_begin_.push_back(c.window > 0 ? std::max(0, position_[t] + 1 - c.window) : 0);
  }
  std::vector<MergeItem> merges;
  for (int t = 0; t < c.tokens && c.splits > 1; ++t) merges.push_back({t, t, c.splits, c.tokens});
  slots_ = std::make_unique<Device<int64_t>>(slots);
  list_ = std::make_unique<Device<KvPage>>(list);
  items_ = std::make_unique<Device<AttendItem>>(Split(pages_, c.splits, 0, c.splits == 1, c.tokens));
  merges_ = std::make_unique<Device<MergeItem>>(merges);
  ranges_[0] = std::make_unique<Device<int32_t>>(kv_begin_);
  ranges_[1] = std::make_unique<Device<int32_t>>(kv_end_);
  ranges_[2] = std::make_unique<Device<int32_t>>(position_);
}

std::vector<uint16_t> Problem::Random(size_t count, uint32_t seed) const {
  std::mt19937 random(seed);
  std::vector<uint16_t> x(count);
  for (uint16_t& e : x) e = Narrow(c_.dtype, static_cast<float>(random() % 2001) / 1000.0f - 1.0f);
  return x;
}

void Problem::Write() {
  WriteKvParams p;
  const int64_t row = static_cast<int64_t>(c_.kv_heads) * c_.head_size;
  p.key = {key_.data(), row, c_.head_size};
  p.value = {value_.data(), row, c_.head_size};
  p.num_tokens = c_.length;
  p.slots = slots_->data();
  p.geometry = geometry_;
  p.k_cache = cache_.data();
  p.v_cache = cache_.data() + c_.head_size;
  p.k_page_stride = p.v_page_stride = PageElements();
  Ok(LaunchWriteKv(p, nullptr), "write KV");
}

AttendParams Problem::Params() const {
  AttendParams p;
  p.q = query();
  p.query_heads = heads_;
  p.geometry = geometry_;
  p.pages = list_->data();
  p.k_base = reinterpret_cast<uint64_t>(cache_.data());
  p.v_base = p.k_base + 2 * c_.head_size;
  p.items = items_->data();
  p.num_items = c_.splits;
  p.max_item_tokens = c_.tokens;
  p.kv_begin = ranges_[0]->data();
  p.kv_end = ranges_[1]->data();
  p.position = ranges_[2]->data();
  p.scale = 1.0f / std::sqrt(static_cast<float>(c_.head_size));
  p.soft_cap = c_.soft_cap;
  p.partials = {partial_o_.data(), partial_lse_.data()};
  p.o = {output_.data(), p.q.token_stride, p.q.head_stride};
  p.status = status_.data();
  return p;
}

void Problem::Attend() {
  const AttendParams p = Params();
  const bool prefill = c_.kernel == Case::Kernel::kPrefill;
  Ok(prefill ? LaunchPrefill(p, nullptr) : LaunchDecode(p, nullptr), prefill ? "prefill" : "decode");
  if (c_.splits == 1) return;
  MergeParams m;
  m.items = merges_->data();
  m.num_items = c_.tokens;
  m.query_heads = heads_;
  m.head_size = c_.head_size;
  m.device = p.partials;
  m.o = p.o;
  m.dtype = c_.dtype;
  Ok(LaunchMerge(m, nullptr), "merge");
}

void Problem::CutParts(int device_pages, int splits) {
  part_splits_ = device_pages == 0 ? 0 : splits;
  std::vector<AttendItem> items = Split(device_pages, part_splits_, 0, /*complete=*/false);
  for (AttendItem item : Split(pages_ - device_pages, splits, part_splits_, /*complete=*/false)) {
    item.first_page += device_pages;
    items.push_back(item);
  }
  part_items_ = std::make_unique<Device<AttendItem>>(items);
  const int all = static_cast<int>(items.size());
  part_merges_ =
      std::make_unique<Device<MergeItem>>(std::vector<MergeItem>{{0, 0, part_splits_ + 1, 1}, {0, 0, all, 1}});
}

void Problem::AttendPart(Part part) {
  AttendParams p = Params();
  const int all = static_cast<int>(part_items_->size());
  p.items = part_items_->data() + (part == Part::kDevice ? 0 : part_splits_);
  p.num_items = part == Part::kDevice ? part_splits_ : all - part_splits_;
  Ok(LaunchDecode(p, nullptr), "decode of a part");
}

void Problem::MergeParts(const Partials* host) {
  MergeParams m;
  m.items = part_merges_->data() + (host != nullptr ? 0 : 1);
  m.num_items = 1;
  m.query_heads = heads_;
  m.head_size = c_.head_size;
  m.device = {partial_o_.data(), partial_lse_.data()};
  if (host != nullptr) {
    m.host = *host;
    m.first_host_row = part_splits_;
  }
  m.o = {output_.data(), static_cast<int64_t>(heads_) * c_.head_size, c_.head_size};
  m.dtype = c_.dtype;
  Ok(LaunchMerge(m, nullptr), "merge of both parts");
}

std::vector<RepackJob> Problem::Jobs(int first, char* packed) const {
  const size_t role = PackedPageBytes(c_.dtype, c_.kv_heads, c_.page_tokens, c_.head_size);
  std::vector<RepackJob> jobs;
  for (int i = first; i < pages_; ++i) {
    const uint64_t k = reinterpret_cast<uint64_t>(page(i));
    const uint64_t to = reinterpret_cast<uint64_t>(packed) + 2 * role * (i - first);
    jobs.push_back({k, k + 2 * c_.head_size, to, to + role, std::min(c_.page_tokens, c_.length - i * c_.page_tokens)});
  }
  return jobs;
}

bool Problem::RepackKeepsBits() {
  const Pinned host(2 * PackedPageBytes(c_.dtype, c_.kv_heads, c_.page_tokens, c_.head_size) * pages_);
  const Device<RepackJob> jobs(Jobs(0, host.data()));
  RepackParams p;
  p.jobs = jobs.data();
  p.num_jobs = pages_;
  p.geometry = geometry_;
  const std::vector<uint16_t> before = cache_.Read();
  Ok(LaunchPackPages(p, nullptr), "pack pages");
  Cuda(cudaMemset(cache_.data(), 0xff, before.size() * 2), "cudaMemset");
  Ok(LaunchUnpackPages(p, nullptr), "unpack pages");
  return cache_.Read() == before;
}

void Problem::PoisonOutput() { Cuda(cudaMemset(output_.data(), 0xff, output_.size() * 2), "cudaMemset"); }

// Rounding of the output and of the weights (unit roundoff of the dtype), and 2^-24 for each of some 4 operations a key
// and 100 besides, all times the largest |v| = 1; twice that.
double Problem::WorstError() const {
  if (status_.Read()[0] != 0) return INFINITY;
  const std::vector<float> got = Widen(c_.dtype, output_.Read());
  const std::vector<float> q = Widen(c_.dtype, q_), k = Widen(c_.dtype, k_), v = Widen(c_.dtype, v_);
  const double unit = c_.dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
  const double scale = 1.0f / std::sqrt(static_cast<float>(c_.head_size));
  double worst = 0;
  std::vector<double> o(c_.head_size);
  for (int row = 0; row < c_.tokens * heads_; ++row) {
    const int t = row / heads_, h = row % heads_;
    std::fill(o.begin(), o.end(), 0.0);
    double sum = 0;
    for (int pos = kv_begin_[t]; pos < kv_end_[t]; ++pos) {
      const size_t at = (static_cast<size_t>(pos) * c_.kv_heads + h / c_.group) * c_.head_size;
      double logit = 0;
      for (int d = 0; d < c_.head_size; ++d) {
        logit += static_cast<double>(q[static_cast<size_t>(row) * c_.head_size + d]) * k[at + d];
      }
      logit *= scale;
      if (c_.soft_cap > 0) logit = c_.soft_cap * std::tanh(logit / c_.soft_cap);
      const double weight = std::exp(logit);
      sum += weight;
      for (int d = 0; d < c_.head_size; ++d) o[d] += weight * v[at + d];
    }
    const double tolerance = 2 * (2 * unit + 0x1p-24 * (4 * (kv_end_[t] - kv_begin_[t]) + 100));
    for (int d = 0; d < c_.head_size; ++d) {
      const double error = std::abs(got[static_cast<size_t>(row) * c_.head_size + d] - o[d] / sum) / tolerance;
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
  }
  return worst;
}

}  // namespace hybridgen::cuda
