#include "tests/gpu/host_part.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <string>

#include "kernels/cpu/kernel_rows.h"
#include "kernels/cpu_features.h"
#include "tests/bench/read_ceiling.h"

namespace hybridgen {
namespace {

constexpr int kMinSplitTokens = 256;  // below this a split costs more than it gains
constexpr int kChunkTokens = 256;     // attended head by head before the next, so that the states stay in cache

constexpr int kSpins = 2000;  // some 50 us; beyond it the core is free for whoever wants it

void Pause() { __builtin_ia32_pause(); }

}  // namespace

KernelSet KernelsOf(const PageGeometry& geometry) {
  const CpuFeatures features = DetectCpuFeatures();
  KernelSet set;
  const int format = static_cast<int>(geometry.format), dtype = static_cast<int>(geometry.dtype);
  for (const KernelRows& rows : {kPortableKernels, kAvx2Kernels, kAvx512Kernels, kAvx512Bf16Kernels, kAmxBf16Kernels}) {
    for (int i = 0; i < rows.count; ++i) {
      const KernelRow& row = rows.rows[i];
      if (!Supports(features, row.isa) || (row.isa == Isa::kAvx512Bf16 && !features.fast_bf16_dot)) continue;
      if (row.init_rows != nullptr) set.init_rows = row.init_rows;
      if (row.finalize_rows != nullptr) set.finalize_rows = row.finalize_rows;
      if (row.merge_rows != nullptr) set.merge_rows = row.merge_rows;
      if (row.write_kv != nullptr) set.write_kv = row.write_kv;
      if (row.convert_page != nullptr) set.convert_page = row.convert_page;
      if (row.attend == nullptr || (row.pages.formats & BitOf(geometry.format)) == 0 ||
          (row.pages.dtypes & BitOf(geometry.dtype)) == 0 ||
          (row.pages.heads == HeadClass::kMultipleOf32 && geometry.head_size % 32 != 0)) {
        continue;
      }
      for (AttendFn& attend : set.attend_by[format][dtype]) attend = row.attend;
      set.isa = row.isa;
      set.name = IsaName(row.isa);
    }
  }
  return set;
}

SpinPool::SpinPool(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
}

SpinPool::~SpinPool() {
  stop_ = true;
  ++epoch_;
  for (std::thread& thread : threads_) thread.join();
}

void SpinPool::Take() {
  for (int i = next_++; i < count_; i = next_++) (*run_)(i);
}

void SpinPool::Loop() {
  for (uint64_t seen = 0;;) {
    for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen; ++spins) {
      Pause();
      if (spins > kSpins) std::this_thread::yield();
    }
    if (stop_) return;
    ++seen;
    Take();
    --busy_;
  }
}

void SpinPool::ParallelFor(int count, const std::function<void(int)>& run) {
  run_ = &run;
  count_ = count;
  next_ = 0;
  busy_ = static_cast<int>(threads_.size());
  ++epoch_;
  Take();
  for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) {
    Pause();
    if (spins > kSpins) std::this_thread::yield();
  }
}

size_t HostPart::PageBytes(const HostPartOptions& o) {
  const size_t pages = (o.num_tokens + o.page_tokens - 1) / o.page_tokens;
  return 2 * pages * PackedPageBytes(o.dtype, o.kv_heads, o.page_tokens, o.head_size);
}

HostPart::HostPart(const HostPartOptions& options, char* pages, SpinPool* pool)
    : options_(options),
      heads_(options.kv_heads * options.group),
      geometry_{PageFormat::kPackedV1, options.dtype, options.page_tokens, options.kv_heads, options.head_size},
      kernels_(KernelsOf(geometry_)),
      pool_(pool),
      splits_(std::max(1, std::min(pool->num_threads(), (options.num_tokens + kMinSplitTokens - 1) / kMinSplitTokens))),
      scratch_(splits_),
      partial_o_(static_cast<size_t>(splits_) * heads_ * options.head_size),
      partial_lse_(static_cast<size_t>(splits_) * heads_),
      kv_end_(options.first_position + options.num_tokens) {
  const size_t role = PackedPageBytes(options.dtype, options.kv_heads, options.page_tokens, options.head_size);
  for (int first = 0; first < options.num_tokens; first += options.page_tokens) {
    const uint64_t k = reinterpret_cast<uint64_t>(pages) + 2 * role * (first / options.page_tokens);
    pages_.push_back(
        {k, k + role, options.first_position + first, std::min(options.page_tokens, options.num_tokens - first)});
  }
  for (Scratch& scratch : scratch_) {
    scratch.kernel.resize(AttendScratchBytes(options.head_size) + 64);
    scratch.state.resize(static_cast<size_t>(heads_) * (2 + PaddedHeadSize(options.head_size)));
  }
}

void HostPart::Write(const uint16_t* key, const uint16_t* value) {
  const int64_t row = static_cast<int64_t>(options_.kv_heads) * options_.head_size;
  pool_->ParallelFor(static_cast<int>(pages_.size()), [&](int i) {
    WriteArgs args;
    args.geometry = geometry_;
    args.k_page = pages_[i].k;
    args.v_page = pages_[i].v;
    args.num_tokens = pages_[i].num_tokens;
    args.key = key + i * options_.page_tokens * row;
    args.value = value + i * options_.page_tokens * row;
    args.key_token_stride = args.value_token_stride = row;
    args.key_head_stride = args.value_head_stride = options_.head_size;
    kernels_.write_kv(args);
  });
}

QueryTile HostPart::Tile(const void* query, int kv_head) const {
  QueryTile tile;
  tile.q = static_cast<const uint16_t*>(query) + static_cast<int64_t>(kv_head) * options_.group * options_.head_size;
  tile.dtype = options_.dtype;
  tile.token_stride = static_cast<int64_t>(heads_) * options_.head_size;
  tile.head_stride = options_.head_size;
  tile.num_tokens = 1;
  tile.group = options_.group;
  tile.head_size = options_.head_size;
  tile.scale = 1.0f / std::sqrt(static_cast<float>(options_.head_size));
  tile.query_position = &kv_end_;
  tile.kv_begin = &kv_begin_;
  tile.kv_end = &kv_end_;
  return tile;
}

bool HostPart::AttendSplit(int split, const void* query) {
  Scratch& scratch = scratch_[split];
  void* const kernel = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.kernel.data()) + 63) / 64 * 64);
  const int padded = PaddedHeadSize(options_.head_size);
  const auto rows_of = [&](int kv_head) {
    const int first = kv_head * options_.group;
    float* const base = scratch.state.data();
    return RowState{base + first, base + heads_ + first, base + 2 * heads_ + static_cast<int64_t>(first) * padded};
  };
  const int num_pages = static_cast<int>(pages_.size());
  const int begin = static_cast<int>(static_cast<int64_t>(num_pages) * split / splits_);
  const int end = static_cast<int>(static_cast<int64_t>(num_pages) * (split + 1) / splits_);
  bool finite = true;
  AttendArgs args;
  args.geometry = geometry_;
  const AttendFn attend = kernels_.attend(geometry_);
  for (int h = 0; h < options_.kv_heads; ++h) kernels_.init_rows(Tile(query, h), nullptr, rows_of(h));
  const int chunk = std::max(1, kChunkTokens / options_.page_tokens);
  for (int page = begin; page < end; page += chunk) {
    args.pages = pages_.data() + page;
    args.num_pages = std::min(chunk, end - page);
    for (int h = 0; h < options_.kv_heads; ++h) {
      args.kv_head = h;
      args.next_kv_head = h + 1 < options_.kv_heads ? h + 1 : -1;
      finite &= attend(Tile(query, h), args, rows_of(h), kernel) == KernelResult::kOk;
    }
  }
  for (int h = 0; h < options_.kv_heads; ++h) {
    const int64_t row = static_cast<int64_t>(split) * heads_ + h * options_.group;
    RowOutput out;
    out.o = partial_o_.data() + row * options_.head_size;
    out.token_stride = static_cast<int64_t>(heads_) * options_.head_size;
    out.head_stride = options_.head_size;
    out.lse = partial_lse_.data() + row;
    out.lse_token_stride = heads_;
    out.lse_head_stride = 1;
    kernels_.finalize_rows(Tile(query, h), rows_of(h), out);
  }
  return finite;
}

bool HostPart::Attend(const void* query, float* o, float* lse) {
  std::atomic<bool> finite{true};
  pool_->ParallelFor(splits_, [&](int split) {
    if (!AttendSplit(split, query)) finite = false;
  });
  pool_->ParallelFor(heads_, [&](int head) {
    std::vector<const float*> rows(splits_);
    std::vector<float> row_lse(splits_);
    for (int s = 0; s < splits_; ++s) {
      const int64_t row = static_cast<int64_t>(s) * heads_ + head;
      rows[s] = partial_o_.data() + row * options_.head_size;
      row_lse[s] = partial_lse_[row];
    }
    lse[head] = kernels_.merge_rows(rows.data(), row_lse.data(), splits_, options_.head_size,
                                    o + static_cast<int64_t>(head) * options_.head_size, DType::kFloat32);
  });
  return finite;
}

uint64_t Serve(const JointTable& table, uint64_t first, uint64_t count, HostPart& part) {
  for (uint64_t s = first; s < first + count; ++s) {
    while (__atomic_load_n(&table.control->published.value, __ATOMIC_ACQUIRE) < s) {
      // The device gave up, or the stream died: there is no one to answer.
      if (__atomic_load_n(&table.control->device_failure.value, __ATOMIC_ACQUIRE) != 0) return s - first;
      Pause();
    }
    unsigned char* const slot = JointSlot(table, s);
    const bool finite = part.Attend(slot, reinterpret_cast<float*>(slot + table.o_offset),
                                    reinterpret_cast<float*>(slot + table.lse_offset));
    __builtin_ia32_sfence();
    const JointState state = finite ? JointState::kAnswered : JointState::kError;
    __atomic_store_n(&table.control->answer[s & 1].value, JointWord(state, s), __ATOMIC_RELEASE);
    if (!finite) return s - first;
  }
  return count;
}

double ReadCeiling(SpinPool& pool, const char* data, size_t bytes) {
  const int parts = pool.num_threads();
  constexpr int kStreams = 4;
  const size_t part = bytes / parts / (256 * kStreams) * (256 * kStreams);
  std::vector<uint64_t> sums(parts * 8);  // 64 bytes apart
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    pool.ParallelFor(parts, [&](int p) { sums[p * 8] ^= ReadStreams(data + p * part, part, kStreams); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, static_cast<double>(part) * parts / seconds.count());
  }
  volatile uint64_t sink = 0;  // what is read must be used
  for (uint64_t sum : sums) sink = sink ^ sum;
  return best;
}

const char* CpuModel() {
  static const std::string* const kModel = [] {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
      if (line.rfind("model name", 0) == 0) return new std::string(line.substr(line.find(':') + 2));
    }
    return new std::string("unknown");
  }();
  return kModel->c_str();
}

int CpusOfProcess() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

}  // namespace hybridgen
