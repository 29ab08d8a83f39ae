// A rate as a budget: what is taken is paid for at so many units per second.
#ifndef BACKEND_TOKEN_BUCKET_H_
#define BACKEND_TOKEN_BUCKET_H_

#include <algorithm>
#include <chrono>

namespace hybridgen {

// Arithmetic over times that the caller gives; one thread at a time. Whoever starts nothing before the time that Take
// returns has by time t never started more than per_second * (t - created + max_credit).
class TokenBucket {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Duration = Time::duration;

  // per_second > 0. max_credit: idle time that can be made up for.
  TokenBucket(double per_second, Duration max_credit, Time now)
      : per_second_(per_second), max_credit_(max_credit), paid_(now) {}

  // Takes `amount` (it may be larger than any credit); returns when it is paid for.
  Time Take(double amount, Time now) {
    const std::chrono::duration<double> cost(amount / per_second_);
    paid_ = std::max(paid_, now - max_credit_) + std::chrono::ceil<Duration>(cost);
    return paid_;
  }

 private:
  const double per_second_;
  const Duration max_credit_;
  Time paid_;  // from here on everything taken is paid for
};

}  // namespace hybridgen

#endif  // BACKEND_TOKEN_BUCKET_H_
