// Stands for a device's driver: fixed buffers of io_uring pin memory for long, as cudaHostRegister does.
#ifndef TESTS_NUMA_VM_IO_URING_REGISTRAR_H_
#define TESTS_NUMA_VM_IO_URING_REGISTRAR_H_

#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <map>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "memory/device_registration.h"

namespace hybridgen {

class IoUringRegistrar : public DeviceRegistrar {
 public:
  ~IoUringRegistrar() override {
    for (const auto& [data, ring] : rings_) close(ring);
  }

  absl::Status Register(absl::Span<std::byte> range) override {
    io_uring_params parameters = {};
    const int ring = static_cast<int>(syscall(SYS_io_uring_setup, 1, &parameters));
    if (ring < 0) return absl::ErrnoToStatus(errno, "io_uring_setup");
    const iovec buffer = {range.data(), range.size()};
    if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1) != 0) {
      const absl::Status status = absl::ErrnoToStatus(errno, "IORING_REGISTER_BUFFERS");
      close(ring);
      return status;
    }
    rings_[range.data()] = ring;
    return absl::OkStatus();
  }

  // Returns when the pages are free again: closing a ring would release them some time later.
  absl::Status Unregister(absl::Span<std::byte> range) override {
    const auto ring = rings_.find(range.data());
    if (ring == rings_.end()) return absl::NotFoundError("range was not registered");
    if (syscall(SYS_io_uring_register, ring->second, IORING_UNREGISTER_BUFFERS, nullptr, 0) != 0) {
      return absl::ErrnoToStatus(errno, "IORING_UNREGISTER_BUFFERS");
    }
    close(ring->second);
    rings_.erase(ring);
    return absl::OkStatus();
  }

 private:
  std::map<std::byte*, int> rings_;  // by a range's start
};

}  // namespace hybridgen

#endif  // TESTS_NUMA_VM_IO_URING_REGISTRAR_H_
