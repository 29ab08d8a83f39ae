// A device stream without a device: kernels run one after another on a thread of their own, with random gaps, until one
// traps.
#ifndef TESTS_JOINT_FAKE_STREAM_H_
#define TESTS_JOINT_FAKE_STREAM_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace hybridgen {

enum class KernelEnd : uint8_t { kDone, kTrap };
using Kernel = std::function<KernelEnd()>;

// Nothing, a yield, or some tens of microseconds.
void RandomDelay(std::mt19937_64& rng);

class FakeStream {
 public:
  explicit FakeStream(uint64_t seed);
  ~FakeStream();  // waits for the kernels queued

  // False, and nothing is queued: a kernel has trapped, as a failed context refuses launches.
  bool Launch(std::vector<Kernel> kernels);
  bool Idle();
  // Waits until all is done. False: a kernel has trapped, nothing behind it was or will be run.
  bool Synchronize();

 private:
  void Loop();

  std::mt19937_64 rng_;  // of the stream's thread
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<Kernel> queue_;
  bool running_ = false;
  bool trapped_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace hybridgen

#endif  // TESTS_JOINT_FAKE_STREAM_H_
