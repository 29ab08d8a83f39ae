// What is known of the machine's memory nodes and memory devices. Plain data; every conclusion carries its evidence.
#ifndef MEMORY_MEMORY_NODE_H_
#define MEMORY_MEMORY_NODE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace hybridgen {

// What a node's memory is. A node without CPUs may be CXL, HBM or persistent memory, or DRAM that lies apart.
enum class MemoryKind : uint8_t { kUnknown, kDram, kCxl, kHbm, kPersistent };
constexpr MemoryKind kMemoryKinds[] = {MemoryKind::kUnknown, MemoryKind::kDram, MemoryKind::kCxl, MemoryKind::kHbm,
                                       MemoryKind::kPersistent};
const char* MemoryKindName(MemoryKind kind);

enum class NodeCpus : uint8_t { kUnknown, kNone, kSome };

// A node's speed for CPUs next to the machine's DRAM. Apart from the kind: slow memory need not be CXL.
enum class RelativeSpeed : uint8_t { kUnknown, kSlower, kSimilar, kFaster };
const char* RelativeSpeedName(RelativeSpeed speed);

// Whether all memory of a node lies in the movable zone. kYes: a long-term pin makes the kernel move the pages to
// another node, silently.
enum class MovableOnly : uint8_t { kUnknown, kNo, kYes };

// What firmware or a device says of its own memory (HMAT or CDAT), as seen from the best initiator.
struct Performance {
  std::optional<int64_t> read_megabytes_per_second;
  std::optional<int64_t> read_nanoseconds;
  std::string source;  // directory of the files; empty: nothing is known
};

struct HugePagePool {
  int64_t page_bytes = 0;
  std::optional<int64_t> total_pages;
  std::optional<int64_t> free_pages;
};

// Where a node's memory comes from, as a device tells. The sources look at the same memory from two sides.
enum class ProvenanceSource : uint8_t { kDaxDevice, kCxlRegion };
struct Provenance {
  ProvenanceSource source = ProvenanceSource::kDaxDevice;
  MemoryKind kind = MemoryKind::kUnknown;  // kUnknown: the device does not tell, or what it tells cannot be read
  int64_t bytes = 0;                       // at most as much of the node's memory
  std::string why;
};

struct MemoryNode {
  int id = 0;
  std::string directory;  // in sysfs
  NodeCpus has_cpus = NodeCpus::kUnknown;
  std::vector<int> cpus;
  std::optional<int64_t> total_bytes;  // what the kernel manages; may leave out memory it has not initialised yet
  std::optional<int64_t> free_bytes;
  std::optional<int64_t> block_bytes;  // of its memory blocks, online or not
  std::map<int, int> distances;        // to every online node; 10 is the node itself. Empty: unknown.
  Performance performance;
  std::optional<int> kernel_tier;  // memory_tierN: a larger N is slower; N itself means nothing
  MovableOnly movable_only = MovableOnly::kUnknown;
  std::string movable_why;
  std::vector<HugePagePool> huge_pages;  // by page size
  std::vector<Provenance> provenance;

  // Concluded from the facts above, or set by the operator.
  MemoryKind kind = MemoryKind::kUnknown;
  std::string kind_why;
  RelativeSpeed speed = RelativeSpeed::kUnknown;
  std::string speed_why;
};

// How a DAX device is used. kNode: its memory belongs to the target node. kMapped: programs map /dev/NAME; the kernel
// does not tell where such pages lie (it names node 0), only target_node does.
enum class DaxUse : uint8_t { kUnknown, kNode, kMapped };
const char* DaxUseName(DaxUse use);

struct DaxDevice {
  std::string name;  // /dev/NAME
  MemoryKind kind = MemoryKind::kUnknown;
  std::string kind_why;
  DaxUse use = DaxUse::kUnknown;
  std::optional<int> target_node;
  std::optional<int64_t> bytes;
  std::optional<int64_t> alignment;  // of mappings, in bytes; a power of two
  Performance performance;
};

struct CxlRegion {
  std::string name;
  std::string directory;                   // in sysfs
  MemoryKind kind = MemoryKind::kUnknown;  // kCxl or kPersistent; kUnknown: its mode cannot be read
  std::optional<int64_t> start;            // physical address
  std::optional<int64_t> bytes;
};

struct Gpu {
  std::string address;  // PCI
  std::string vendor;   // ids as sysfs writes them, "0x10de"; empty: unknown
  std::string device;
  std::optional<int> node;
};

enum class TransparentHugePages : uint8_t { kUnknown, kNever, kMadvise, kAlways };
const char* TransparentHugePagesName(TransparentHugePages mode);

struct Topology {
  std::vector<MemoryNode> nodes;  // with memory, by id; empty: the kernel does not tell
  std::vector<DaxDevice> dax_devices;
  std::vector<CxlRegion> cxl_regions;
  std::vector<Gpu> gpus;
  TransparentHugePages transparent_huge_pages = TransparentHugePages::kUnknown;
  std::optional<int64_t> machine_total_bytes;  // of /proc/meminfo
  std::optional<int64_t> machine_available_bytes;
};

}  // namespace hybridgen

#endif  // MEMORY_MEMORY_NODE_H_
