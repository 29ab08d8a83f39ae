// Puts addresses, binding, pages and registration together, in the order that the kernel needs.
#include "memory/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "memory/pin_room.h"
#include "memory/populate.h"

namespace hybridgen {
namespace {

// One arena at a time takes memory: two that are checked against the same free bytes would spend them twice.
std::mutex& SpendingMutex() {
  static std::mutex mutex;
  return mutex;
}

int64_t AlignmentOf(const DaxFile& dax) { return std::max(dax.alignment(), kHugePageBytes); }

absl::Status TooLittle(int node, int64_t wanted, const MemoryBudget& budget) {
  return absl::ResourceExhaustedError(
      absl::StrCat("wanted ", wanted, " bytes more, available ", budget.bytes.value_or(0), " bytes on ",
                   node < 0 ? "any node" : absl::StrCat("node ", node), " (limited by ", budget.limited_by, " with ",
                   budget.free_bytes, " bytes free): ask for a smaller tier or free memory"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Arena>> Arena::Create(int64_t bytes, const ArenaOptions& options) {
  constexpr int64_t kMostArenaBytes = int64_t{1} << 46;  // keeps the arithmetic far from overflow
  std::unique_ptr<Arena> arena(new Arena(options));
  if (bytes < 1 || bytes > kMostArenaBytes) {
    return arena->WithName(
        absl::InvalidArgumentError(absl::StrCat(bytes, " bytes must be in [1, ", kMostArenaBytes, "]")));
  }
  const absl::Status status =
      options.dax_device.empty() ? arena->MapMemory(bytes, options) : arena->MapDevice(bytes, options);
  if (!status.ok()) return arena->WithName(status);
  arena->locked_ = options.locking == Locking::kBestEffort && mlock(arena->data(), arena->bytes()) == 0;
  return arena;
}

absl::Status Arena::WithName(const absl::Status& status) const {
  return absl::Status(status.code(), absl::StrCat("Arena ", name_, ": ", status.message()));
}

absl::StatusOr<int64_t> Arena::Alignment(const ArenaOptions& options) {
  if (options.dax_device.empty()) return kHugePageBytes;
  absl::StatusOr<std::unique_ptr<DaxFile>> dax = DaxFile::Open(options.dax_device, options.roots);
  if (!dax.ok()) return dax.status();
  return AlignmentOf(**dax);
}

absl::Status Arena::Reserve(int64_t bytes, int64_t alignment, const ArenaOptions& options) {
  absl::StatusOr<std::unique_ptr<AddressRange>> range =
      options.within != nullptr ? options.within->Take(bytes) : AddressRange::Reserve(bytes, alignment);
  if (!range.ok()) return range.status();
  range_ = *std::move(range);
  if (reinterpret_cast<uintptr_t>(data()) % alignment != 0) {
    return absl::InvalidArgumentError(absl::StrCat("the addresses given must be aligned to ", alignment, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status Arena::MapDevice(int64_t bytes, const ArenaOptions& options) {
  absl::StatusOr<std::unique_ptr<DaxFile>> dax = DaxFile::Open(options.dax_device, roots_);
  if (!dax.ok()) return dax.status();
  dax_ = *std::move(dax);
  if (options.node >= 0 && dax_->node() && options.node != *dax_->node()) {
    return absl::InvalidArgumentError(absl::StrCat(options.dax_device, " belongs to node ", *dax_->node(),
                                                   ", not to node ", options.node, ": leave the node out"));
  }
  const int64_t alignment = AlignmentOf(*dax_);
  bytes = (bytes + alignment - 1) / alignment * alignment;
  if (absl::Status status = dax_->Hold(options.dax_offset, bytes); !status.ok()) return status;
  if (absl::Status status = Reserve(bytes, alignment, options); !status.ok()) return status;
  if (absl::Status status = range_->MapFile(dax_->fd(), options.dax_offset); !status.ok()) return status;
  node_ = dax_->node().value_or(-1);
  binding_ = node_ < 0 ? NodeBinding::kNone : NodeBinding::kStrict;
  return PopulatePages(range_->span(), [](int64_t) { return absl::OkStatus(); });
}

absl::Status Arena::MapMemory(int64_t bytes, const ArenaOptions& options) {
  const int node = options.binding == NodeBinding::kNone ? -1 : options.node;
  if (node >= 0) {
    if (absl::Status status = CheckNode(node, calls_, roots_); !status.ok()) return status;
  }
  bytes = (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  const auto admit = [this, node](int64_t wanted, int64_t left) {
    const MemoryBudget budget = budget_(node);
    return budget.bytes && *budget.bytes < wanted ? TooLittle(node, left, budget) : absl::OkStatus();
  };
  const std::lock_guard<std::mutex> turn(SpendingMutex());
  if (absl::Status status = admit(bytes, bytes); !status.ok()) return status;
  if (absl::Status status = Reserve(bytes, kHugePageBytes, options); !status.ok()) return status;
  if (absl::Status status = range_->MapAnonymous(); !status.ok()) return status;
  // Advice: a kernel without transparent huge pages refuses it, and small pages do.
  madvise(data(), bytes, options.huge_pages == HugePages::kTransparent ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  if (node >= 0) {
    absl::StatusOr<BindOutcome> outcome = BindToNode(range_->span(), node, options.binding, calls_);
    if (!outcome.ok()) return outcome.status();
    binding_ = outcome->binding;
    if (binding_ != NodeBinding::kNone) node_ = node;
    if (!outcome->note.empty()) note_ = absl::StrCat("Arena ", name_, ": ", outcome->note);
  }
  const absl::Status populated =
      PopulatePages(range_->span(), [&admit](int64_t left) { return admit(kHugePageBytes, left); });
  if (!populated.ok()) return populated;
  if (binding_ == NodeBinding::kStrict) return RequireStrict();
  if (binding_ == NodeBinding::kAdvisory) {
    const absl::Status asked = QueryPlacement(range_->span(), node_, /*sample=*/1, calls_).status();
    if (!asked.ok()) note_ = absl::StrCat("Arena ", name_, ": placement is not verified: ", asked.message());
  }
  return absl::OkStatus();
}

absl::Status Arena::RequireStrict() {
  absl::StatusOr<PlacementReport> report = QueryPlacement(range_->span(), node_, /*sample=*/0, calls_);
  if (report.ok() && report->pages_elsewhere > 0) {
    const absl::Status moved = MoveToNode(range_->span(), node_, budget_, calls_).status();
    if (!moved.ok()) return moved;
    report = QueryPlacement(range_->span(), node_, /*sample=*/0, calls_);
  }
  if (!report.ok()) return report.status();
  const int64_t there = report->pages_on_node[node_];
  const int64_t pages = there + report->pages_elsewhere + report->pages_unknown;
  if (there == pages) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("wanted ", bytes(), " bytes on node ", node_, ", available ",
                                                   bytes() / pages * there,
                                                   ": ask for a smaller tier or an advisory binding"));
}

absl::StatusOr<PlacementReport> Arena::VerifyPlacement(int64_t sample) const {
  if (dax_ != nullptr) {
    PlacementReport report;
    report.source = PlacementSource::kDevice;
    const int64_t pages = bytes() / sysconf(_SC_PAGESIZE);
    (node_ < 0 ? report.pages_unknown : report.pages_on_node[node_]) = sample > 0 ? std::min(sample, pages) : pages;
    return report;
  }
  absl::StatusOr<PlacementReport> report = QueryPlacement(range_->span(), node_, sample, calls_);
  return report.ok() ? report : WithName(report.status());
}

absl::StatusOr<RepairReport> Arena::Repair() {
  const char* const obstacle = dax_ != nullptr ? "a device's pages lie where the device is"
                               : node_ < 0     ? "it is bound to no node"
                               : registration_ != nullptr
                                   ? "it is registered with a device, and pinned pages do not move"
                                   : nullptr;
  if (obstacle != nullptr) {
    return WithName(absl::FailedPreconditionError(absl::StrCat("no page can be moved: ", obstacle)));
  }
  const std::lock_guard<std::mutex> turn(SpendingMutex());
  absl::StatusOr<RepairReport> report = MoveToNode(range_->span(), node_, budget_, calls_);
  return report.ok() ? report : WithName(report.status());
}

absl::StatusOr<RegistrationReport> Arena::Register(DeviceRegistrar& registrar, const RegistrationOptions& options) {
  if (registration_ != nullptr) return WithName(absl::FailedPreconditionError("it is registered already"));
  const auto verify = [this, &options]() -> std::optional<PlacementReport> {
    absl::StatusOr<PlacementReport> report = VerifyPlacement(options.sample);
    if (!report.ok()) return std::nullopt;
    return *std::move(report);
  };
  const auto admit = [this](int64_t bytes) {
    return dax_ != nullptr || node_ < 0 ? absl::OkStatus() : CheckPinRoom(node_, bytes, budget_, roots_);
  };
  RegistrationReport report;
  report.before = verify();
  const std::lock_guard<std::mutex> turn(SpendingMutex());
  absl::StatusOr<std::unique_ptr<Registration>> registration =
      Registration::Create(range_->span(), registrar, options.chunk_bytes, admit);
  if (!registration.ok()) return WithName(registration.status());
  registration_ = *std::move(registration);
  report.pin = registration_->report();
  report.after = verify();
  return report;
}

}  // namespace hybridgen
