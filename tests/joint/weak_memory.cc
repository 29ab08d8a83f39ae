#include "tests/joint/weak_memory.h"

#include <thread>

namespace hybridgen {

void StoreBuffer::Store(uint64_t* p, uint64_t v) {
  // Stores to one address stay in order: the later replaces the earlier.
  for (auto& [address, value] : pending_) {
    if (address == p) {
      value = v;
      return;
    }
  }
  pending_.emplace_back(p, v);
  if (rng_() % 4 == 0) DrainOne(rng_() % pending_.size());
}

void StoreBuffer::Drain() {
  while (!pending_.empty()) DrainOne(rng_() % pending_.size());
}

void StoreBuffer::DrainOne(size_t index) {
  // Plain, so that tsan reports a reader that the protocol does not order behind it.
  *pending_[index].first = pending_[index].second;
  pending_[index] = pending_.back();
  pending_.pop_back();
}

WeakDevice::WeakDevice(uint64_t seed, int threads, Mutation mutation, std::function<uint64_t()> now_ns)
    : mutation_(mutation), now_ns_(std::move(now_ns)) {
  for (int i = 0; i < threads; ++i) stores_.emplace_back(seed + i);
}

uint64_t WeakDevice::Load(const uint64_t* p) { return cache_.try_emplace(p, *p).first->second; }

uint64_t WeakOps::load_acquire_sys(const uint64_t* p) {
  if (device_.mutation_ == Mutation::kRelaxedAnswerLoad) return __atomic_load_n(p, __ATOMIC_RELAXED);
  device_.cache_.clear();
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

void WeakOps::store_release_sys(uint64_t* p, uint64_t v) {
  if (device_.mutation_ == Mutation::kPlainSequenceStore) return store(p, v);
  stores_.Drain();
  __atomic_store_n(p, v, __ATOMIC_RELEASE);
}

void WeakOps::fence_sys() {
  if (device_.mutation_ != Mutation::kNoQueryFence) stores_.Drain();
}

void WeakOps::pause() { std::this_thread::yield(); }

}  // namespace hybridgen
