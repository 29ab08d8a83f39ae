// MADV_POPULATE_WRITE, or a write to each page where the kernel does not know it.
#include "memory/populate.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "memory/address_range.h"
#include "memory/memory_policy.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace hybridgen {
namespace {

absl::Status Touch(absl::Span<std::byte> step) {
  while (madvise(step.data(), step.size(), MADV_POPULATE_WRITE) != 0) {
    if (errno == EAGAIN || errno == EINTR) continue;
    if (errno != EINVAL) {
      return absl::ResourceExhaustedError(absl::StrCat("the kernel gave no memory: ", ErrorText(errno)));
    }
    const size_t page = sysconf(_SC_PAGESIZE);
    for (size_t at = 0; at < step.size(); at += page) {
      *reinterpret_cast<volatile char*>(step.data() + at) = 0;
    }
    break;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PopulatePages(absl::Span<std::byte> range, const std::function<absl::Status(int64_t left)>& admit) {
  while (!range.empty()) {
    if (absl::Status status = admit(static_cast<int64_t>(range.size())); !status.ok()) return status;
    const size_t step = std::min<size_t>(range.size(), kHugePageBytes);
    if (absl::Status status = Touch(range.first(step)); !status.ok()) return status;
    range.remove_prefix(step);
  }
  return absl::OkStatus();
}

}  // namespace hybridgen
