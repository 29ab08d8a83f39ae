// A toy model whose every layer needs the CPU, run over the real joint: its tokens tell whether each query, partial and
// plan arrived whole, in order and in its own step. Arithmetic is a hash, so any old or foreign word changes them all.
#ifndef TESTS_JOINT_HYBRID_MODEL_H_
#define TESTS_JOINT_HYBRID_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "backend/executor.h"
#include "backend/joint_dispatcher.h"
#include "tests/joint/fake_stream.h"
#include "tests/joint/weak_memory.h"

namespace hybridgen {

struct HybridCase {
  enum class Launch : uint8_t { kEager, kPiecewise, kGraph };
  // A published query waits in its slot for the answer of the layer before, as with one-layer lookahead.
  enum class Order : uint8_t { kOneOpen, kTwoOpen };

  uint64_t seed = 0;
  int layers = 1;
  int words = 1;    // of the state, a query and a partial
  int threads = 1;  // of the publishing kernel's block
  Launch launch = Launch::kEager;
  Order order = Order::kOneOpen;
  bool non_temporal = false;  // the CPU stores partials past the cache
  bool executor = false;      // the CPU computes them on the executor given
  std::vector<bool> steps;    // of each step, whether the CPU has a part

  std::string ToString() const;
};

HybridCase RandomCase(uint64_t seed);

// The tokens by the definition: no threads, no joint.
std::vector<uint64_t> OracleTokens(const HybridCase& c);

// Places in the CPU's part of a call at which a test may hold it.
enum class Place : uint8_t { kBeforeWork, kMidData, kBeforeFence, kBeforeAnswer };

struct HybridOptions {
  Mutation mutation = Mutation::kNone;
  absl::Duration worker_timeout = absl::Seconds(60);
  absl::Duration device_timeout = absl::Seconds(120);
  std::function<int64_t()> host_now_ns;                      // empty: steady clock
  std::function<uint64_t()> device_now_ns;                   // empty: steady clock
  std::function<void(int step, int layer, Place place)> at;  // called by the dispatcher's thread; empty: nothing
  Executor* executor = nullptr;
};

class HybridRun {
 public:
  HybridRun(const HybridCase& c, HybridOptions options);
  ~HybridRun();

  // Launches all steps, without waiting for one before the next is launched. Ends early when the joint is dead,
  // the stream has trapped, or a step ended without its answers.
  void LaunchAll();
  // Waits for the stream. False: it trapped.
  bool Synchronize();

  const std::vector<uint64_t>& tokens() const;  // that left the device; after Synchronize
  JointOutcome last_outcome() const;            // of the last wait; after Synchronize
  int overlaps() const { return overlaps_; }    // steps launched while the one before was not answered
  absl::Status status() const;                  // of the joint
  const JointMemory& memory() const;

 private:
  struct Shared;  // with the threads; a late worker may outlive the run
  std::shared_ptr<Shared> shared_;
  int overlaps_ = 0;
  std::unique_ptr<JointDispatcher> joint_;
  std::unique_ptr<FakeStream> stream_;  // ends first
};

}  // namespace hybridgen

#endif  // TESTS_JOINT_HYBRID_MODEL_H_
