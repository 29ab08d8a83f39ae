// The shared memory of one emulated thread block, watched by a shadow: who last wrote and read every byte, and whether
// a barrier lies between that and the access at hand.
#ifndef TESTS_SIMT_SHARED_MEMORY_H_
#define TESTS_SIMT_SHARED_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace hybridgen::simt {

// Accesses are stamped with a block-wide clock that every synchronisation advances. Access A of thread u happens before
// access B of thread t if t has since synchronised with u (directly or through others) at a time not before A's stamp.
// Two accesses of different threads, one of them a write, that are not ordered so are a race. Of the reads of a warp
// the last is kept, and the last of another thread than that, which is exact where warps synchronise as a whole.
class SharedMemory {
 public:
  // Contents start as 0xff bytes (NaN in every float format) and as never written.
  SharedMemory(size_t bytes, int threads);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;

  char* base() const { return base_; }
  size_t bytes() const { return bytes_; }

  // One access of `size` bytes at `address` by `thread`, from source line `line`. Returns what is wrong with it, or an
  // empty string.
  enum class Access { kRead, kWrite };
  std::string Check(Access access, int thread, const void* address, size_t size, int line);

  // cp.async: from issue to completion nobody may touch the destination, whose content is poison.
  std::string BeginCopy(int thread, void* address, size_t size, int line);
  void EndCopy(int thread, void* address, size_t size, int line);

  // The given threads have met: what any of them did before is before what any of them does next.
  void Synchronise(const std::vector<int>& threads);

  // Whether the bytes around the memory still hold their pattern.
  bool RedZonesIntact() const;

 private:
  struct Record {
    uint32_t time = 0;  // 0: none
    uint16_t thread = 0;
    uint16_t line = 0;
  };
  // Record of one thread's access is ordered before what `thread` does now.
  bool Ordered(const Record& record, int thread) const;
  std::string Race(const char* what, int thread, size_t offset, int line, const char* other, const Record& record);

  static constexpr size_t kRedZone = 1024;

  size_t bytes_;
  int threads_;
  int warps_;
  std::unique_ptr<char[]> memory_;
  char* base_;
  uint32_t now_ = 1;
  uint32_t all_met_ = 0;             // time of the last meeting of all threads
  std::vector<uint32_t> met_;        // [thread][other] time up to which the other's accesses are before the thread's
  std::vector<Record> writes_;       // [byte]
  std::vector<Record> reads_;        // [byte][warp][2]
  std::vector<uint16_t> in_flight_;  // [byte] thread + 1 of a cp.async that has not been waited for
};

}  // namespace hybridgen::simt

#endif  // TESTS_SIMT_SHARED_MEMORY_H_
