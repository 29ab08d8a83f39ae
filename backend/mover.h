// The mover: a background thread that executes migrations between host tiers, slowly and out of everybody's way.
#ifndef BACKEND_MOVER_H_
#define BACKEND_MOVER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "backend/copy_sink.h"
#include "backend/page_copier.h"
#include "memory/block_manager.h"

namespace hybridgen {

struct MoverOptions {
  double bytes_per_second = 0;                 // budget of bytes written, > 0
  absl::Duration timeout = absl::Seconds(60);  // watchdog of Cancel and Drain
  std::function<std::chrono::steady_clock::time_point()> now = [] { return std::chrono::steady_clock::now(); };
};

// Totals since creation.
struct MoverStatistics {
  int64_t bytes = 0;         // written, abandoned copies included
  int64_t chunks = 0;        // a chunk is one layer of one block
  int64_t budget_waits = 0;  // chunks that waited for the budget
  int64_t layer_waits = 0;   // chunks that waited for a layer to end
  int64_t abandoned = 0;     // copies given up
};

// It copies one layer of one block at a time, within the budget, and begins none while a layer runs. Nobody waits for a
// migration: whoever wants its pages gives it up by Cancel, which waits for no more than the chunk under way.
// One thread drives it (the planning thread, which also runs layers). Its own thread starts with the first copies, so a
// process that forks before has none to lose; it runs at the lowest priority.
class Mover final : public CopySink {
 public:
  Mover(std::shared_ptr<const PageCopier> copier, const MoverOptions& options);
  // Chunks that have not begun are not copied any more.
  ~Mover() override;

  // Queues the copies. Errors: Internal when the system refuses the thread; FailedPrecondition once dead.
  absl::Status Start(std::vector<CopyTask> tasks) override;
  // Copies that are complete and copies that were given up (CopyOutcome::kAbandoned).
  std::vector<CopyTask> TakeFinished() override;
  // Waits until everything started is finished, for as long as chunks complete.
  absl::Status Drain() override;

  // Gives up the copy of `block`, if there is one. When it returns, the mover touches none of the block's pages.
  // Errors, here and for the next two: DeadlineExceeded when a chunk does not end; the mover is then dead for good.
  absl::Status Cancel(int32_t block);
  absl::Status CancelAll();

  // Copies started and not yet taken back.
  int64_t in_flight() const { return in_flight_; }
  MoverStatistics statistics() const;

  // While one exists no chunk begins. Costs two atomic operations; null is allowed and does nothing.
  class Yield {
   public:
    explicit Yield(Mover* mover);
    ~Yield();
    Yield(const Yield&) = delete;
    Yield& operator=(const Yield&) = delete;

   private:
    Mover* const mover_;
  };

 private:
  struct Shared;

  template <typename Chosen>
  absl::Status CancelIf(const Chosen& chosen);
  absl::Status Dead() const;

  const std::shared_ptr<Shared> shared_;  // with the thread, so that a stuck one outlives its mover
  bool started_ = false;
  bool dead_ = false;
  int64_t in_flight_ = 0;
};

}  // namespace hybridgen

#endif  // BACKEND_MOVER_H_
