#include "backend/emulated_device.h"

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

#include "absl/strings/str_cat.h"
#include "backend/attention_worker.h"
#include "backend/pacer.h"
#include "backend/pool_executor.h"

namespace hybridgen {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// One entry of the queue: a layer or a batch of copies.
struct Command {
  const LayerCall* call = nullptr;
  std::vector<CopyTask> copies;
};

// Everything that the queue's thread touches; it owns a reference, so that a stuck thread outlives its device.
// std::mutex rather than absl::Mutex: the distribution's Abseil is not instrumented, so tsan would not see its locks.
struct Queue {
  EmulatedDeviceOptions options;
  std::unique_ptr<Executor> executor;
  std::unique_ptr<AttentionWorker> worker;

  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by mutex.
  std::deque<Command> commands;
  std::vector<CopyTask> finished_copies;
  int64_t queued = 0;  // commands ever queued
  int64_t done = 0;    // commands ever done
  bool host_written = false;
  bool host_attended = false;
  bool stop = false;
  absl::Status layer_status;
  DeviceSeconds seconds;

  // Waits for *flag of the layer in progress; false when the device stops.
  bool AwaitHost(const bool* flag) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return *flag || stop; });
    return *flag;
  }

  absl::Status RunLayer(const LayerCall& call) {
    absl::Status status = worker->Write(call, call.plan->pool_writes);
    if (!AwaitHost(&host_written)) return absl::CancelledError("emulated device: stopped");
    const Clock::time_point begin = Clock::now();
    if (status.ok()) status = worker->Attend(call, call.plan->device_items);
    const double attended = SecondsSince(begin);
    if (!AwaitHost(&host_attended)) return absl::CancelledError("emulated device: stopped");
    const Clock::time_point merging = Clock::now();
    if (status.ok()) status = worker->Merge(call, call.plan->merges);
    std::lock_guard<std::mutex> lock(mutex);
    seconds.attend += attended;
    seconds.merge += SecondsSince(merging);
    return status;
  }

  void Loop() {
    for (;;) {
      Command command;
      {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&] { return stop || !commands.empty(); });
        if (stop) return;
        command = std::move(commands.front());
        commands.pop_front();
      }
      absl::Status status;
      if (command.call != nullptr) {
        status = RunLayer(*command.call);
      } else {
        const Clock::time_point begin = Clock::now();
        if (!options.copier->Run(command.copies, *executor).ok()) {
          for (CopyTask& task : command.copies) task.outcome = CopyOutcome::kAbandoned;
        }
        std::lock_guard<std::mutex> lock(mutex);
        seconds.transfer += SecondsSince(begin);
      }
      std::lock_guard<std::mutex> lock(mutex);
      if (command.call != nullptr) {
        layer_status = std::move(status);
      } else {
        finished_copies.insert(finished_copies.end(), command.copies.begin(), command.copies.end());
      }
      ++done;
      changed.notify_all();
    }
  }
};

class EmulatedDevice final : public DeviceWorker {
 public:
  explicit EmulatedDevice(std::shared_ptr<Queue> queue) : queue_(std::move(queue)) {}

  absl::Status Start() {
    try {
      thread_ = std::thread([queue = queue_] { queue->Loop(); });
    } catch (const std::system_error& error) {
      return absl::InternalError(absl::StrCat("emulated device: the system refused its thread: ", error.what()));
    }
    pthread_setname_np(thread_.native_handle(), "hg-device");
    return absl::OkStatus();
  }

  ~EmulatedDevice() override {
    {
      std::lock_guard<std::mutex> lock(queue_->mutex);
      queue_->stop = true;
      queue_->changed.notify_all();
    }
    if (!thread_.joinable()) return;
    if (dead_) {
      thread_.detach();  // stuck; it keeps the queue alive on its own
    } else {
      thread_.join();
    }
  }

  absl::Status BeginLayer(const LayerCall& call) override {
    if (dead_) return Dead();
    std::lock_guard<std::mutex> lock(queue_->mutex);
    queue_->host_written = false;
    queue_->host_attended = false;
    Push({&call, {}});
    return absl::OkStatus();
  }

  void HostWritten() override { Raise(&queue_->host_written); }
  void HostAttended() override { Raise(&queue_->host_attended); }

  absl::Status WaitLayer() override {
    if (absl::Status status = Drain(); !status.ok()) return status;
    std::lock_guard<std::mutex> lock(queue_->mutex);
    return queue_->layer_status;
  }

  absl::Status EnqueueCopies(std::vector<CopyTask> tasks) override {
    if (dead_) return Dead();
    if (queue_->options.copier == nullptr) {
      return absl::FailedPreconditionError("emulated device: copies need host tiers; this device was made without");
    }
    std::lock_guard<std::mutex> lock(queue_->mutex);
    Push({nullptr, std::move(tasks)});
    return absl::OkStatus();
  }

  std::vector<CopyTask> TakeFinishedCopies() override {
    std::lock_guard<std::mutex> lock(queue_->mutex);
    return std::exchange(queue_->finished_copies, {});
  }

  absl::Status Drain() override {
    if (dead_) return Dead();
    std::unique_lock<std::mutex> lock(queue_->mutex);
    if (!queue_->changed.wait_for(lock, absl::ToChronoMilliseconds(queue_->options.timeout),
                                  [&] { return queue_->done == queue_->queued; })) {
      dead_ = true;
      return absl::DeadlineExceededError(absl::StrCat("emulated device: ", queue_->queued - queue_->done,
                                                      " commands not finished within ",
                                                      absl::FormatDuration(queue_->options.timeout)));
    }
    return absl::OkStatus();
  }

  int num_workers() const override { return queue_->executor->num_workers(); }
  int64_t read_bytes(Tier tier) const override { return queue_->worker->read_bytes(tier); }
  DeviceSeconds seconds() const override {
    std::lock_guard<std::mutex> lock(queue_->mutex);
    return queue_->seconds;
  }

 private:
  // Caller holds the mutex.
  void Push(Command command) {
    queue_->commands.push_back(std::move(command));
    ++queue_->queued;
    queue_->changed.notify_all();
  }

  void Raise(bool* flag) {
    std::lock_guard<std::mutex> lock(queue_->mutex);
    *flag = true;
    queue_->changed.notify_all();
  }

  static absl::Status Dead() {
    return absl::FailedPreconditionError("emulated device: dead since it missed a deadline; create a new backend");
  }

  const std::shared_ptr<Queue> queue_;
  std::thread thread_;
  bool dead_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceWorker>> CreateEmulatedDevice(const EmulatedDeviceOptions& options) {
  PoolExecutorOptions pool;
  pool.name = "dev";
  pool.num_workers = options.num_threads;
  pool.timeout = options.timeout;
  absl::StatusOr<std::unique_ptr<Executor>> executor = CreatePoolExecutor(pool);
  if (!executor.ok()) return executor.status();
  TierPacers pacers;
  if (options.gigabytes_per_second > 0) {
    // One rate for all that the device reads, streamed host pages included.
    pacers.of[Index(Tier::kDevice)] = std::make_shared<Pacer>(options.gigabytes_per_second);
    pacers.of[Index(Tier::kDram)] = pacers.of[Index(Tier::kCxl)] = pacers.of[Index(Tier::kDevice)];
  }
  auto queue = std::make_shared<Queue>();
  queue->options = options;
  queue->executor = *std::move(executor);
  queue->worker = std::make_unique<AttentionWorker>(queue->executor.get(), options.kernels, options.dtype,
                                                    options.head_size, options.num_kv_heads, std::move(pacers));
  auto device = std::make_unique<EmulatedDevice>(std::move(queue));
  if (absl::Status status = device->Start(); !status.ok()) return status;
  return device;
}

}  // namespace hybridgen
