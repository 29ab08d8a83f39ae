// sysfs of the dax bus, open, and record locks of the open file.
#include "memory/dax_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "absl/strings/str_cat.h"
#include "memory/device_reader.h"
#include "memory/memory_policy.h"

namespace hybridgen {

absl::StatusOr<std::unique_ptr<DaxFile>> DaxFile::Open(const std::string& path, const SystemRoots& roots) {
  const std::string name = path.substr(path.rfind('/') + 1);
  const std::vector<DaxDevice> devices = ReadDaxDevices(roots);
  const auto device =
      std::find_if(devices.begin(), devices.end(), [&name](const DaxDevice& d) { return d.name == name; });
  if (device == devices.end()) {
    return absl::NotFoundError(
        absl::StrCat(path, ": no DAX device ", name, " below ", roots.sysfs, "/bus/dax/devices"));
  }
  if (device->use != DaxUse::kMapped) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is not in devdax mode (driver ",
                     device->use == DaxUse::kNode ? "kmem: its memory is a NUMA node" : "unknown",
                     "): name the node instead, or daxctl reconfigure-device --mode=devdax ", name));
  }
  if (!device->bytes || !device->alignment) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": size or align of the device cannot be read below ", roots.sysfs, "/bus/dax/devices"));
  }
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) {
    const std::string reason =
        absl::StrCat(path, errno == EBUSY ? " is held by another: " : " cannot be opened: ", ErrorText(errno));
    return errno == ENOENT ? absl::NotFoundError(reason) : absl::FailedPreconditionError(reason);
  }
  std::unique_ptr<DaxFile> file(new DaxFile(fd));
  file->path_ = path;
  file->bytes_ = *device->bytes;
  file->alignment_ = *device->alignment;
  file->node_ = device->target_node;
  return file;
}

DaxFile::~DaxFile() { close(fd_); }

absl::Status DaxFile::Hold(int64_t offset, int64_t bytes) {
  if (offset < 0 || offset % alignment_ != 0 || bytes < 1 || bytes % alignment_ != 0) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": offset ", offset, " and size ", bytes,
                                                   " must be multiples of the device's alignment ", alignment_));
  }
  if (bytes > bytes_ - offset) {
    return absl::ResourceExhaustedError(absl::StrCat(path_, ": wanted ", bytes, " bytes at offset ", offset,
                                                     ", available ", std::max<int64_t>(0, bytes_ - offset),
                                                     " of the device's ", bytes_, " bytes"));
  }
  // The kernel lets any number of processes map the same bytes. A lock of the open file keeps arenas apart, those of
  // one process too, and ends with the descriptor.
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = offset;
  lock.l_len = bytes;
  if (fcntl(fd_, F_OFD_SETLK, &lock) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(path_, ": bytes [", offset, ", ", offset + bytes,
                                                    ") are held by another arena or process: ", ErrorText(errno)));
}

}  // namespace hybridgen
