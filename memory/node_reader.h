// Reads the facts of memory nodes from sysfs; concludes nothing.
#ifndef MEMORY_NODE_READER_H_
#define MEMORY_NODE_READER_H_

#include <string>
#include <vector>

#include "memory/memory_node.h"
#include "memory/system_files.h"

namespace hybridgen {

// Nodes that have memory, by id, without provenance, kind and speed. What cannot be read, or contradicts itself, is
// unknown; a node that has no directory, is not online or holds no byte is left out.
std::vector<MemoryNode> ReadMemoryNodes(const SystemRoots& roots);

// read_bandwidth and read_latency below `directory`: of access1 (seen from CPUs), else of access0 (seen from the best
// initiator, which may be a GPU). `files` leads from the access class to the files: "initiators/" for a node, "" for a
// CXL region.
Performance ReadPerformance(const std::string& directory, const std::string& files);

}  // namespace hybridgen

#endif  // MEMORY_NODE_READER_H_
