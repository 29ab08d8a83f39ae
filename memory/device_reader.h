// Reads memory devices and GPUs from sysfs, and traces the memory of nodes back to the devices that brought it.
#ifndef MEMORY_DEVICE_READER_H_
#define MEMORY_DEVICE_READER_H_

#include <vector>

#include "memory/memory_node.h"
#include "memory/system_files.h"

namespace hybridgen {

// Devices of the dax bus, by name.
std::vector<DaxDevice> ReadDaxDevices(const SystemRoots& roots);

// Regions of the CXL bus, by name, made by firmware or by the driver.
std::vector<CxlRegion> ReadCxlRegions(const SystemRoots& roots);

// Display controllers of the PCI bus (class 0x03), by address; a server's management console is one too.
std::vector<Gpu> ReadGpus(const SystemRoots& roots);

// Adds the provenance of each node's memory, and the size of its memory blocks: DAX devices whose memory belongs to
// it, and memory blocks that lie inside CXL regions.
void TraceProvenance(const SystemRoots& roots, const std::vector<DaxDevice>& dax_devices,
                     const std::vector<CxlRegion>& cxl_regions, std::vector<MemoryNode>& nodes);

}  // namespace hybridgen

#endif  // MEMORY_DEVICE_READER_H_
