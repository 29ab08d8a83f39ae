#include "tests/bench/attend_workload.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr int kItemTokens = 1024;  // small enough that samples of some milliseconds end together
constexpr int kCallTokens = 256;   // per decode call, at least kCallPages pages: what the CPU worker passes
constexpr int kCallPages = 4;
constexpr int kCacheTokens = 256;
constexpr int kItemDigests = 256;
constexpr int kCallDigests = 64;
constexpr int kLineFloats = 16;
constexpr size_t kPatternBytes = size_t{1} << 20;

DType QueryDType(DType kv) { return IsFloat8(kv) ? DType::kBFloat16 : kv; }

const char* KindName(AttendKind kind) {
  switch (kind) {
    case AttendKind::kDecode:
      return "decode";
    case AttendKind::kCache:
      return "cache";
    case AttendKind::kPrefill:
      return "prefill";
    case AttendKind::kStored:
      return "stored";
    case AttendKind::kSummary:
      return "summary";
    case AttendKind::kDigests:
      return "digests";
  }
  return "unknown";
}

std::vector<char> RandomElements(DType dtype) {
  std::vector<char> elements(kPatternBytes);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  const size_t count = elements.size() / DTypeSize(dtype);
  for (size_t i = 0; i < count; ++i) WriteElement(dtype, elements.data(), i, uniform(random));
  return elements;
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

void KvMemory::Fill(const std::string& name, const std::function<std::vector<char>()>& make) {
  if (filled_ == name) return;
  filled_ = name;
  const std::vector<char> pattern = make();
  for (size_t i = 0; i < bytes_; i += pattern.size()) {
    std::copy_n(pattern.data(), std::min(pattern.size(), bytes_ - i), data_ + i);
  }
}

// Random tokens quantised by the library, as many whole pages as a pattern of elements would be.
std::vector<char> AttendWorkload::RandomInt8Pages() const {
  const PageGeometry& g = geometry_;
  const size_t page_bytes = HostPageBytes(g);
  std::vector<char> pages(std::max<size_t>(2, kPatternBytes / page_bytes / 2 * 2) * page_bytes);
  std::vector<char> rows(int64_t{1} * g.page_tokens * g.kv_heads * g.head_size * DTypeSize(g.dtype));
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  WriteArgs args;
  args.geometry = g;
  args.dtype = g.dtype;
  args.num_tokens = g.page_tokens;
  args.key = args.value = rows.data();
  args.key_head_stride = args.value_head_stride = g.head_size;
  args.key_token_stride = args.value_token_stride = int64_t{1} * g.kv_heads * g.head_size;
  for (size_t page = 0; page < pages.size(); page += 2 * page_bytes) {
    for (size_t i = 0; i < rows.size() / DTypeSize(g.dtype); ++i) {
      WriteElement(g.dtype, rows.data(), i, uniform(random));
    }
    args.k_page = reinterpret_cast<uint64_t>(pages.data()) + page;
    args.v_page = args.k_page + page_bytes;
    config_.kernels.write_kv(args);
  }
  return pages;
}

std::string AttendConfig::Name() const {
  return absl::StrCat(KindName(kind), "/", kernels.name, "/", DTypeName(dtype), "/", PageFormatName(format), "/page",
                      page_tokens, "/group", group, "/d", head_size);
}

AttendWorkload::AttendWorkload(const AttendConfig& c, KvMemory* memory, int threads) : config_(c) {
  geometry_.format = c.format;
  geometry_.dtype = c.dtype;
  geometry_.page_tokens = c.page_tokens;
  geometry_.kv_heads = c.kv_heads;
  geometry_.head_size = c.head_size;
  // The engine's tensor: [block][kv_head][token][2 * head_size], K then V.
  geometry_.k_token_stride = geometry_.v_token_stride = 2 * c.head_size;
  geometry_.k_head_stride = geometry_.v_head_stride = int64_t{2} * c.head_size * c.page_tokens;
  const bool digests = c.kind == AttendKind::kDigests;
  if (c.format == PageFormat::kPackedInt8V1) {
    memory->Fill(absl::StrCat("int8 page", c.page_tokens, " d", c.head_size), [&] { return RandomInt8Pages(); });
  } else {
    const DType filled = digests ? DType::kBFloat16 : c.dtype;
    memory->Fill(DTypeName(filled), [&] { return RandomElements(filled); });
  }
  num_tokens_ = c.kind == AttendKind::kPrefill ? kMaxTileRows / c.group : 1;
  const int tokens = c.kind == AttendKind::kCache ? kCacheTokens : kItemTokens;
  pages_per_item_ = digests ? kItemDigests : std::max(1, tokens / c.page_tokens);
  const size_t role_bytes = HostPageBytes(geometry_);
  const size_t page_bytes = digests ? DigestLayoutOf(c.kv_heads, c.head_size).bytes : 2 * role_bytes;
  num_items_ =
      c.kind == AttendKind::kCache ? 1 : static_cast<int64_t>(memory->bytes() / (page_bytes * pages_per_item_));
  std::vector<size_t> place(num_items_ * pages_per_item_);
  for (size_t i = 0; i < place.size(); ++i) place[i] = i;
  std::shuffle(place.begin(), place.end(), std::mt19937(2));
  for (size_t i = 0; i < place.size(); ++i) {
    KvPage page;
    page.k = reinterpret_cast<uint64_t>(memory->data()) + place[i] * page_bytes;
    page.v = page.k + (c.format == PageFormat::kStrided ? c.head_size * DTypeSize(c.dtype) : role_bytes);
    page.first_position = static_cast<int32_t>(i % pages_per_item_) * c.page_tokens;
    page.num_tokens = c.page_tokens;
    pages_.push_back(page);
  }

  const size_t rows = static_cast<size_t>(num_tokens_) * c.group * c.kv_heads;
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  q_.resize(rows * c.head_size * DTypeSize(QueryDType(c.dtype)));
  for (size_t i = 0; i < rows * c.head_size; ++i) WriteElement(QueryDType(c.dtype), q_.data(), i, uniform(random));
  kv_begin_.assign(num_tokens_, 0);
  kv_end_.assign(num_tokens_, pages_per_item_ * c.page_tokens);
  threads_.resize(threads);
  for (Thread& thread : threads_) {
    thread.max.resize(rows);
    thread.sum.resize(rows);
    thread.acc.resize(rows * PaddedHeadSize(c.head_size));
    thread.o.resize(rows * c.head_size);
    thread.bins.resize(rows * kLogitBins);
    thread.logits.resize(rows * slots() + kLineFloats);
    thread.scratch.resize(std::max(AttendScratchBytes(c.head_size), DigestScratchBytes(c.head_size)));
  }
}

int64_t AttendWorkload::token_bytes() const {
  const bool both =
      config_.kind == AttendKind::kDecode || config_.kind == AttendKind::kCache || config_.kind == AttendKind::kPrefill;
  return int64_t{both ? 2 : 1} * config_.kv_heads * role_bytes();
}

int64_t AttendWorkload::role_bytes() const {
  if (config_.format == PageFormat::kPackedInt8V1) return config_.head_size + static_cast<int64_t>(sizeof(float));
  return config_.head_size * static_cast<int64_t>(DTypeSize(config_.dtype));
}

int AttendWorkload::slots() const {
  return config_.kind == AttendKind::kDigests ? pages_per_item_ : pages_per_item_ * config_.page_tokens;
}

float* AttendWorkload::Logits(Thread& thread, int kv_head) const {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(thread.logits.data()) + 63;
  return reinterpret_cast<float*>(begin / 64 * 64) + static_cast<int64_t>(kv_head) * rows() * slots();
}

QueryTile AttendWorkload::Tile(int kv_head) const {
  const int64_t head_elements = int64_t{1} * num_tokens_ * config_.group * config_.head_size;
  QueryTile tile;
  tile.q = q_.data() + kv_head * head_elements * static_cast<int64_t>(DTypeSize(QueryDType(config_.dtype)));
  tile.dtype = QueryDType(config_.dtype);
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

void AttendWorkload::RunPages(Thread& thread, const KvPage* pages, int first, int count, int kv_head,
                              int next_kv_head) {
  const SelectionKernels& selection = config_.kernels.selection;
  const RowState rows = Rows(thread, kv_head);
  AttendArgs args;
  args.geometry = geometry_;
  args.pages = pages + first;
  args.num_pages = count;
  args.kv_head = kv_head;
  args.next_kv_head = next_kv_head;
  switch (config_.kind) {
    case AttendKind::kDecode:
    case AttendKind::kCache:
    case AttendKind::kPrefill:
      config_.kernels.attend(args.geometry)(Tile(kv_head), args, rows, thread.scratch.data());
      return;
    case AttendKind::kStored:
      selection.store_logits(Tile(kv_head), args, Logits(thread, kv_head) + int64_t{1} * first * config_.page_tokens,
                             slots(), thread.scratch.data());
      return;
    case AttendKind::kSummary:
      selection.summarise_logits(
          Tile(kv_head), args,
          {rows.max, rows.sum, thread.bins.data() + int64_t{1} * kv_head * this->rows() * kLogitBins},
          thread.scratch.data());
      return;
    case AttendKind::kDigests:
      selection.bound_logits(Tile(kv_head), args, Logits(thread, kv_head) + first, slots(), thread.scratch.data());
      return;
  }
}

int64_t AttendWorkload::RunItem(int thread_index, int64_t item) {
  Thread& thread = threads_[thread_index];
  const KvPage* pages = &pages_[item % num_items_ * pages_per_item_];
  for (int head = 0; head < config_.kv_heads; ++head) {
    config_.kernels.init_rows(Tile(head), nullptr, Rows(thread, head));
  }
  std::fill(thread.bins.begin(), thread.bins.end(), 0);
  int step = std::max(kCallPages, kCallTokens / config_.page_tokens);
  if (config_.kind == AttendKind::kDigests) step = kCallDigests;
  if (config_.kind == AttendKind::kPrefill) step = pages_per_item_;
  for (int first = 0; first < pages_per_item_; first += step) {
    const int count = std::min(step, pages_per_item_ - first);
    for (int head = 0; head < config_.kv_heads; ++head) {
      RunPages(thread, pages, first, count, head, head + 1 < config_.kv_heads ? head + 1 : -1);
    }
  }
  for (int head = 0; head < config_.kv_heads; ++head) {
    RowOutput out;
    out.o = thread.o.data() + int64_t{1} * head * num_tokens_ * config_.group * config_.head_size;
    out.token_stride = int64_t{1} * config_.group * config_.head_size;
    out.head_stride = config_.head_size;
    config_.kernels.finalize_rows(Tile(head), Rows(thread, head), out);
  }
  if (config_.kind == AttendKind::kDigests)
    return int64_t{pages_per_item_} * config_.kv_heads * DigestLayoutOf(1, config_.head_size).box_bytes;
  return pages_per_item_ * config_.page_tokens * token_bytes();
}

OracleInput AttendWorkload::Problem(int kv_head) const {
  const size_t first = static_cast<size_t>(kv_head) * rows() * config_.head_size;
  OracleInput in;
  in.num_tokens = 1;  // all query tokens see the same keys; the first one stands for them
  in.query_heads = config_.group;
  in.kv_heads = 1;
  in.head_size = config_.head_size;
  in.scale = Tile(kv_head).scale;
  in.query = [=](int, int h, int dim) {
    return ReadElement(QueryDType(config_.dtype), q_.data(), static_cast<int64_t>(first) + h * config_.head_size + dim);
  };
  in.key = [=](int position, int, int dim) { return ElementOf(KvRole::kKey, position, kv_head, dim); };
  in.value = [=](int position, int, int dim) { return ElementOf(KvRole::kValue, position, kv_head, dim); };
  in.SetRanges(kv_end_[0], OracleInput::Mask::kNone, 0);
  return in;
}

absl::Status AttendWorkload::Verify() {
  RunItem(0, 0);
  for (const int head : {0, config_.kv_heads - 1}) {
    for (int row = 0; row < config_.group; ++row) {
      if (absl::Status status = VerifyRow(head, row); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::Status AttendWorkload::VerifyRow(int kv_head, int row) {
  Thread& thread = threads_[0];
  const OracleInput in = Problem(kv_head);
  const size_t index = static_cast<size_t>(kv_head) * rows() + row;
  const auto wrong = [&](const char* what, int at, double error, double tolerance) {
    return absl::DataLossError(absl::StrCat(config_.Name(), ": KV head ", kv_head, ", row ", row, ", ", what, " ", at,
                                            " is off by ", error, ", tolerance ", tolerance));
  };
  switch (config_.kind) {
    case AttendKind::kDecode:
    case AttendKind::kCache:
    case AttendKind::kPrefill: {
      std::vector<OracleRow> expected_rows = AttendOracle(in);
      if (config_.format == PageFormat::kPackedInt8V1) AddInt8Errors(in, expected_rows);
      const OracleRow& expected = expected_rows[row];
      const double tolerance = OutputTolerance(expected, DType::kFloat32);
      for (int dim = 0; dim < config_.head_size; ++dim) {
        const double error = std::abs(thread.o[index * config_.head_size + dim] - expected.o[dim]);
        largest_error_ = std::max(largest_error_, error);
        if (!(error <= tolerance)) return wrong("dim", dim, error, tolerance);
      }
      return absl::OkStatus();
    }
    case AttendKind::kStored:
      for (int slot = 0; slot < slots(); ++slot) {
        const OracleLogit expected = LogitOracle(in, 0, row, slot);
        const double error = std::abs(Logits(thread, kv_head)[row * slots() + slot] - expected.logit);
        if (!(error <= 1.01 * expected.error)) return wrong("slot", slot, error, expected.error);
      }
      return absl::OkStatus();
    case AttendKind::kSummary: {
      const OracleRow expected = AttendOracle(in)[row];
      const double error = std::abs(thread.max[index] + std::log(thread.sum[index]) - expected.lse);
      if (!(error <= LseTolerance(expected))) return wrong("log of the sum", 0, error, LseTolerance(expected));
      const uint32_t* bins = &thread.bins[index * kLogitBins];
      const int64_t counted = std::accumulate(bins, bins + kLogitBins, int64_t{0});
      if (counted != slots()) return wrong("number of tokens", slots(), counted - slots(), 0);
      return absl::OkStatus();
    }
    case AttendKind::kDigests:
      return VerifyBounds(in, kv_head, row);
  }
  return absl::OkStatus();
}

// The definition over whatever the box holds, and no more above it than rounding needs.
absl::Status AttendWorkload::VerifyBounds(const OracleInput& in, int kv_head, int row) {
  const DigestLayout layout = DigestLayoutOf(config_.kv_heads, config_.head_size);
  for (int page = 0; page < pages_per_item_; ++page) {
    const char* digest = reinterpret_cast<const char*>(pages_[page].k);
    const void* box = digest + layout.box + kv_head * layout.box_bytes;
    double product = 0;
    double size = 0;
    for (int dim = 0; dim < config_.head_size; ++dim) {
      const double q = in.query(0, row, dim);
      product += q * ReadElement(DType::kBFloat16, box, 2 * dim + (q > 0 ? 1 : 0));
      size += std::abs(q);  // elements are at most 1
    }
    const double slack = 2 * (4 * config_.head_size + 32) * 0x1p-24 * in.scale * size;
    const double error = Logits(threads_[0], kv_head)[row * slots() + page] - product * in.scale;
    if (!(std::abs(error) <= slack)) {
      return absl::DataLossError(absl::StrCat(config_.Name(), ": KV head ", kv_head, ", row ", row, ", page ", page,
                                              " is off by ", error, ", tolerance ", slack));
    }
  }
  return absl::OkStatus();
}

int64_t AttendWorkload::run_bytes() const {
  if (config_.kind == AttendKind::kDigests) return DigestLayoutOf(1, config_.head_size).box_bytes;
  const int64_t role = config_.page_tokens * role_bytes();
  return config_.format == PageFormat::kStrided ? 2 * role : role;  // K and V of a token are neighbours by strides
}

double AttendWorkload::tokens_per_byte() const {
  if (config_.kind != AttendKind::kDigests) return 1.0 / static_cast<double>(token_bytes());
  return static_cast<double>(config_.page_tokens) / (config_.kv_heads * DigestLayoutOf(1, config_.head_size).box_bytes);
}

double AttendWorkload::flops_per_byte() const {
  if (config_.kind == AttendKind::kDigests) return config_.group;  // two dims of bfloat16 per query dim
  return 2.0 * config_.head_size * config_.group * num_tokens_ / static_cast<double>(role_bytes());
}

float AttendWorkload::ElementOf(KvRole role, int position, int kv_head, int dim) const {
  const KvPage& page = pages_[position / config_.page_tokens];
  const int token = position % config_.page_tokens;
  const PageGeometry& g = geometry_;
  if (g.format == PageFormat::kPackedInt8V1) {
    const bool key = role == KvRole::kKey;
    const char* bytes = reinterpret_cast<const char*>(key ? page.k : page.v);
    float scale;
    const auto scale_offset = key ? Int8KeyScaleOffset : Int8ValueScaleOffset;
    std::copy_n(bytes + scale_offset(g.page_tokens, g.head_size, kv_head, token), sizeof(scale),
                reinterpret_cast<char*>(&scale));
    const auto value_offset = key ? Int8KeyOffset : Int8ValueOffset;
    return scale * static_cast<float>(
                       static_cast<int8_t>(bytes[value_offset(g.page_tokens, g.head_size, kv_head, token, dim)]));
  }
  int64_t offset = kv_head * g.k_head_stride + token * g.k_token_stride + dim;
  if (g.format == PageFormat::kPackedV1) {
    const auto packed = role == KvRole::kKey ? PackedKeyOffset : PackedValueOffset;
    offset = static_cast<int64_t>(packed(g.dtype, g.page_tokens, g.head_size, kv_head, token, dim));
  }
  return ReadElement(g.dtype, reinterpret_cast<const void*>(role == KvRole::kKey ? page.k : page.v), offset);
}

}  // namespace hybridgen
