// Memory as weak as the joint's protocol has to bear. Threads of one process would hide a missing fence: x86 shows all
// stores in order. Here the device's plain stores stay in a buffer per thread until that thread fences or releases, and
// become visible in random order; what the device has loaded stays cached until it acquires; the CPU's non-temporal
// stores stay in a buffer until the store fence. A stored word may become visible earlier, as on real machines.
#ifndef TESTS_JOINT_WEAK_MEMORY_H_
#define TESTS_JOINT_WEAK_MEMORY_H_

#include <cstdint>
#include <functional>
#include <random>
#include <unordered_map>
#include <utility>
#include <vector>

namespace hybridgen {

// What is taken out of the protocol, to see the tests fail.
enum class Mutation : uint8_t {
  kNone,
  kNoQueryFence,        // the publishing kernel's threads do not fence their part of the query
  kPlainSequenceStore,  // the sequence is stored, not released
  kRelaxedAnswerLoad,   // the waiting kernel polls without acquiring
  kNoWorkerFence,       // the CPU's non-temporal stores are not fenced
  kFrozenPlan,          // the sequence is a constant of the captured graph
  kOnePlanSource,       // all steps' plans are copied from one place
  kNoTrap,              // a failed wait does not stop the stream
};

// Stores that are not visible yet.
class StoreBuffer {
 public:
  explicit StoreBuffer(uint64_t seed) : rng_(seed) {}
  void Store(uint64_t* p, uint64_t v);
  void Drain();  // in random order

 private:
  void DrainOne(size_t index);

  std::mt19937_64 rng_;
  std::vector<std::pair<uint64_t*, uint64_t>> pending_;  // addresses are distinct
};

// The device's view of memory that the host shares. One thread of the process runs all device threads in turn.
class WeakDevice {
 public:
  WeakDevice(uint64_t seed, int threads, Mutation mutation, std::function<uint64_t()> now_ns);

  uint64_t Load(const uint64_t* p);  // plain

 private:
  friend class WeakOps;

  const Mutation mutation_;
  const std::function<uint64_t()> now_ns_;
  std::vector<StoreBuffer> stores_;  // per device thread
  std::unordered_map<const uint64_t*, uint64_t> cache_;
};

// The memory operations of kernels/joint_protocol.h for one device thread.
class WeakOps {
 public:
  WeakOps(WeakDevice& device, int thread) : device_(device), stores_(device.stores_[thread]) {}

  void store(uint64_t* p, uint64_t v) { stores_.Store(p, v); }
  uint64_t load_acquire_sys(const uint64_t* p);
  void store_release_sys(uint64_t* p, uint64_t v);
  void fence_sys();
  uint64_t now_ns() { return device_.now_ns_(); }
  void pause();

 private:
  WeakDevice& device_;
  StoreBuffer& stores_;
};

}  // namespace hybridgen

#endif  // TESTS_JOINT_WEAK_MEMORY_H_
