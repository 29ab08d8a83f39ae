// Registering host memory with a device, so that it can read and write it directly; undone with the object.
#ifndef MEMORY_DEVICE_REGISTRATION_H_
#define MEMORY_DEVICE_REGISTRATION_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace hybridgen {

// What a device's driver offers (cudaHostRegister and the like): it pins the pages and maps them for the device.
class DeviceRegistrar {
 public:
  virtual ~DeviceRegistrar() = default;
  // `range` starts and ends at multiples of 2 MiB and has memory. After an error nothing of it is registered.
  virtual absl::Status Register(absl::Span<std::byte> range) = 0;
  // `range` is one that Register accepted.
  virtual absl::Status Unregister(absl::Span<std::byte> range) = 0;
};

struct PinReport {
  int64_t registered_bytes = 0;
  int64_t failed_bytes = 0;
  int failures = 0;          // chunks that were refused
  absl::Status first_error;  // of the first refused chunk
};

class Registration {
 public:
  // Registers the range, whose start and size are multiples of 2 MiB, in chunks: drivers fail at very large ranges.
  // Before each, `admit`, given its size in bytes, may refuse too. A refused chunk is counted and left out, and the
  // others stay registered: the processor reads all of the range as before, the device only what Covers holds of.
  // `registrar` outlives the object.
  // Error: InvalidArgument (chunk_bytes not a positive multiple of 2 MiB).
  static absl::StatusOr<std::unique_ptr<Registration>> Create(absl::Span<std::byte> range, DeviceRegistrar& registrar,
                                                              int64_t chunk_bytes,
                                                              const std::function<absl::Status(int64_t bytes)>& admit);
  // Unregisters. What the driver refuses to release stays pinned until the process ends; nobody is left to be told.
  ~Registration();
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

  const PinReport& report() const { return report_; }

  // Whether one registered chunk holds all of [data, data + bytes): a driver refuses a copy that spans two.
  bool Covers(const std::byte* data, int64_t bytes) const;

 private:
  explicit Registration(DeviceRegistrar& registrar) : registrar_(registrar) {}

  DeviceRegistrar& registrar_;
  std::vector<absl::Span<std::byte>> chunks_;  // registered, ascending
  PinReport report_;
};

}  // namespace hybridgen

#endif  // MEMORY_DEVICE_REGISTRATION_H_
