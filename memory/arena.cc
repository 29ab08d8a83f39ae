// Anonymous mappings: mmap, mbind, populate under a budget, move_pages as a question.
#include "memory/arena.h"

#include <numaif.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace hybridgen {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int kMaxNodes = 1024;  // the kernel's limit
constexpr int kBitsPerWord = 8 * sizeof(unsigned long);

struct NodeMask {
  unsigned long words[kMaxNodes / kBitsPerWord] = {};
  bool Has(int node) const { return (words[node / kBitsPerWord] >> (node % kBitsPerWord)) & 1; }
  void Add(int node) { words[node / kBitsPerWord] |= 1ul << (node % kBitsPerWord); }
};

std::string ErrorText(int error) { return absl::StrCat(strerror(error), " (errno ", error, ")"); }

// Seccomp filters and kernels without NUMA answer so; that is no defect of the request.
bool NotPermitted(int error) { return error == EPERM || error == ENOSYS || error == EACCES; }

absl::Status TooLittle(const ArenaOptions& options, int64_t wanted, const MemoryBudget& budget) {
  return absl::ResourceExhaustedError(
      absl::StrCat("Arena ", options.name, ": wanted ", wanted, " bytes more, available ", budget.bytes.value_or(0),
                   " bytes on ", options.node < 0 ? "any node" : absl::StrCat("node ", options.node), " (limited by ",
                   budget.limited_by, "): ask for a smaller tier or free memory"));
}

// Gives every page of [begin, begin + bytes) memory.
absl::Status Touch(std::byte* begin, int64_t bytes, const std::string& name) {
  while (madvise(begin, bytes, MADV_POPULATE_WRITE) != 0) {
    if (errno == EAGAIN || errno == EINTR) continue;
    if (errno != EINVAL) {
      return absl::ResourceExhaustedError(
          absl::StrCat("Arena ", name, ": the kernel gave no memory: ", ErrorText(errno)));
    }
    // A kernel before 5.14. A write to each page does the same, with a signal in place of an error.
    const int64_t page = sysconf(_SC_PAGESIZE);
    for (int64_t at = 0; at < bytes; at += page) *reinterpret_cast<volatile char*>(begin + at) = 0;
    break;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Arena>> Arena::Create(int64_t bytes, const ArenaOptions& options) {
  constexpr int64_t kMostBytes = int64_t{1} << 46;  // keeps the arithmetic far from overflow
  if (bytes < 1 || bytes > kMostBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("Arena ", options.name, ": ", bytes, " bytes must be in [1, ", kMostBytes, "]"));
  }
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  const MemoryBudget budget = options.budget(options.node);
  if (budget.bytes && *budget.bytes < bytes) return TooLittle(options, bytes, budget);

  // One huge page more, so that the start can be aligned; what lies outside is given back.
  const int64_t mapped = bytes + kHugePage;
  void* const map = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) {
    return absl::InternalError(
        absl::StrCat("Arena ", options.name, ": mmap of ", mapped, " bytes failed: ", ErrorText(errno)));
  }
  std::byte* const begin = static_cast<std::byte*>(map);
  const int64_t head = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (head > 0) munmap(begin, head);
  if (mapped - head > bytes) munmap(begin + head + bytes, mapped - head - bytes);

  std::unique_ptr<Arena> arena(new Arena(begin + head, bytes));
  madvise(arena->data_, bytes, MADV_DONTFORK);
  madvise(arena->data_, bytes, options.huge_pages == HugePages::kTransparent ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  if (absl::Status status = arena->Bind(options); !status.ok()) return status;
  if (absl::Status status = arena->Populate(options); !status.ok()) return status;
  arena->locked_ = options.locking == Locking::kBestEffort && mlock(arena->data_, bytes) == 0;
  return arena;
}

Arena::~Arena() { munmap(data_, bytes_); }

absl::Status Arena::Bind(const ArenaOptions& options) {
  if (options.node < 0 || options.binding == NodeBinding::kNone) return absl::OkStatus();
  if (options.node >= kMaxNodes) {
    return absl::InvalidArgumentError(
        absl::StrCat("Arena ", options.name, ": node ", options.node, " is not in [0, ", kMaxNodes, ")"));
  }
  // The kernel answers EINVAL for a node that is absent and for one outside the cpuset; the allowed set tells which
  // nodes to name.
  NodeMask allowed;
  if (get_mempolicy(nullptr, allowed.words, kMaxNodes, nullptr, MPOL_F_MEMS_ALLOWED) == 0 &&
      !allowed.Has(options.node)) {
    std::string nodes;
    for (int node = 0; node < kMaxNodes; ++node) {
      if (allowed.Has(node)) absl::StrAppend(&nodes, nodes.empty() ? "" : ", ", node);
    }
    return absl::InvalidArgumentError(absl::StrCat("Arena ", options.name, ": node ", options.node,
                                                   " is absent or outside this process's cpuset; allowed: ", nodes));
  }
  NodeMask wanted;
  wanted.Add(options.node);
  // The extra bit: the kernel reads one bit less than it is told.
  if (mbind(data_, bytes_, MPOL_PREFERRED, wanted.words, kMaxNodes + 1, 0) == 0) {
    node_ = options.node;
    binding_ = options.binding;
    return absl::OkStatus();
  }
  const std::string reason =
      absl::StrCat("Arena ", options.name, ": mbind to node ", options.node, " failed: ", ErrorText(errno));
  if (!NotPermitted(errno)) return absl::InvalidArgumentError(reason);
  if (options.binding == NodeBinding::kAdvisory) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(reason, "; use an advisory binding or permit mbind"));
}

absl::Status Arena::Populate(const ArenaOptions& options) {
  for (int64_t done = 0; done < bytes_; done += kHugePage) {
    const MemoryBudget budget = options.budget(options.node);
    if (budget.bytes && *budget.bytes < kHugePage) return TooLittle(options, bytes_ - done, budget);
    if (absl::Status status = Touch(data_ + done, kHugePage, options.name); !status.ok()) return status;
  }
  if (binding_ != NodeBinding::kStrict) return absl::OkStatus();
  absl::StatusOr<PlacementReport> report = VerifyPlacement(0);
  if (!report.ok()) return report.status();
  const int64_t pages = bytes_ / sysconf(_SC_PAGESIZE);
  const int64_t there = report->pages_on_node[node_];
  if (there == pages) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("Arena ", options.name, ": wanted ", bytes_, " bytes on node ",
                                                   node_, ", available ", bytes_ / pages * there,
                                                   ": ask for a smaller tier or an advisory binding"));
}

absl::StatusOr<PlacementReport> Arena::VerifyPlacement(int64_t sample) const {
  constexpr int64_t kBatch = 4096;
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  const int64_t pages = bytes_ / page_bytes;
  const int64_t asked = sample > 0 ? std::min(sample, pages) : pages;
  PlacementReport report;
  std::vector<void*> addresses;
  std::vector<int> nodes;
  for (int64_t begin = 0; begin < asked; begin += kBatch) {
    const int64_t count = std::min(kBatch, asked - begin);
    addresses.clear();
    for (int64_t i = begin; i < begin + count; ++i) addresses.push_back(data_ + i * pages / asked * page_bytes);
    nodes.assign(count, -EIO);
    // Without target nodes the call moves nothing and reports each page's node.
    if (move_pages(0, count, addresses.data(), nullptr, nodes.data(), 0) < 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("Arena: the kernel does not tell where pages lie: move_pages: ", ErrorText(errno)));
    }
    for (const int node : nodes) ++(node >= 0 ? report.pages_on_node[node] : report.pages_unknown);
  }
  return report;
}

}  // namespace hybridgen
