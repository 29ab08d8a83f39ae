// A /dev/dax device, opened to be mapped: its facts from sysfs, and a hold on a part of it.
#ifndef MEMORY_DAX_FILE_H_
#define MEMORY_DAX_FILE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memory/system_files.h"

namespace hybridgen {

class DaxFile {
 public:
  // Opens `path`, e.g. "/dev/dax0.0", whose last component names the device below /sys/bus/dax/devices.
  // Errors: NotFound (no such device or file), FailedPrecondition (not in devdax mode; in use; permission; size or
  // alignment cannot be read).
  static absl::StatusOr<std::unique_ptr<DaxFile>> Open(const std::string& path, const SystemRoots& roots);
  ~DaxFile();
  DaxFile(const DaxFile&) = delete;
  DaxFile& operator=(const DaxFile&) = delete;

  // Holds [offset, offset + bytes) of the device against the other DaxFiles of all processes, until destruction.
  // Errors: InvalidArgument (not multiples of the alignment), ResourceExhausted (beyond the device's end: names wanted
  // and available bytes), FailedPrecondition (held by another).
  absl::Status Hold(int64_t offset, int64_t bytes);

  int fd() const { return fd_; }
  int64_t bytes() const { return bytes_; }
  int64_t alignment() const { return alignment_; }  // of offsets, sizes and addresses of mappings; a power of two
  // The NUMA node that the memory belongs to, by the device's target_node; nullopt: not told. The kernel's page
  // queries and mbind do not see it.
  std::optional<int> node() const { return node_; }

 private:
  explicit DaxFile(int fd) : fd_(fd) {}

  const int fd_;
  std::string path_;
  int64_t bytes_ = 0;
  int64_t alignment_ = 0;
  std::optional<int> node_;
};

}  // namespace hybridgen

#endif  // MEMORY_DAX_FILE_H_
