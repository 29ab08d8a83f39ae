// Memory of a host tier: pages bound to a NUMA node or a mapped memory device, reserved in full when created.
#ifndef MEMORY_ARENA_H_
#define MEMORY_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memory/address_range.h"
#include "memory/dax_file.h"
#include "memory/device_registration.h"
#include "memory/memory_budget.h"
#include "memory/memory_policy.h"
#include "memory/node_binding.h"
#include "memory/page_nodes.h"
#include "memory/system_files.h"

namespace hybridgen {

enum class HugePages : uint8_t { kOff, kTransparent };

// kBestEffort: kept from swapping by mlock where RLIMIT_MEMLOCK allows it; Arena::locked() tells.
enum class Locking : uint8_t { kOff, kBestEffort };

struct ArenaOptions {
  std::string name = "arena";  // for messages
  int node = -1;               // NUMA node; -1: none, and the binding is ignored
  NodeBinding binding = NodeBinding::kAdvisory;
  HugePages huge_pages = HugePages::kTransparent;
  Locking locking = Locking::kOff;
  // A device to map instead of anonymous memory, e.g. "/dev/dax0.0", from `dax_offset` on, a multiple of its alignment.
  // Its node is the device's; `node` is -1 or the same. Binding, huge pages and budget do not apply; the content is
  // what was there before.
  std::string dax_device;
  int64_t dax_offset = 0;
  // Where it lies: at the start of these reserved addresses, which must be aligned as Arena::Alignment says and longer
  // than the arena. Null: anywhere.
  AddressRange* within = nullptr;

  // What the arena asks of the system, now and later; tests replace it. `calls` outlives the arena.
  // How much may still be reserved for a node; asked before and while pages are touched.
  std::function<MemoryBudget(int node)> budget = MemoryBudgetReader();
  SystemRoots roots;
  const MemoryPolicyCalls* calls = &KernelMemoryPolicy();
};

struct RegistrationOptions {
  int64_t chunk_bytes = int64_t{64} << 30;  // a positive multiple of 2 MiB; drivers fail at hundreds of GiB
  int64_t sample = 0;                       // pages to verify before and after; 0: all
};

struct RegistrationReport {
  PinReport pin;
  // Where pages lay before and after: pinning makes the kernel move pages out of a node whose memory is all movable,
  // silently. nullopt where it does not tell.
  std::optional<PlacementReport> before, after;
};

// Owns its memory; a forked child does not inherit it (MADV_DONTFORK). Memory errors of CXL devices reach the toucher
// as SIGBUS, as for any memory. Arenas may be created concurrently; their population takes turns, so that each sees
// what the others took. Register, Unregister and Repair exclude other calls to the same arena; the memory itself may be
// used meanwhile.
class Arena {
 public:
  // Reserves `bytes` (rounded up to 2 MiB, or a device's alignment if that is larger) and touches every page, so that
  // later use cannot fail.
  // Errors: InvalidArgument (bytes < 1; a node that is absent or outside the cpuset; not the device's node),
  // ResourceExhausted (the budget, node or device is too small: names wanted, available and node), FailedPrecondition
  // (strict binding where the kernel permits none; the device is not in devdax mode or is held), NotFound (no such
  // device), Internal (mmap).
  static absl::StatusOr<std::unique_ptr<Arena>> Create(int64_t bytes, const ArenaOptions& options);

  // Of the start and size of such an arena: 2 MiB, or what the device asks for if that is more. Errors: as Create's
  // about the device.
  static absl::StatusOr<int64_t> Alignment(const ArenaOptions& options);

  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Aligned to 2 MiB.
  std::byte* data() const { return range_->span().data(); }
  int64_t bytes() const { return static_cast<int64_t>(range_->span().size()); }
  // Where pages belong: the node that was bound, or the device's; -1: none, or not known.
  int node() const { return node_; }
  // kNone if there is no node or the kernel permits no binding; kStrict for a device whose node is known.
  NodeBinding binding() const { return binding_; }
  bool locked() const { return locked_; }
  // One line for the log where the kernel permits no binding or no question about it; else empty.
  const std::string& note() const { return note_; }

  // Asks where `sample` pages, spread evenly, lie (0: all pages). A device's pages are told by the device.
  // FailedPrecondition where the kernel does not permit the question.
  absl::StatusOr<PlacementReport> VerifyPlacement(int64_t sample) const;

  // Moves pages that lie elsewhere to the arena's node, as far as it has room. FailedPrecondition: bound to no node, a
  // device, registered (pinned pages do not move), or the kernel permits no move.
  absl::StatusOr<RepairReport> Repair();

  // Registers the memory with a device, which outlives the arena. A refused chunk is reported and is no error. Chunks
  // that pinning would move off the arena's node are refused if there is no room for them elsewhere (pin_room.h).
  // Errors: InvalidArgument (options), FailedPrecondition (registered already).
  absl::StatusOr<RegistrationReport> Register(DeviceRegistrar& registrar, const RegistrationOptions& options = {});
  void Unregister() { registration_.reset(); }
  // Whether the device may read and write [data, data + bytes): it lies in one registered chunk.
  bool Registered(const std::byte* data, int64_t bytes) const {
    return registration_ != nullptr && registration_->Covers(data, bytes);
  }

 private:
  explicit Arena(const ArenaOptions& options)
      : name_(options.name), budget_(options.budget), roots_(options.roots), calls_(*options.calls) {}

  // Addresses for `bytes`, all as the options say.
  absl::Status Reserve(int64_t bytes, int64_t alignment, const ArenaOptions& options);
  absl::Status MapDevice(int64_t bytes, const ArenaOptions& options);
  absl::Status MapMemory(int64_t bytes, const ArenaOptions& options);
  absl::Status RequireStrict();
  absl::Status WithName(const absl::Status& status) const;

  const std::string name_;
  const std::function<MemoryBudget(int node)> budget_;
  const SystemRoots roots_;
  const MemoryPolicyCalls& calls_;
  // In this order: what is later is undone earlier.
  std::unique_ptr<DaxFile> dax_;
  std::unique_ptr<AddressRange> range_;
  std::unique_ptr<Registration> registration_;
  int node_ = -1;
  NodeBinding binding_ = NodeBinding::kNone;
  bool locked_ = false;
  std::string note_;
};

}  // namespace hybridgen

#endif  // MEMORY_ARENA_H_
