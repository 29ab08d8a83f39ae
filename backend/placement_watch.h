// Watches that the pages of the host tiers lie where they were put: the kernel may move them (pinning, memory tiering,
// balancing), and says nothing.
#ifndef BACKEND_PLACEMENT_WATCH_H_
#define BACKEND_PLACEMENT_WATCH_H_

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "backend/host_tiers.h"
#include "memory/arena.h"

namespace hybridgen {

// What is known of one arena, in the system's pages of 4 KiB.
struct ArenaPlacement {
  PlacementReport newest;  // of the pages sampled last
  RepairReport repairs;    // totals
  std::string note;        // why the kernel tells nothing; else empty
};

// Asking is cheap and done between steps; moving pages takes as long as the arena is large and is done by a thread of
// its own, while steps run. Registered pages and those of a device do not move and are only reported.
class PlacementWatch {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr std::chrono::seconds kInterval{10};  // between two checks
  // After a repair that left pages behind: what holds them will hold them in ten seconds too.
  static constexpr std::chrono::seconds kRepairPause{600};

  // `arenas` (HostTiers::arenas) outlive the watch. Checks and repairs all of them, here and now.
  PlacementWatch(const std::vector<TierArena>* arenas, Time now);
  // Waits for a repair in progress.
  ~PlacementWatch();
  PlacementWatch(const PlacementWatch&) = delete;
  PlacementWatch& operator=(const PlacementWatch&) = delete;

  // Between steps, by one thread: checks a sample if the last check is kInterval ago, and starts a repair of arenas
  // with pages elsewhere.
  void Tick(Time now);
  // Waits for a repair in progress.
  void Drain();

  // [arena], in the order of HostTiers::arenas.
  std::vector<ArenaPlacement> Report() const;

 private:
  struct Watched {
    ArenaPlacement placement;
    Time repair_from{};  // no repair before
  };

  // Asks about a sample; returns the arenas to repair.
  std::vector<size_t> Check(int64_t sample, Time now);
  void Repair(const std::vector<size_t>& misplaced, Time now);

  const std::vector<TierArena>& arenas_;
  Time checked_;
  std::thread repair_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<Watched> watched_;
  bool repairing_ = false;
};

}  // namespace hybridgen

#endif  // BACKEND_PLACEMENT_WATCH_H_
