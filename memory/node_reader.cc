// The files of /sys/devices/system/node and the kernel's memory tiers.
#include "memory/node_reader.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace hybridgen {
namespace {

// Beyond these a number is garbage, not hardware: 100 TB/s and one millisecond.
constexpr int64_t kMostMegabytesPerSecond = 100'000'000;
constexpr int64_t kMostNanoseconds = 1'000'000;
constexpr int kOwnDistance = 10;  // of ACPI's SLIT, as is the largest, 255: unreachable
constexpr int kMostDistance = 255;

using IdList = std::optional<std::vector<int>>;

bool Contains(const std::vector<int>& ids, int id) { return std::binary_search(ids.begin(), ids.end(), id); }

// A count in [least, most].
std::optional<int64_t> ReadBounded(const std::string& path, int64_t least, int64_t most) {
  const std::optional<int64_t> count = ReadCount(path);
  return count && *count >= least && *count <= most ? count : std::nullopt;
}

void ReadMeminfo(MemoryNode& node) {
  const std::optional<std::string> meminfo = ReadSystemFile(node.directory + "/meminfo");
  if (!meminfo) return;
  node.total_bytes = ParseKibibytes(*meminfo, "MemTotal:");
  node.free_bytes = ParseKibibytes(*meminfo, "MemFree:");
  if (node.total_bytes && node.free_bytes && *node.free_bytes > *node.total_bytes) {
    node.total_bytes = std::nullopt;  // one of them lies
    node.free_bytes = std::nullopt;
  }
}

// CPUs as the node lists them; a list that contradicts has_cpu proves nothing.
void ReadCpus(MemoryNode& node, const IdList& nodes_with_cpus) {
  const IdList cpus = ReadIdList(node.directory + "/cpulist");
  if (!cpus) return;
  if (nodes_with_cpus && Contains(*nodes_with_cpus, node.id) == cpus->empty()) return;
  node.has_cpus = cpus->empty() ? NodeCpus::kNone : NodeCpus::kSome;
  node.cpus = *cpus;
}

// One line of distances to the online nodes in ascending order, which need not be 0, 1, 2.
void ReadDistances(MemoryNode& node, const IdList& online) {
  const std::optional<std::string> text = ReadSystemFile(node.directory + "/distance");
  if (!text || !online) return;
  const std::vector<std::string> words = absl::StrSplit(*text, absl::ByAnyChar(" \n"), absl::SkipEmpty());
  if (words.size() != online->size()) return;
  std::map<int, int> distances;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::optional<int64_t> distance = ParseCount(words[i]);
    if (!distance || *distance < kOwnDistance || *distance > kMostDistance) return;
    if ((*online)[i] == node.id && *distance != kOwnDistance) return;
    distances[(*online)[i]] = static_cast<int>(*distance);
  }
  node.distances = std::move(distances);
}

void ReadMovableOnly(MemoryNode& node, const std::string& file, const IdList& normal) {
  if (!normal || normal->empty()) return;  // the kernel itself needs normal memory somewhere
  const bool listed = Contains(*normal, node.id);
  node.movable_only = listed ? MovableOnly::kNo : MovableOnly::kYes;
  node.movable_why = absl::StrCat(file, listed ? " lists the node" : " does not list the node");
}

void ReadHugePages(MemoryNode& node) {
  for (const std::string& name : ListDirectory(node.directory + "/hugepages")) {
    absl::string_view size = name;
    if (!absl::ConsumePrefix(&size, "hugepages-") || !absl::ConsumeSuffix(&size, "kB")) continue;
    const std::optional<int64_t> page = ParseKibibytes(absl::StrCat("size: ", size), "size:");
    if (!page || *page == 0) continue;
    const std::string directory = absl::StrCat(node.directory, "/hugepages/", name, "/");
    HugePagePool pool;
    pool.page_bytes = *page;
    pool.total_pages = ReadBounded(directory + "nr_hugepages", 0, kMostBytes / *page);
    pool.free_pages = ReadBounded(directory + "free_hugepages", 0, kMostBytes / *page);
    node.huge_pages.push_back(pool);
  }
  std::sort(node.huge_pages.begin(), node.huge_pages.end(),
            [](const HugePagePool& a, const HugePagePool& b) { return a.page_bytes < b.page_bytes; });
}

// Each memory_tierN lists its nodes. A node in two lists is in none.
void ReadKernelTiers(std::vector<MemoryNode>& nodes, const SystemRoots& roots) {
  const std::string directory = roots.sysfs + "/devices/virtual/memory_tiering/";
  std::map<int, std::vector<int>> tiers_of_node;
  for (const std::string& name : ListDirectory(directory)) {
    absl::string_view number = name;
    int tier = 0;
    if (!absl::ConsumePrefix(&number, "memory_tier") || !absl::SimpleAtoi(number, &tier) || tier < 0) continue;
    const IdList members = ReadIdList(absl::StrCat(directory, name, "/nodelist"));
    if (!members) continue;
    for (const int id : *members) tiers_of_node[id].push_back(tier);
  }
  for (MemoryNode& node : nodes) {
    const std::vector<int>& tiers = tiers_of_node[node.id];
    if (tiers.size() == 1) node.kernel_tier = tiers[0];
  }
}

}  // namespace

Performance ReadPerformance(const std::string& directory, const std::string& files) {
  Performance performance;
  for (const char* access_class : {"access1", "access0"}) {
    const std::string source = absl::StrCat(directory, "/", access_class, "/", files);
    // Firmware that knows nothing writes 0.
    performance.read_megabytes_per_second = ReadBounded(source + "read_bandwidth", 1, kMostMegabytesPerSecond);
    performance.read_nanoseconds = ReadBounded(source + "read_latency", 1, kMostNanoseconds);
    if (!performance.read_megabytes_per_second && !performance.read_nanoseconds) continue;
    performance.source = source;
    break;
  }
  return performance;
}

std::vector<MemoryNode> ReadMemoryNodes(const SystemRoots& roots) {
  const std::string directory = roots.sysfs + "/devices/system/node/";
  const IdList online = ReadIdList(directory + "online");
  const IdList with_cpus = ReadIdList(directory + "has_cpu");
  const std::string normal_file = directory + "has_normal_memory";
  const IdList normal = ReadIdList(normal_file);
  std::vector<MemoryNode> nodes;
  // has_memory, not online: a node whose memory was taken offline stays online.
  for (const int id : ReadIdList(directory + "has_memory").value_or(std::vector<int>())) {
    if (online && !Contains(*online, id)) continue;
    MemoryNode node;
    node.id = id;
    node.directory = absl::StrCat(directory, "node", id);
    if (!RealPath(node.directory)) continue;
    ReadMeminfo(node);
    if (node.total_bytes == 0) continue;
    ReadCpus(node, with_cpus);
    ReadDistances(node, online);
    ReadMovableOnly(node, normal_file, normal);
    ReadHugePages(node);
    node.performance = ReadPerformance(node.directory, "initiators/");
    nodes.push_back(std::move(node));
  }
  ReadKernelTiers(nodes, roots);
  return nodes;
}

}  // namespace hybridgen
