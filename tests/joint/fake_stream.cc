#include "tests/joint/fake_stream.h"

#include <chrono>
#include <iterator>
#include <utility>

namespace hybridgen {

void RandomDelay(std::mt19937_64& rng) {
  const uint64_t kind = rng() % 16;
  if (kind == 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(rng() % 100));
  } else if (kind < 4) {
    std::this_thread::yield();
  }
}

FakeStream::FakeStream(uint64_t seed) : rng_(seed), thread_([this] { Loop(); }) {}

FakeStream::~FakeStream() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

bool FakeStream::Launch(std::vector<Kernel> kernels) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (trapped_) return false;
  std::move(kernels.begin(), kernels.end(), std::back_inserter(queue_));
  changed_.notify_all();
  return true;
}

bool FakeStream::Idle() {
  std::lock_guard<std::mutex> lock(mutex_);
  return queue_.empty() && !running_;
}

bool FakeStream::Synchronize() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return queue_.empty() && !running_; });
  return !trapped_;
}

void FakeStream::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const Kernel kernel = std::move(queue_.front());
    queue_.pop_front();
    running_ = true;
    lock.unlock();
    RandomDelay(rng_);
    const KernelEnd end = kernel();
    lock.lock();
    running_ = false;
    if (end == KernelEnd::kTrap) {
      trapped_ = true;
      queue_.clear();
    }
    changed_.notify_all();
  }
}

}  // namespace hybridgen
