#include "backend/placement_watch.h"

#include <system_error>
#include <utility>

namespace hybridgen {
namespace {

// Pages asked about per arena, at bind and between steps. A sample of n misses a share s of pages elsewhere with a
// probability of (1 - s)^n: of one page in a hundred, 0.6 percent for the smaller sample.
constexpr int64_t kBindSample = 4096;
constexpr int64_t kSample = 512;

}  // namespace

PlacementWatch::PlacementWatch(const std::vector<TierArena>* arenas, Time now)
    : arenas_(*arenas), checked_(now), watched_(arenas->size()) {
  Repair(Check(kBindSample, now), now);
}

PlacementWatch::~PlacementWatch() { Drain(); }

void PlacementWatch::Drain() {
  if (repair_.joinable()) repair_.join();
}

void PlacementWatch::Tick(Time now) {
  if (now - checked_ < kInterval) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (repairing_) return;
  }
  Drain();
  checked_ = now;
  const std::vector<size_t> misplaced = Check(kSample, now);
  if (misplaced.empty()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    repairing_ = true;
  }
  try {
    repair_ = std::thread([this, misplaced, now] {
      Repair(misplaced, now);
      std::lock_guard<std::mutex> lock(mutex_);
      repairing_ = false;
    });
  } catch (const std::system_error&) {
    // The system has no thread to give: the pages stay reported as misplaced, and the next check tries again.
    std::lock_guard<std::mutex> lock(mutex_);
    repairing_ = false;
  }
}

std::vector<size_t> PlacementWatch::Check(int64_t sample, Time now) {
  std::vector<size_t> misplaced;
  for (size_t i = 0; i < arenas_.size(); ++i) {
    absl::StatusOr<PlacementReport> report = arenas_[i].memory->VerifyPlacement(sample);
    std::lock_guard<std::mutex> lock(mutex_);
    Watched& watched = watched_[i];
    watched.placement.newest = report.ok() ? *std::move(report) : PlacementReport();
    watched.placement.note = report.ok() ? std::string() : std::string(report.status().message());
    if (watched.placement.newest.pages_elsewhere > 0 && now >= watched.repair_from) misplaced.push_back(i);
  }
  return misplaced;
}

void PlacementWatch::Repair(const std::vector<size_t>& misplaced, Time now) {
  for (const size_t i : misplaced) {
    const absl::StatusOr<RepairReport> repaired = arenas_[i].memory->Repair();
    absl::StatusOr<PlacementReport> report = arenas_[i].memory->VerifyPlacement(kSample);
    std::lock_guard<std::mutex> lock(mutex_);
    Watched& watched = watched_[i];
    if (report.ok()) watched.placement.newest = *std::move(report);
    RepairReport& total = watched.placement.repairs;
    if (repaired.ok()) {
      total.misplaced += repaired->misplaced;
      total.repaired += repaired->repaired;
      total.unmovable += repaired->unmovable;
      total.no_room += repaired->no_room;
    }
    if (!repaired.ok() || repaired->repaired < repaired->misplaced) watched.repair_from = now + kRepairPause;
  }
}

std::vector<ArenaPlacement> PlacementWatch::Report() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<ArenaPlacement> report;
  for (const Watched& watched : watched_) report.push_back(watched.placement);
  return report;
}

}  // namespace hybridgen
