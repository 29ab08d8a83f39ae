// mmap, and madvise against inheritance by forked children.
#include "memory/address_range.h"

#include <sys/mman.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "memory/memory_policy.h"

namespace hybridgen {

absl::StatusOr<std::unique_ptr<AddressRange>> AddressRange::Reserve(int64_t bytes, int64_t alignment) {
  // So many bytes more that the start can be aligned; what lies outside is given back.
  const int64_t mapped = bytes + alignment;
  void* const map = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) {
    return absl::InternalError(absl::StrCat("mmap of ", mapped, " bytes of addresses failed: ", ErrorText(errno)));
  }
  std::byte* const begin = static_cast<std::byte*>(map);
  const int64_t head = (alignment - reinterpret_cast<uintptr_t>(begin) % alignment) % alignment;
  if (head > 0) munmap(begin, head);
  munmap(begin + head + bytes, alignment - head);
  return std::unique_ptr<AddressRange>(new AddressRange(begin + head, bytes));
}

absl::StatusOr<std::unique_ptr<AddressRange>> AddressRange::Take(int64_t bytes) {
  if (bytes < 1 || bytes >= bytes_) {
    return absl::InvalidArgumentError(
        absl::StrCat("address range: ", bytes, " bytes to take must be in [1, ", bytes_, ")"));
  }
  std::unique_ptr<AddressRange> first(new AddressRange(data_, bytes));
  data_ += bytes;
  bytes_ -= bytes;
  return first;
}

AddressRange::~AddressRange() { munmap(data_, bytes_); }

absl::Status AddressRange::MapAnonymous() {
  if (mprotect(data_, bytes_, PROT_READ | PROT_WRITE) != 0 || madvise(data_, bytes_, MADV_DONTFORK) != 0) {
    return absl::InternalError(absl::StrCat("mapping of ", bytes_, " bytes failed: ", ErrorText(errno)));
  }
  return absl::OkStatus();
}

absl::Status AddressRange::MapFile(int fd, int64_t offset) {
  // The mapping replaces the reservation, so what was advised about that does not hold for it.
  if (mmap(data_, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset) == MAP_FAILED ||
      madvise(data_, bytes_, MADV_DONTFORK) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("mapping of ", bytes_, " bytes from offset ", offset, " failed: ", ErrorText(errno)));
  }
  return absl::OkStatus();
}

}  // namespace hybridgen
