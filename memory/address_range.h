// A range of the process's addresses: reserved first, given memory later, unmapped with the object.
#ifndef MEMORY_ADDRESS_RANGE_H_
#define MEMORY_ADDRESS_RANGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace hybridgen {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;

class AddressRange {
 public:
  // Reserves addresses and no memory: touching them is a fault until one of the Map functions succeeded. `bytes` is a
  // multiple of the page size; `alignment`, of the start, a power of two from the page size on.
  // Error: Internal (mmap).
  static absl::StatusOr<std::unique_ptr<AddressRange>> Reserve(int64_t bytes, int64_t alignment);
  ~AddressRange();
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;

  // The first `bytes`, a multiple of the page size, as a range of their own; the rest stays here. Before a Map function
  // only. Error: InvalidArgument (not in [1, what is left)).
  absl::StatusOr<std::unique_ptr<AddressRange>> Take(int64_t bytes);

  // Private memory, zeroed, which the kernel provides page by page as it is touched. Error: Internal.
  absl::Status MapAnonymous();
  // The bytes of a file or device from `offset` on, shared with whoever else maps them. The range stays mapped when
  // `fd` is closed. Error: FailedPrecondition (the file refuses, e.g. for its alignment).
  absl::Status MapFile(int fd, int64_t offset);

  absl::Span<std::byte> span() const { return {data_, static_cast<size_t>(bytes_)}; }

 private:
  AddressRange(std::byte* data, int64_t bytes) : data_(data), bytes_(bytes) {}

  std::byte* data_;
  int64_t bytes_;
};

}  // namespace hybridgen

#endif  // MEMORY_ADDRESS_RANGE_H_
