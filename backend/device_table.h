// Plain data of a step on its way to the device: filled in pinned host memory, copied in the stream's order to device
// memory whose address stays until the table has to grow.
#ifndef BACKEND_DEVICE_TABLE_H_
#define BACKEND_DEVICE_TABLE_H_

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "backend/device_stream.h"

namespace hybridgen {

// Sources that are filled in turn, so that a copy may still be under way while the next is prepared.
constexpr int kTableSources = 2;

template <typename T>
class DeviceTable {
 public:
  // Room for `count` elements. Grows only when nothing uses the table.
  bool Holds(size_t count) const { return count <= capacity_; }
  absl::Status Grow(DeviceStream& stream, size_t count) {
    const size_t capacity = std::max<size_t>(count + count / 2, 64);
    absl::StatusOr<std::shared_ptr<void>> device = stream.AllocateDevice(capacity * sizeof(T));
    if (!device.ok()) return device.status();
    device_ = *std::move(device);
    for (std::shared_ptr<void>& source : sources_) {
      absl::StatusOr<std::shared_ptr<void>> pinned = stream.AllocatePinned(capacity * sizeof(T));
      if (!pinned.ok()) return pinned.status();
      source = *std::move(pinned);
    }
    capacity_ = capacity;
    return absl::OkStatus();
  }

  // Queues the copy of `data`, for which there is room, by way of the given source, whose last copy is done.
  absl::Status Upload(DeviceStream& stream, const std::vector<T>& data, int source) {
    if (data.empty()) return absl::OkStatus();
    std::memcpy(sources_[source].get(), data.data(), data.size() * sizeof(T));
    return stream.CopyToDevice(device_.get(), sources_[source].get(), data.size() * sizeof(T));
  }

  T* data() const { return static_cast<T*>(device_.get()); }

 private:
  std::shared_ptr<void> device_;
  std::shared_ptr<void> sources_[kTableSources];
  size_t capacity_ = 0;
};

}  // namespace hybridgen

#endif  // BACKEND_DEVICE_TABLE_H_
