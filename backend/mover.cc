#include "backend/mover.h"

#include <pthread.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "backend/token_bucket.h"

namespace hybridgen {
namespace {

// Idle time that later chunks may make up for: bounds how long copies may run at full speed.
constexpr std::chrono::milliseconds kMaxCredit{10};
// How long a chunk naps before it looks again whether the layer has ended; layers do not wake the mover.
constexpr std::chrono::microseconds kNap{200};
constexpr int kLowestPriority = 19;

struct Job {
  explicit Job(const CopyTask& task) : task(task) {}

  CopyTask task;
  int next_layer = 0;
  bool abandoned = false;                    // given up while a chunk of it is under way
  std::optional<TokenBucket::Time> paid_at;  // of the next chunk, once taken from the budget
  bool met_layer = false;                    // the next chunk has waited for a layer
};

}  // namespace

// Everything that the thread touches.
// std::mutex rather than absl::Mutex: the distribution's Abseil is not instrumented, so tsan would not see its locks.
struct Mover::Shared {
  Shared(std::shared_ptr<const PageCopier> copier, const MoverOptions& options)
      : copier(std::move(copier)), options(options), budget(options.bytes_per_second, kMaxCredit, options.now()) {}

  const std::shared_ptr<const PageCopier> copier;
  const MoverOptions options;
  std::atomic<int> layers_running{0};

  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by mutex.
  TokenBucket budget;
  std::deque<Job> jobs;
  bool copying = false;  // a chunk of jobs.front(), which therefore stays
  bool stop = false;
  std::vector<CopyTask> finished;
  MoverStatistics statistics;
  std::thread thread;

  // Caller holds the mutex.
  void Finish(Job& job, CopyOutcome outcome) {
    job.task.outcome = outcome;
    finished.push_back(job.task);
  }

  // How long the next chunk has to wait; zero or less: it may begin. Caller holds the mutex.
  TokenBucket::Duration Wait(Job& job) {
    const TokenBucket::Time now = options.now();
    if (!job.paid_at.has_value()) {
      job.paid_at = budget.Take(copier->LayerBytes(job.task), now);
      if (*job.paid_at > now) ++statistics.budget_waits;
    }
    if (*job.paid_at > now) return *job.paid_at - now;
    if (layers_running.load(std::memory_order_relaxed) == 0) return TokenBucket::Duration::zero();
    if (!job.met_layer) ++statistics.layer_waits;
    job.met_layer = true;
    return kNap;
  }

  // A chunk of the front job is done. Caller holds the mutex.
  void EndChunk(Job& job) {
    ++job.next_layer;
    job.paid_at.reset();
    job.met_layer = false;
    if (!job.abandoned && job.next_layer < copier->num_layers()) return;
    Finish(job, job.abandoned ? CopyOutcome::kAbandoned : CopyOutcome::kComplete);
    jobs.pop_front();
  }

  void Loop() {
    setpriority(PRIO_PROCESS, 0, kLowestPriority);  // of this thread only; best effort
    std::unique_lock<std::mutex> lock(mutex);
    while (!stop) {
      if (jobs.empty()) {
        changed.wait(lock);
        continue;
      }
      Job& job = jobs.front();
      if (const TokenBucket::Duration wait = Wait(job); wait > TokenBucket::Duration::zero()) {
        changed.wait_for(lock, wait);
        continue;
      }
      const CopyTask task = job.task;
      const int layer = job.next_layer;
      copying = true;
      lock.unlock();
      copier->CopyLayer(task, layer);
      lock.lock();
      copying = false;
      ++statistics.chunks;
      statistics.bytes += copier->LayerBytes(task);
      EndChunk(jobs.front());
      changed.notify_all();
    }
  }
};

Mover::Mover(std::shared_ptr<const PageCopier> copier, const MoverOptions& options)
    : shared_(std::make_shared<Shared>(std::move(copier), options)) {}

Mover::~Mover() {
  {
    std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->stop = true;
    shared_->changed.notify_all();
  }
  if (!started_) return;
  if (dead_) {
    shared_->thread.detach();  // stuck; it keeps the shared state alive on its own
  } else {
    shared_->thread.join();
  }
}

absl::Status Mover::Start(std::vector<CopyTask> tasks) {
  if (dead_) return Dead();
  if (!started_) {
    try {
      shared_->thread = std::thread([shared = shared_] { shared->Loop(); });
    } catch (const std::system_error& error) {
      return absl::InternalError(absl::StrCat("mover: the system refused its thread: ", error.what()));
    }
    pthread_setname_np(shared_->thread.native_handle(), "hg-mover");
    started_ = true;
  }
  std::lock_guard<std::mutex> lock(shared_->mutex);
  for (const CopyTask& task : tasks) shared_->jobs.emplace_back(task);
  in_flight_ += tasks.size();
  shared_->changed.notify_all();
  return absl::OkStatus();
}

std::vector<CopyTask> Mover::TakeFinished() {
  std::lock_guard<std::mutex> lock(shared_->mutex);
  in_flight_ -= shared_->finished.size();
  return std::exchange(shared_->finished, {});
}

absl::Status Mover::Drain() {
  if (dead_) return Dead();
  std::unique_lock<std::mutex> lock(shared_->mutex);
  while (!shared_->jobs.empty()) {
    const int64_t chunks = shared_->statistics.chunks;
    if (!shared_->changed.wait_for(lock, absl::ToChronoMilliseconds(shared_->options.timeout),
                                   [&] { return shared_->jobs.empty() || shared_->statistics.chunks != chunks; })) {
      dead_ = true;
      return Dead();
    }
  }
  return absl::OkStatus();
}

template <typename Chosen>
absl::Status Mover::CancelIf(const Chosen& chosen) {
  if (in_flight_ == 0) return absl::OkStatus();
  if (dead_) return Dead();
  Shared& s = *shared_;
  std::unique_lock<std::mutex> lock(s.mutex);
  // The front stays while a chunk of it is under way; the thread gives it up then.
  const size_t first = s.copying ? 1 : 0;
  for (size_t i = first; i < s.jobs.size();) {
    if (chosen(s.jobs[i].task)) {
      ++s.statistics.abandoned;
      s.Finish(s.jobs[i], CopyOutcome::kAbandoned);
      s.jobs.erase(s.jobs.begin() + i);
    } else {
      ++i;
    }
  }
  if (!s.copying || !chosen(s.jobs.front().task)) return absl::OkStatus();
  s.jobs.front().abandoned = true;
  ++s.statistics.abandoned;
  const int64_t id = s.jobs.front().task.id;
  if (!s.changed.wait_for(lock, absl::ToChronoMilliseconds(s.options.timeout),
                          [&] { return s.jobs.empty() || s.jobs.front().task.id != id; })) {
    dead_ = true;
    return Dead();
  }
  return absl::OkStatus();
}

absl::Status Mover::Cancel(int32_t block) {
  return CancelIf([block](const CopyTask& task) { return task.block == block; });
}

absl::Status Mover::CancelAll() {
  return CancelIf([](const CopyTask&) { return true; });
}

absl::Status Mover::Dead() const {
  return absl::DeadlineExceededError(absl::StrCat("mover: no page was copied within ",
                                                  absl::FormatDuration(shared_->options.timeout),
                                                  "; it is dead, create a new backend"));
}

MoverStatistics Mover::statistics() const {
  std::lock_guard<std::mutex> lock(shared_->mutex);
  return shared_->statistics;
}

Mover::Yield::Yield(Mover* mover) : mover_(mover) {
  if (mover_ != nullptr) mover_->shared_->layers_running.fetch_add(1, std::memory_order_relaxed);
}

Mover::Yield::~Yield() {
  if (mover_ != nullptr) mover_->shared_->layers_running.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace hybridgen
