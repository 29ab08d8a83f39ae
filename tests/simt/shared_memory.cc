// Shadow of shared memory.
#include "tests/simt/shared_memory.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace hybridgen::simt {
namespace {

constexpr char kPoison = static_cast<char>(0xff);
constexpr int kWarp = 32;

}  // namespace

SharedMemory::SharedMemory(size_t bytes, int threads)
    : bytes_(bytes),
      threads_(threads),
      warps_((threads + kWarp - 1) / kWarp),
      memory_(new char[bytes + 2 * kRedZone + 128]),
      met_(static_cast<size_t>(threads) * threads, 0),
      writes_(bytes),
      reads_(writes_.size() * warps_ * 2),
      in_flight_(writes_.size(), 0) {
  std::memset(memory_.get(), kPoison, bytes + 2 * kRedZone + 128);
  base_ = memory_.get() + kRedZone;
  base_ += (128 - reinterpret_cast<uintptr_t>(base_) % 128) % 128;
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(base_ - kRedZone, kRedZone);
  __asan_poison_memory_region(base_ + bytes_, kRedZone);
#endif
}

SharedMemory::~SharedMemory() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(base_ - kRedZone, bytes_ + 2 * kRedZone);
#endif
}

bool SharedMemory::RedZonesIntact() const {
#ifdef __SANITIZE_ADDRESS__
  return true;  // a wild write has ended the test already
#else
  const auto intact = [](const char* p) { return std::all_of(p, p + kRedZone, [](char c) { return c == kPoison; }); };
  return intact(base_ - kRedZone) && intact(base_ + bytes_);
#endif
}

bool SharedMemory::Ordered(const Record& record, int thread) const {
  return record.time <= all_met_ || record.thread == thread ||
         record.time <= met_[static_cast<size_t>(thread) * threads_ + record.thread];
}

std::string SharedMemory::Race(const char* what, int thread, size_t offset, int line, const char* other,
                               const Record& record) {
  return absl::StrCat("race in shared memory at byte ", offset, ": thread ", thread, what, " (line ", line,
                      ") without a barrier since thread ", record.thread, other, " (line ", record.line, ")");
}

std::string SharedMemory::Check(Access access, int thread, const void* address, size_t size, int line) {
  const char* const p = static_cast<const char*>(address);
  if (p < base_ || p + size > base_ + bytes_) {
    return absl::StrCat("out of bounds: thread ", thread, access == Access::kRead ? " reads " : " writes ", size,
                        " bytes at byte ", p - base_, " of ", bytes_, " bytes of shared memory (line ", line, ")");
  }
  const size_t offset = p - base_;
  if (reinterpret_cast<uintptr_t>(p) % std::min<size_t>(size, 16) != 0) {
    return absl::StrCat("misaligned: thread ", thread, " accesses ", size, " bytes at byte ", offset,
                        " of shared memory (line ", line, ")");
  }
  const int warp = thread / kWarp;
  for (size_t at = offset; at < offset + size; ++at) {
    if (in_flight_[at] != 0) {
      return absl::StrCat("thread ", thread, " touches byte ", at, " of shared memory (line ", line,
                          ") while a cp.async of thread ", in_flight_[at] - 1, " to it has not been waited for (line ",
                          writes_[at].line, ")");
    }
    const Record& write = writes_[at];
    if (!Ordered(write, thread)) {
      return Race(access == Access::kRead ? " reads" : " writes", thread, at, line, " wrote", write);
    }
    const Record mine = {now_, static_cast<uint16_t>(thread), static_cast<uint16_t>(line)};
    Record* const reads = &reads_[at * warps_ * 2];
    if (access == Access::kRead) {
      if (write.time == 0) {
        return absl::StrCat("thread ", thread, " reads byte ", at, " of shared memory, which nobody has written (line ",
                            line, ")");
      }
      Record* const last = reads + warp * 2;
      if (last->thread != thread) last[1] = last[0];
      last[0] = mine;
      continue;
    }
    for (int i = 0; i < warps_ * 2; ++i) {
      if (!Ordered(reads[i], thread)) return Race(" writes", thread, at, line, " read", reads[i]);
    }
    writes_[at] = mine;
  }
  return "";
}

std::string SharedMemory::BeginCopy(int thread, void* address, size_t size, int line) {
  std::string error = Check(Access::kWrite, thread, address, size, line);
  if (!error.empty()) return error;
  std::memset(address, kPoison, size);
  const size_t offset = static_cast<char*>(address) - base_;
  std::fill_n(in_flight_.begin() + offset, size, static_cast<uint16_t>(thread + 1));
  return "";
}

void SharedMemory::EndCopy(int thread, void* address, size_t size, int line) {
  const size_t offset = static_cast<char*>(address) - base_;
  std::fill_n(in_flight_.begin() + offset, size, static_cast<uint16_t>(0));
  const Record mine = {now_, static_cast<uint16_t>(thread), static_cast<uint16_t>(line)};
  std::fill_n(writes_.begin() + offset, size, mine);
}

void SharedMemory::Synchronise(const std::vector<int>& threads) {
  if (static_cast<int>(threads.size()) == threads_) {
    all_met_ = now_++;
    return;
  }
  // Everybody now knows what any of them knew.
  std::vector<uint32_t> known(threads_, 0);
  for (int thread : threads) {
    const uint32_t* row = &met_[static_cast<size_t>(thread) * threads_];
    for (int other = 0; other < threads_; ++other) known[other] = std::max(known[other], row[other]);
  }
  for (int thread : threads) known[thread] = now_;
  for (int thread : threads) {
    std::copy(known.begin(), known.end(), met_.begin() + static_cast<size_t>(thread) * threads_);
  }
  ++now_;
}

}  // namespace hybridgen::simt
