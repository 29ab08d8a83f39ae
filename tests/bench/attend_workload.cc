#include "tests/bench/attend_workload.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/oracle/attention_oracle.h"

namespace hybridgen {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr int kItemTokens = 1024;  // small enough that samples of some milliseconds end together
constexpr int kCallTokens = 256;   // per decode call, at least kCallPages pages: what the CPU worker passes
constexpr int kCallPages = 4;
constexpr int kCacheTokens = 256;

void StoreElement(DType dtype, void* base, size_t index, float x) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(base)[index] = x;
  } else {
    static_cast<uint16_t*>(base)[index] = dtype == DType::kFloat16 ? FloatToFloat16(x) : FloatToBFloat16(x);
  }
}

float LoadElement(DType dtype, const void* base, int64_t index) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(base)[index];
  const uint16_t bits = static_cast<const uint16_t*>(base)[index];
  return dtype == DType::kFloat16 ? Float16ToFloat(bits) : BFloat16ToFloat(bits);
}

const char* KindName(AttendKind kind) {
  switch (kind) {
    case AttendKind::kDecode:
      return "decode";
    case AttendKind::kCache:
      return "cache";
    case AttendKind::kPrefill:
      return "prefill";
  }
  return "unknown";
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvMemory>> KvMemory::Create(size_t bytes) {
  std::unique_ptr<KvMemory> memory(new KvMemory);
  memory->bytes_ = bytes;
  memory->mapped_ = bytes + kHugePage;
  void* p = mmap(nullptr, memory->mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("no ", bytes, " bytes of memory for KV: pass a smaller --gib"));
  }
  memory->mapping_ = p;
  const uintptr_t aligned = (reinterpret_cast<uintptr_t>(p) + kHugePage - 1) / kHugePage * kHugePage;
  memory->data_ = reinterpret_cast<char*>(aligned);
  madvise(memory->data_, bytes, MADV_HUGEPAGE);
  return memory;
}

KvMemory::~KvMemory() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_);
}

void KvMemory::Fill(DType dtype) {
  if (filled_ == static_cast<int>(dtype)) return;
  filled_ = static_cast<int>(dtype);
  const size_t pattern = std::min(bytes_, size_t{1} << 20);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (size_t i = 0; i < pattern / DTypeSize(dtype); ++i) StoreElement(dtype, data_, i, uniform(random));
  for (size_t i = pattern; i < bytes_; i += pattern) std::copy_n(data_, std::min(pattern, bytes_ - i), data_ + i);
}

std::string AttendConfig::Name() const {
  return absl::StrCat(KindName(kind), "/", kernels.name, "/", DTypeName(dtype), "/",
                      format == PageFormat::kPackedV1 ? "packed" : "strided", "/page", page_tokens, "/group", group,
                      "/d", head_size);
}

AttendWorkload::AttendWorkload(const AttendConfig& c, KvMemory* memory, int threads) : config_(c) {
  memory->Fill(c.dtype);
  geometry_.format = c.format;
  geometry_.dtype = c.dtype;
  geometry_.page_tokens = c.page_tokens;
  geometry_.kv_heads = c.kv_heads;
  geometry_.head_size = c.head_size;
  // The engine's tensor: [block][kv_head][token][2 * head_size], K then V.
  geometry_.k_token_stride = geometry_.v_token_stride = 2 * c.head_size;
  geometry_.k_head_stride = geometry_.v_head_stride = int64_t{2} * c.head_size * c.page_tokens;
  num_tokens_ = c.kind == AttendKind::kPrefill ? kMaxTileRows / c.group : 1;
  const int tokens = c.kind == AttendKind::kCache ? kCacheTokens : kItemTokens;
  pages_per_item_ = std::max(1, tokens / c.page_tokens);
  const size_t role_bytes = PackedPageBytes(c.dtype, c.kv_heads, c.page_tokens, c.head_size);
  num_items_ =
      c.kind == AttendKind::kCache ? 1 : static_cast<int64_t>(memory->bytes() / (2 * role_bytes * pages_per_item_));
  std::vector<size_t> place(num_items_ * pages_per_item_);
  for (size_t i = 0; i < place.size(); ++i) place[i] = i;
  std::shuffle(place.begin(), place.end(), std::mt19937(2));
  for (size_t i = 0; i < place.size(); ++i) {
    KvPage page;
    page.k = reinterpret_cast<uint64_t>(memory->data()) + place[i] * 2 * role_bytes;
    page.v = page.k + (c.format == PageFormat::kStrided ? c.head_size * DTypeSize(c.dtype) : role_bytes);
    page.first_position = static_cast<int32_t>(i % pages_per_item_) * c.page_tokens;
    page.num_tokens = c.page_tokens;
    pages_.push_back(page);
  }

  const size_t rows = static_cast<size_t>(num_tokens_) * c.group * c.kv_heads;
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  q_.resize(rows * c.head_size * DTypeSize(c.dtype));
  for (size_t i = 0; i < rows * c.head_size; ++i) StoreElement(c.dtype, q_.data(), i, uniform(random));
  kv_begin_.assign(num_tokens_, 0);
  kv_end_.assign(num_tokens_, pages_per_item_ * c.page_tokens);
  threads_.resize(threads);
  for (Thread& thread : threads_) {
    thread.max.resize(rows);
    thread.sum.resize(rows);
    thread.acc.resize(rows * PaddedHeadSize(c.head_size));
    thread.o.resize(rows * c.head_size);
    thread.scratch.resize(AttendScratchBytes(c.head_size));
  }
}

QueryTile AttendWorkload::Tile(int kv_head) const {
  const int64_t head_elements = int64_t{1} * num_tokens_ * config_.group * config_.head_size;
  QueryTile tile;
  tile.q = q_.data() + kv_head * head_elements * static_cast<int64_t>(DTypeSize(config_.dtype));
  tile.dtype = config_.dtype;
  tile.token_stride = int64_t{1} * config_.group * config_.head_size;
  tile.head_stride = config_.head_size;
  tile.num_tokens = num_tokens_;
  tile.group = config_.group;
  tile.head_size = config_.head_size;
  tile.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_size));
  tile.kv_begin = kv_begin_.data();
  tile.kv_end = kv_end_.data();
  tile.query_position = kv_begin_.data();
  return tile;
}

RowState AttendWorkload::Rows(Thread& thread, int kv_head) const {
  const size_t first = static_cast<size_t>(kv_head) * num_tokens_ * config_.group;
  return {thread.max.data() + first, thread.sum.data() + first,
          thread.acc.data() + first * PaddedHeadSize(config_.head_size)};
}

int64_t AttendWorkload::RunItem(int thread_index, int64_t item) {
  Thread& thread = threads_[thread_index];
  const KvPage* pages = &pages_[item % num_items_ * pages_per_item_];
  for (int head = 0; head < config_.kv_heads; ++head) {
    config_.kernels.init_rows(Tile(head), nullptr, Rows(thread, head));
  }
  AttendArgs args;
  args.geometry = geometry_;
  const int step =
      config_.kind == AttendKind::kPrefill ? pages_per_item_ : std::max(kCallPages, kCallTokens / config_.page_tokens);
  for (int first = 0; first < pages_per_item_; first += step) {
    args.pages = pages + first;
    args.num_pages = std::min(step, pages_per_item_ - first);
    for (int head = 0; head < config_.kv_heads; ++head) {
      args.kv_head = head;
      args.next_kv_head = head + 1 < config_.kv_heads ? head + 1 : -1;
      config_.kernels.attend(args.geometry)(Tile(head), args, Rows(thread, head), thread.scratch.data());
    }
  }
  for (int head = 0; head < config_.kv_heads; ++head) {
    RowOutput out;
    out.o = thread.o.data() + int64_t{1} * head * num_tokens_ * config_.group * config_.head_size;
    out.token_stride = int64_t{1} * config_.group * config_.head_size;
    out.head_stride = config_.head_size;
    config_.kernels.finalize_rows(Tile(head), Rows(thread, head), out);
  }
  return int64_t{2} * pages_per_item_ * config_.page_tokens * config_.head_size * config_.kv_heads *
         static_cast<int64_t>(DTypeSize(config_.dtype));
}

absl::Status AttendWorkload::Verify() {
  RunItem(0, 0);
  for (const int head : {0, config_.kv_heads - 1}) {
    const size_t first = static_cast<size_t>(head) * num_tokens_ * config_.group * config_.head_size;
    OracleInput in;
    in.num_tokens = 1;  // all query tokens see the same keys; the first one stands for them
    in.query_heads = config_.group;
    in.kv_heads = 1;
    in.head_size = config_.head_size;
    in.scale = Tile(head).scale;
    in.query = [&](int, int h, int dim) {
      return LoadElement(config_.dtype, q_.data(), static_cast<int64_t>(first) + h * config_.head_size + dim);
    };
    in.key = [&](int position, int, int dim) { return ElementOf(KvRole::kKey, position, head, dim); };
    in.value = [&](int position, int, int dim) { return ElementOf(KvRole::kValue, position, head, dim); };
    in.SetRanges(kv_end_[0], OracleInput::Mask::kNone, 0);
    const std::vector<OracleRow> rows = AttendOracle(in);
    for (int row = 0; row < config_.group; ++row) {
      for (int dim = 0; dim < config_.head_size; ++dim) {
        const double error = std::abs(threads_[0].o[first + row * config_.head_size + dim] - rows[row].o[dim]);
        if (error <= OutputTolerance(rows[row], DType::kFloat32)) continue;
        return absl::DataLossError(absl::StrCat(config_.Name(), ": KV head ", head, ", row ", row, ", dim ", dim,
                                                " is off by ", error, ", tolerance ",
                                                OutputTolerance(rows[row], DType::kFloat32)));
      }
    }
  }
  return absl::OkStatus();
}

int64_t AttendWorkload::run_bytes() const {
  const int64_t role =
      int64_t{1} * config_.page_tokens * config_.head_size * static_cast<int64_t>(DTypeSize(config_.dtype));
  return config_.format == PageFormat::kStrided ? 2 * role : role;  // K and V of a token are neighbours by strides
}

double AttendWorkload::flops_per_byte() const {
  return 2.0 * config_.group * num_tokens_ / static_cast<double>(DTypeSize(config_.dtype));
}

float AttendWorkload::ElementOf(KvRole role, int position, int kv_head, int dim) const {
  const KvPage& page = pages_[position / config_.page_tokens];
  const int token = position % config_.page_tokens;
  const PageGeometry& g = geometry_;
  int64_t offset = kv_head * g.k_head_stride + token * g.k_token_stride + dim;
  if (g.format == PageFormat::kPackedV1) {
    const auto packed = role == KvRole::kKey ? PackedKeyOffset : PackedValueOffset;
    offset = static_cast<int64_t>(packed(g.dtype, g.page_tokens, g.head_size, kv_head, token, dim));
  }
  return LoadElement(g.dtype, reinterpret_cast<const void*>(role == KvRole::kKey ? page.k : page.v), offset);
}

}  // namespace hybridgen
