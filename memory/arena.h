// Memory of a host tier: anonymous pages, bound to a NUMA node if asked, reserved in full when created.
#ifndef MEMORY_ARENA_H_
#define MEMORY_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memory/memory_budget.h"

namespace hybridgen {

// What becomes of pages that the node cannot hold. No policy binds hard: past a node's capacity the kernel would kill
// a process rather than refuse.
enum class NodeBinding : uint8_t {
  kNone,      // wherever the process allocates
  kAdvisory,  // the node is preferred; pages may lie elsewhere, VerifyPlacement tells
  kStrict,    // every page lies on the node, or Create fails
};

enum class HugePages : uint8_t { kOff, kTransparent };

// kBestEffort: kept from migration and swapping by mlock where RLIMIT_MEMLOCK allows it; Arena::locked() tells.
enum class Locking : uint8_t { kOff, kBestEffort };

struct ArenaOptions {
  std::string name = "arena";  // for messages
  int node = -1;               // NUMA node; -1: none, and the binding is ignored
  NodeBinding binding = NodeBinding::kAdvisory;
  HugePages huge_pages = HugePages::kTransparent;
  Locking locking = Locking::kOff;
  // How much may still be reserved for a node; asked before and while pages are touched.
  std::function<MemoryBudget(int node)> budget = [](int node) { return ReadMemoryBudget(node); };
};

// Where sampled pages lie.
struct PlacementReport {
  std::map<int, int64_t> pages_on_node;
  int64_t pages_unknown = 0;  // the kernel told no node
};

// Owns its memory; a forked child does not inherit it (MADV_DONTFORK). Memory errors of CXL devices reach the toucher
// as SIGBUS, as for any memory.
class Arena {
 public:
  // Reserves `bytes` (rounded up to 2 MiB) and touches every page, so that later use cannot fail.
  // Errors: InvalidArgument (bytes < 1, a node that this process may not use), ResourceExhausted (the budget or the
  // node is too small: names wanted, available and node), FailedPrecondition (strict binding where the kernel permits
  // none), Internal (mmap).
  static absl::StatusOr<std::unique_ptr<Arena>> Create(int64_t bytes, const ArenaOptions& options);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Aligned to 2 MiB.
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  int node() const { return node_; }
  // kNone if there is no node or the kernel permits no binding.
  NodeBinding binding() const { return binding_; }
  bool locked() const { return locked_; }

  // Asks the kernel where `sample` pages, spread evenly, lie (0: all pages).
  // FailedPrecondition where it does not permit the question.
  absl::StatusOr<PlacementReport> VerifyPlacement(int64_t sample) const;

 private:
  Arena(std::byte* data, int64_t bytes) : data_(data), bytes_(bytes) {}

  absl::Status Bind(const ArenaOptions& options);
  absl::Status Populate(const ArenaOptions& options);

  std::byte* data_;
  int64_t bytes_;
  int node_ = -1;
  NodeBinding binding_ = NodeBinding::kNone;
  bool locked_ = false;
};

}  // namespace hybridgen

#endif  // MEMORY_ARENA_H_
