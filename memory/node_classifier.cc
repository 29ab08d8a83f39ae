// From facts to kind and speed.
#include "memory/node_classifier.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "memory/system_files.h"

namespace hybridgen {
namespace {

// What the machine's DRAM offers at its best; nullopt: no DRAM node tells.
struct DramReference {
  std::optional<int64_t> megabytes_per_second;
  std::optional<int64_t> nanoseconds;
  std::optional<int> fastest_tier;
  std::optional<int> slowest_tier;
};

template <typename T, typename Better>
void Keep(std::optional<T>& best, const std::optional<T>& value, Better better) {
  if (value && (!best || better(*value, *best))) best = value;
}

DramReference FindDram(const std::vector<MemoryNode>& nodes) {
  DramReference dram;
  for (const MemoryNode& node : nodes) {
    if (node.kind != MemoryKind::kDram) continue;
    Keep(dram.megabytes_per_second, node.performance.read_megabytes_per_second, std::greater<>());
    Keep(dram.nanoseconds, node.performance.read_nanoseconds, std::less<>());
    Keep(dram.fastest_tier, node.kernel_tier, std::less<>());
    Keep(dram.slowest_tier, node.kernel_tier, std::greater<>());
  }
  return dram;
}

std::string Reasons(const MemoryNode& node) {
  return absl::StrJoin(node.provenance, "; ",
                       [](std::string* out, const Provenance& provenance) { out->append(provenance.why); });
}

// All of the node's memory, on- or offline: MemTotal may leave out memory that is not initialised yet.
std::optional<int64_t> NodeBytes(const MemoryNode& node) {
  std::optional<int64_t> bytes = node.total_bytes;
  Keep(bytes, node.block_bytes, std::greater<>());
  return bytes;
}

// The kind, if the devices of one source account for every byte and all agree.
void ConcludeFromProvenance(MemoryNode& node) {
  std::set<MemoryKind> kinds;
  std::map<ProvenanceSource, int64_t> bytes;
  for (const Provenance& provenance : node.provenance) {
    if (provenance.kind == MemoryKind::kUnknown) continue;
    kinds.insert(provenance.kind);
    bytes[provenance.source] += provenance.bytes;
  }
  const std::optional<int64_t> all = NodeBytes(node);
  const bool proven = kinds.size() == 1 && all && node.total_bytes &&
                      std::any_of(bytes.begin(), bytes.end(), [&](const auto& entry) { return entry.second >= *all; });
  if (proven) {
    node.kind = *kinds.begin();
    node.kind_why = Reasons(node);
  } else if (kinds.size() > 1) {
    node.kind_why = absl::StrCat("memory of several kinds, or devices that disagree: ", Reasons(node));
  } else if (kinds.size() == 1) {
    node.kind_why = absl::StrCat("only part of its memory is accounted for: ", Reasons(node));
  } else {
    node.kind_why = Reasons(node);
  }
}

void ConcludeKind(MemoryNode& node) {
  const std::string cpulist = node.directory + "/cpulist";
  if (!node.provenance.empty()) {
    ConcludeFromProvenance(node);
  } else if (node.has_cpus == NodeCpus::kSome) {
    node.kind = MemoryKind::kDram;
    node.kind_why = absl::StrCat("has CPUs, and no device brought its memory: ", cpulist);
  } else if (node.has_cpus == NodeCpus::kNone) {
    node.kind_why = absl::StrCat("has no CPUs (", cpulist,
                                 ") and no device names it: CXL, persistent memory or DRAM that lies apart");
  } else {
    node.kind_why = absl::StrCat("whether it has CPUs cannot be read: ", cpulist);
  }
}

// Bandwidth decides, latency where bandwidths are alike: reading K and V is bound by bandwidth.
void ConcludeSpeed(const DramReference& dram, MemoryNode& node) {
  if (node.kind == MemoryKind::kDram && node.has_cpus == NodeCpus::kSome) {
    node.speed = RelativeSpeed::kSimilar;
    node.speed_why = "is the machine's DRAM";
    return;
  }
  const auto conclude = [&node](RelativeSpeed speed, std::string why) {
    node.speed = speed;
    node.speed_why = std::move(why);
  };
  const Performance& own = node.performance;
  if (own.read_megabytes_per_second && dram.megabytes_per_second) {
    const int64_t bandwidth = *own.read_megabytes_per_second;
    const std::string why = absl::StrCat("reads ", bandwidth, " MB/s, DRAM ", *dram.megabytes_per_second,
                                         " MB/s: ", own.source, "read_bandwidth");
    if (bandwidth > 2 * *dram.megabytes_per_second) return conclude(RelativeSpeed::kFaster, why);
    if (2 * bandwidth < *dram.megabytes_per_second) return conclude(RelativeSpeed::kSlower, why);
    if (own.read_nanoseconds && dram.nanoseconds) {
      const std::string latency = absl::StrCat(why, "; answers in ", *own.read_nanoseconds, " ns, DRAM in ",
                                               *dram.nanoseconds, " ns: ", own.source, "read_latency");
      const bool slower = 2 * *own.read_nanoseconds > 3 * *dram.nanoseconds;
      return conclude(slower ? RelativeSpeed::kSlower : RelativeSpeed::kSimilar, latency);
    }
  }
  if (node.kernel_tier && dram.fastest_tier) {
    const std::string why = absl::StrCat("the kernel has it in memory_tier", *node.kernel_tier, ", DRAM in memory_tier",
                                         *dram.fastest_tier);
    if (*node.kernel_tier < *dram.fastest_tier) return conclude(RelativeSpeed::kFaster, why);
    if (*node.kernel_tier > *dram.slowest_tier) return conclude(RelativeSpeed::kSlower, why);
  }
  conclude(RelativeSpeed::kUnknown, "neither firmware's bandwidths nor the kernel's tiers tell it from DRAM");
}

// No kind of memory but HBM reads at more than twice the rate of a socket's DRAM. Only firmware's bandwidths say so.
void ConcludeHbm(const DramReference& dram, MemoryNode& node) {
  if (node.kind != MemoryKind::kUnknown || node.has_cpus != NodeCpus::kNone) return;
  const bool partly_known = std::any_of(node.provenance.begin(), node.provenance.end(), [](const Provenance& p) {
    return p.kind != MemoryKind::kUnknown || p.source == ProvenanceSource::kCxlRegion;
  });
  const std::optional<int64_t>& bandwidth = node.performance.read_megabytes_per_second;
  if (partly_known || node.speed != RelativeSpeed::kFaster || !bandwidth || !dram.megabytes_per_second) return;
  node.kind = MemoryKind::kHbm;
  node.kind_why = absl::StrCat("has no CPUs (", node.directory, "/cpulist) and ", node.speed_why);
}

}  // namespace

absl::StatusOr<KindOverrides> ParseKindOverrides(absl::string_view text) {
  KindOverrides overrides;
  text = absl::StripAsciiWhitespace(text);
  if (text.empty()) return overrides;
  for (const absl::string_view item : absl::StrSplit(text, ',')) {
    const auto refuse = [&](absl::string_view problem) {
      const auto name = [](std::string* out, MemoryKind kind) { out->append(MemoryKindName(kind)); };
      return absl::InvalidArgumentError(absl::StrCat("memory topology: item '", item, "' of '", text, "' ", problem,
                                                     "; accepted: NODE:KIND with NODE 0 to 1023, each ",
                                                     "once, and KIND one of ", absl::StrJoin(kMemoryKinds, ", ", name),
                                                     ", such as 2:cxl,3:hbm"));
    };
    const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(item, absl::MaxSplits(':', 1));
    const std::optional<std::vector<int>> ids = ParseIdList(parts.first);
    if (!ids || ids->size() != 1 || absl::StrContains(parts.first, "-")) return refuse("names no node");
    const absl::string_view wanted = absl::StripAsciiWhitespace(parts.second);
    const auto* const kind = std::find_if(std::begin(kMemoryKinds), std::end(kMemoryKinds),
                                          [&](MemoryKind known) { return wanted == MemoryKindName(known); });
    if (kind == std::end(kMemoryKinds)) return refuse("names no kind of memory");
    if (!overrides.emplace(ids->front(), *kind).second) return refuse("names a node for the second time");
  }
  return overrides;
}

absl::Status ClassifyNodes(const KindOverrides& overrides, std::vector<MemoryNode>& nodes) {
  KindOverrides unused = overrides;
  for (MemoryNode& node : nodes) {
    ConcludeKind(node);
    const auto said = overrides.find(node.id);
    if (said == overrides.end()) continue;
    node.kind = said->second;
    node.kind_why = "set by the operator";
    unused.erase(node.id);
  }
  if (!unused.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "memory topology: node ", unused.begin()->first, " is named but has no memory; accepted: nodes ",
        absl::StrJoin(nodes, ", ", [](std::string* out, const MemoryNode& node) { absl::StrAppend(out, node.id); })));
  }
  const DramReference dram = FindDram(nodes);
  for (MemoryNode& node : nodes) {
    ConcludeSpeed(dram, node);
    if (overrides.count(node.id) == 0) ConcludeHbm(dram, node);
  }
  return absl::OkStatus();
}

}  // namespace hybridgen
