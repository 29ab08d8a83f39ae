// Chunk by chunk; a refusal is counted.
#include "memory/device_registration.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "memory/address_range.h"

namespace hybridgen {

absl::StatusOr<std::unique_ptr<Registration>> Registration::Create(
    absl::Span<std::byte> range, DeviceRegistrar& registrar, int64_t chunk_bytes,
    const std::function<absl::Status(int64_t bytes)>& admit) {
  if (chunk_bytes < kHugePageBytes || chunk_bytes % kHugePageBytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("registration: chunks of ", chunk_bytes,
                                                   " bytes must be a positive multiple of ", kHugePageBytes));
  }
  std::unique_ptr<Registration> registration(new Registration(registrar));
  PinReport& report = registration->report_;
  while (!range.empty()) {
    const absl::Span<std::byte> chunk = range.first(std::min<size_t>(range.size(), chunk_bytes));
    range.remove_prefix(chunk.size());
    absl::Status status = admit(static_cast<int64_t>(chunk.size()));
    if (status.ok()) status = registrar.Register(chunk);
    if (status.ok()) {
      registration->chunks_.push_back(chunk);
      report.registered_bytes += static_cast<int64_t>(chunk.size());
      continue;
    }
    report.failed_bytes += static_cast<int64_t>(chunk.size());
    if (report.failures++ == 0) report.first_error = status;
  }
  return registration;
}

Registration::~Registration() {
  for (const absl::Span<std::byte> chunk : chunks_) registrar_.Unregister(chunk).IgnoreError();
}

bool Registration::Covers(const std::byte* data, int64_t bytes) const {
  // The last chunk that begins at or before `data`; std::less orders pointers of different objects too.
  const auto after = std::upper_bound(
      chunks_.begin(), chunks_.end(), data,
      [](const std::byte* at, absl::Span<std::byte> chunk) { return std::less<const std::byte*>()(at, chunk.data()); });
  if (after == chunks_.begin()) return false;
  const absl::Span<std::byte> chunk = *(after - 1);
  const int64_t offset = data - chunk.data();
  return bytes <= static_cast<int64_t>(chunk.size()) - offset;
}

}  // namespace hybridgen
