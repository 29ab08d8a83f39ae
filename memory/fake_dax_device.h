// A DAX device for tests: its files below a fake sysfs, and a regular file in place of the device.
#ifndef MEMORY_FAKE_DAX_DEVICE_H_
#define MEMORY_FAKE_DAX_DEVICE_H_

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "memory/fake_tree.h"

namespace hybridgen {

// Returns the path of the file, e.g. ROOT/dev/dax0.0.
inline std::string MakeDaxDevice(FakeTree& tree, const std::string& name, int64_t bytes, int64_t alignment,
                                 int target_node, const std::string& driver = "device_dax") {
  const std::string device = "sys/bus/dax/devices/" + name;
  tree.Write(device + "/size", absl::StrCat(bytes, "\n"));
  tree.Write(device + "/align", absl::StrCat(alignment, "\n"));
  tree.Write(device + "/target_node", absl::StrCat(target_node, "\n"));
  if (!driver.empty()) tree.Link(device + "/driver", "../../drivers/" + driver);
  tree.Write("dev/" + name, "");
  const std::string path = tree.root() + "/dev/" + name;
  std::filesystem::resize_file(path, bytes);
  return path;
}

}  // namespace hybridgen

#endif  // MEMORY_FAKE_DAX_DEVICE_H_
