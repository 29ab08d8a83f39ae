// Holds reads back to a given rate, so that ordinary memory can stand for slower memory. What is timed with it is
// emulated and paced, and reported as such.
#ifndef BACKEND_PACER_H_
#define BACKEND_PACER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "backend/token_bucket.h"
#include "memory/tier.h"

namespace hybridgen {

// The clock of a pacer; tests replace it.
struct PacerClock {
  std::function<TokenBucket::Time()> now = [] { return std::chrono::steady_clock::now(); };
  std::function<void(TokenBucket::Time)> sleep_until = [](TokenBucket::Time time) {
    std::this_thread::sleep_until(time);
  };
};

// One rate shared by the threads of one call. Reads ahead of the rate put their thread to sleep, as a loaded medium
// stalls who reads it; threads that read other media go on. A call takes at least its bytes divided by the rate.
class Pacer {
 public:
  // gigabytes_per_second > 0.
  explicit Pacer(double gigabytes_per_second, PacerClock clock = PacerClock())
      : bytes_per_second_(gigabytes_per_second * 1e9), clock_(std::move(clock)) {}

  // A call begins: idle time before it earns nothing. Not concurrent with Read.
  void Begin() {
    std::lock_guard<std::mutex> lock(mutex_);
    bucket_.emplace(bytes_per_second_, kCredit, clock_.now());
  }

  // `bytes` have been read. Between Begin and Finish, from any thread.
  void Read(int64_t bytes) {
    if (bytes == 0) return;
    const TokenBucket::Time now = clock_.now();
    const TokenBucket::Time paid = Take(bytes, now);
    if (paid > now + kSlack) clock_.sleep_until(paid);
  }

  // The call ends when all its reads are paid for.
  void Finish() { clock_.sleep_until(Take(0, clock_.now())); }

 private:
  // Time of a call without reads of this medium that it can make up for: stands for the reads that a processor keeps in
  // flight to several media at once, and covers threads that are woken late.
  static constexpr std::chrono::milliseconds kCredit{5};
  // Shorter sleeps cost more than they are long.
  static constexpr std::chrono::microseconds kSlack{100};

  TokenBucket::Time Take(int64_t bytes, TokenBucket::Time now) {
    std::lock_guard<std::mutex> lock(mutex_);
    return bucket_->Take(static_cast<double>(bytes), now);
  }

  const double bytes_per_second_;
  const PacerClock clock_;
  std::mutex mutex_;
  std::optional<TokenBucket> bucket_;  // of the present call
};

// The pacer of each tier's reads; null: as fast as they go. Tiers of one medium share a pacer.
struct TierPacers {
  std::shared_ptr<Pacer> of[kNumTiers];
};

}  // namespace hybridgen

#endif  // BACKEND_PACER_H_
