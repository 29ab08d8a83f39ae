// The dax, cxl and pci buses, and the memory blocks of the nodes.
#include "memory/device_reader.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "memory/node_reader.h"

namespace hybridgen {
namespace {

constexpr int kMostNodeId = 1023;

// "prefix12" -> 12, and nothing else: nodeN/ holds memory_failure/ beside memory34.
std::optional<int64_t> NumberAfter(absl::string_view prefix, absl::string_view name) {
  if (!absl::ConsumePrefix(&name, prefix) || name.empty()) return std::nullopt;
  return std::all_of(name.begin(), name.end(), absl::ascii_isdigit) ? ParseCount(name) : std::nullopt;
}

std::optional<int> ReadNodeId(const std::string& path) {
  const std::optional<int64_t> id = ReadCount(path);  // -1: none
  if (!id || *id > kMostNodeId) return std::nullopt;
  return static_cast<int>(*id);
}

std::optional<int64_t> ReadHex(const std::string& path) {
  const std::optional<std::string> text = ReadSystemFile(path);
  return text ? ParseHex(*text) : std::nullopt;
}

bool IsPowerOfTwo(int64_t value) { return value > 0 && value < kMostBytes && (value & (value - 1)) == 0; }

// What the device's place in the tree says of its memory.
void ConcludeDaxKind(const std::string& path, DaxDevice& device) {
  if (absl::StrContains(path, "/ndbus")) {
    device.kind = MemoryKind::kPersistent;
    device.kind_why = absl::StrCat("on the nvdimm bus: ", path);
  } else if (absl::StrContains(path, "/ACPI0017:")) {
    device.kind = MemoryKind::kCxl;
    device.kind_why = absl::StrCat("below the CXL root ACPI0017: ", path);
  } else if (absl::StrContains(path, "/hmem")) {
    device.kind_why = absl::StrCat("set aside by firmware, CXL or HBM: ", path);
  } else {
    device.kind_why = absl::StrCat("on no known bus: ", path);
  }
}

// The directory of the CXL region above `path`; empty if there is none.
std::string RegionDirectory(const std::string& path) {
  const size_t region = path.find("/region", path.find("/ACPI0017:"));
  if (region == std::string::npos || absl::StrContains(path, "/ndbus")) return "";
  return path.substr(0, path.find('/', region + 1));
}

// Memory blocks [first, first + 1, ...) of one node, by number.
std::vector<int64_t> ReadBlocks(const MemoryNode& node) {
  std::vector<int64_t> blocks;
  for (const std::string& name : ListDirectory(node.directory)) {
    if (const std::optional<int64_t> block = NumberAfter("memory", name)) blocks.push_back(*block);
  }
  std::sort(blocks.begin(), blocks.end());
  return blocks;
}

void TraceDaxDevice(const DaxDevice& device, std::vector<MemoryNode>& nodes) {
  if (device.use == DaxUse::kMapped || !device.target_node) return;
  for (MemoryNode& node : nodes) {
    if (node.id != *device.target_node) continue;
    if (device.use == DaxUse::kNode) {
      node.provenance.push_back({ProvenanceSource::kDaxDevice, device.kind, device.bytes.value_or(0),
                                 absl::StrCat("memory of ", device.name, " (", device.kind_why, ")")});
    } else {
      node.provenance.push_back(
          {ProvenanceSource::kDaxDevice, MemoryKind::kUnknown, 0,
           absl::StrCat(device.name, " targets the node, but whether its memory is in it cannot be read (no driver)")});
    }
  }
}

void TraceRegions(const std::vector<int64_t>& blocks, int64_t block_bytes, const std::vector<CxlRegion>& regions,
                  MemoryNode& node) {
  for (const CxlRegion& region : regions) {
    if (!region.start || !region.bytes) continue;
    const int64_t end = *region.start + *region.bytes;
    const int64_t inside = std::count_if(blocks.begin(), blocks.end(), [&](int64_t block) {
      return block < kMostBytes / block_bytes && block * block_bytes >= *region.start &&
             (block + 1) * block_bytes <= end;
    });
    if (inside == 0) continue;
    node.provenance.push_back({ProvenanceSource::kCxlRegion, region.kind, inside * block_bytes,
                               absl::StrCat(inside, " of its ", blocks.size(), " memory blocks lie inside CXL ",
                                            region.name, " (", region.directory, "/resource)",
                                            region.kind == MemoryKind::kUnknown ? ", whose mode cannot be read" : "")});
  }
}

}  // namespace

std::vector<DaxDevice> ReadDaxDevices(const SystemRoots& roots) {
  const std::string directory = roots.sysfs + "/bus/dax/devices/";
  std::vector<DaxDevice> devices;
  for (const std::string& name : ListDirectory(directory)) {
    const std::optional<std::string> path = RealPath(directory + name);
    if (!path) continue;
    DaxDevice device;
    device.name = name;
    ConcludeDaxKind(*path, device);
    const std::string driver = LinkName(*path + "/driver").value_or("");
    if (driver == "kmem") device.use = DaxUse::kNode;
    if (driver == "device_dax") device.use = DaxUse::kMapped;
    device.target_node = ReadNodeId(*path + "/target_node");
    device.bytes = ReadCount(*path + "/size");
    if (device.bytes && (*device.bytes == 0 || *device.bytes >= kMostBytes)) device.bytes = std::nullopt;
    device.alignment = ReadCount(*path + "/align");
    if (device.alignment && !IsPowerOfTwo(*device.alignment)) device.alignment = std::nullopt;
    const std::string region = RegionDirectory(*path);
    if (!region.empty()) device.performance = ReadPerformance(region, "");
    devices.push_back(std::move(device));
  }
  return devices;
}

std::vector<CxlRegion> ReadCxlRegions(const SystemRoots& roots) {
  const std::string directory = roots.sysfs + "/bus/cxl/devices/";
  std::vector<CxlRegion> regions;
  for (const std::string& name : ListDirectory(directory)) {
    if (!NumberAfter("region", name)) continue;
    CxlRegion region;
    region.name = name;
    region.directory = directory + name;
    const std::string mode =
        std::string(absl::StripAsciiWhitespace(ReadSystemFile(region.directory + "/mode").value_or("")));
    if (mode == "ram") region.kind = MemoryKind::kCxl;
    if (mode == "pmem") region.kind = MemoryKind::kPersistent;
    region.start = ReadHex(region.directory + "/resource");
    region.bytes = ReadHex(region.directory + "/size");
    regions.push_back(std::move(region));
  }
  return regions;
}

std::vector<Gpu> ReadGpus(const SystemRoots& roots) {
  constexpr int64_t kDisplayController = 0x03;
  const std::string directory = roots.sysfs + "/bus/pci/devices/";
  std::vector<Gpu> gpus;
  for (const std::string& address : ListDirectory(directory)) {
    const std::string device = directory + address + "/";
    const std::optional<int64_t> pci_class = ReadHex(device + "class");  // base class, subclass, interface: a byte each
    if (!pci_class || *pci_class >> 16 != kDisplayController) continue;
    const auto id = [&device](const char* file) {
      const std::optional<int64_t> number = ReadHex(device + file);
      return number && *number <= 0xffff ? absl::StrCat("0x", absl::Hex(*number, absl::kZeroPad4)) : std::string();
    };
    gpus.push_back({address, id("vendor"), id("device"), ReadNodeId(device + "numa_node")});
  }
  return gpus;
}

void TraceProvenance(const SystemRoots& roots, const std::vector<DaxDevice>& dax_devices,
                     const std::vector<CxlRegion>& cxl_regions, std::vector<MemoryNode>& nodes) {
  for (const DaxDevice& device : dax_devices) TraceDaxDevice(device, nodes);
  const std::optional<int64_t> block_bytes = ReadHex(roots.sysfs + "/devices/system/memory/block_size_bytes");
  if (!block_bytes || *block_bytes == 0) return;
  for (MemoryNode& node : nodes) {
    const std::vector<int64_t> blocks = ReadBlocks(node);
    if (blocks.empty() || blocks.back() >= kMostBytes / *block_bytes) continue;
    node.block_bytes = static_cast<int64_t>(blocks.size()) * *block_bytes;
    TraceRegions(blocks, *block_bytes, cxl_regions, node);
  }
}

}  // namespace hybridgen
