#include "backend/pool_executor.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// State shared with the threads; they keep it alive when a stuck pool is abandoned.
// std::mutex rather than absl::Mutex: the distribution's Abseil is not instrumented, so tsan would not see its locks.
struct Shared {
  std::atomic<uint64_t> round{0};  // raised to start a round
  std::atomic<int> running{0};     // threads that have not finished the present round
  std::atomic<bool> stop{false};
  const absl::FunctionRef<void(int)>* body = nullptr;  // published by `round`, read only while running > 0
  std::mutex mutex;                                    // parking
  std::condition_variable wake;                        // a round starts, or stop
  std::condition_variable finished;                    // running became 0
};

// Spins for at most `spin`, then returns whether `ready` became true.
template <typename Ready>
bool SpinUntil(absl::Duration spin, const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + absl::ToChronoMicroseconds(spin);
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      CpuRelax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

void WorkerLoop(std::shared_ptr<Shared> shared, int worker, absl::Duration spin) {
  uint64_t seen = 0;
  for (;;) {
    const auto ready = [&] {
      return shared->round.load(std::memory_order_acquire) != seen || shared->stop.load(std::memory_order_acquire);
    };
    if (!SpinUntil(spin, ready)) {
      std::unique_lock<std::mutex> lock(shared->mutex);
      shared->wake.wait(lock, ready);
    }
    if (shared->stop.load(std::memory_order_acquire)) return;
    seen = shared->round.load(std::memory_order_acquire);
    (*shared->body)(worker);
    if (shared->running.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard<std::mutex> lock(shared->mutex);
      shared->finished.notify_all();
    }
  }
}

class PoolExecutor final : public Executor {
 public:
  explicit PoolExecutor(const PoolExecutorOptions& options)
      : options_(options),
        description_(absl::StrCat("pool (", options.num_workers, " threads, spin ",
                                  absl::ToInt64Microseconds(options.spin), " us)")) {}

  absl::Status Start() {
    for (int i = 1; i < options_.num_workers; ++i) {
      try {
        threads_.emplace_back(WorkerLoop, shared_, i, options_.spin);
      } catch (const std::system_error& error) {
        return absl::InternalError(absl::StrCat("pool executor: the system refused thread ", i, " of ",
                                                options_.num_workers, ": ", error.what()));
      }
      pthread_setname_np(threads_.back().native_handle(),
                         absl::StrCat("hg-", options_.name.substr(0, 9), i % 100).c_str());
      if (!options_.cpus.empty()) {
        cpu_set_t set;
        CPU_ZERO(&set);
        for (const int cpu : options_.cpus[(i - 1) % options_.cpus.size()]) CPU_SET(cpu, &set);
        pthread_setaffinity_np(threads_.back().native_handle(), sizeof(set), &set);  // advisory
      }
    }
    return absl::OkStatus();
  }

  ~PoolExecutor() override {
    shared_->stop.store(true, std::memory_order_release);
    {
      std::lock_guard<std::mutex> lock(shared_->mutex);
      shared_->wake.notify_all();
    }
    for (std::thread& thread : threads_) {
      // A stuck worker cannot be joined; it keeps the shared state alive on its own.
      if (dead_) {
        thread.detach();
      } else {
        thread.join();
      }
    }
  }

  int num_workers() const override { return options_.num_workers; }
  const char* description() const override { return description_.c_str(); }

  absl::Status Run(absl::FunctionRef<void(int)> body) override {
    if (dead_) return absl::FailedPreconditionError("pool executor: dead since a worker missed its deadline");
    const int others = static_cast<int>(threads_.size());
    if (others > 0) {
      shared_->body = &body;
      shared_->running.store(others, std::memory_order_relaxed);
      {
        // Under the mutex, so that a worker between its last check and its wait cannot miss the round.
        std::lock_guard<std::mutex> lock(shared_->mutex);
        shared_->round.fetch_add(1, std::memory_order_release);
        shared_->wake.notify_all();
      }
    }
    body(0);
    const auto done = [&] { return shared_->running.load(std::memory_order_acquire) == 0; };
    if (done() || SpinUntil(options_.spin, done)) return absl::OkStatus();
    std::unique_lock<std::mutex> lock(shared_->mutex);
    if (!shared_->finished.wait_for(lock, absl::ToChronoMilliseconds(options_.timeout), done)) {
      dead_ = true;
      return absl::DeadlineExceededError(absl::StrCat("pool executor: a worker of '", options_.name,
                                                      "' did not finish within ",
                                                      absl::FormatDuration(options_.timeout)));
    }
    return absl::OkStatus();
  }

 private:
  const PoolExecutorOptions options_;
  const std::string description_;
  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  std::vector<std::thread> threads_;
  bool dead_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Executor>> CreatePoolExecutor(const PoolExecutorOptions& options) {
  if (options.num_workers < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("pool executor: num_workers is ", options.num_workers, "; accepted: >= 1"));
  }
  auto pool = std::make_unique<PoolExecutor>(options);
  if (absl::Status status = pool->Start(); !status.ok()) return status;
  return pool;
}

}  // namespace hybridgen
