// Runs a CUDA kernel's source on the host: every thread of a block is a fibre, which lane goes on next is drawn from a
// seed, and whatever the programming model leaves undefined is reported instead of being answered.
//
// Caught, with the source line: races and uninitialised or out-of-bounds accesses in shared memory (through Shared<T>
// of kernels/cuda/arch.h; plain pointers into it only by the address sanitizer), barriers and collectives that not all
// of their threads reach, deadlocks, reads of a cp.async destination before its wait.
// Stores past the caches (StoreOnce16) show late, so that a fence which is missing before a release can be seen.
// Not modelled: time, caches, the weak ordering of other accesses to global memory.
#ifndef TESTS_SIMT_EXECUTOR_H_
#define TESTS_SIMT_EXECUTOR_H_

#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/status/status.h"

namespace hybridgen::simt {

struct Dim3 {
  int x = 1;
  int y = 1;
  int z = 1;
};

struct LaunchConfig {
  Dim3 grid;
  int threads = 32;                         // of a block, a multiple of 32 up to 1024
  size_t shared_bytes = 0;                  // dynamic shared memory of a block
  uint64_t seed = 1;                        // order of lanes, warps and blocks, and when copies land
  int resident_blocks = 2;                  // that run at the same time
  int64_t max_switches = int64_t{1} << 28;  // of lanes, in all; beyond it the launch counts as endless
  // Called when a thread has released a word to the host: what the host may read then must be there by now.
  std::function<void(const uint64_t* word, uint64_t value)> released;
};

// Runs `kernel` once per thread of the grid. An error names the block, the threads, the lines and the seed; the
// kernel's frames are then abandoned, so a kernel must not own memory.
absl::Status Launch(const LaunchConfig& config, const std::function<void()>& kernel);

// ---- What a kernel's thread may call (through kernels/cuda/arch.h). ----

// Where a kernel called; filled in by the compiler as a default argument.
struct Site {
  const char* file;
  int line;
  static constexpr Site Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

int ThreadIndex();
Dim3 BlockIndex();

// Waits until `threads` threads of the block (a multiple of 32; 0: all) are at barrier `id` < 16.
void Barrier(int id, int threads, Site site);

// Waits until all lanes of `mask` are here, then `combine` runs once over their payloads (null for the others). All
// lanes must come with the same operation, mask and line. Memory is ordered between the lanes only if asked for.
enum class Orders { kNothing, kMemory };
using Combine = void (*)(void* const* payloads, uint32_t mask);
void Collective(const char* operation, uint32_t mask, void* payload, Combine combine, Orders orders, Site site);

char* SharedBase();
// Reports an access of [address, address + size) if it is wrong.
enum class SharedAccess { kRead, kWrite };
void CheckShared(SharedAccess access, const void* address, size_t size, Site site);

// cp.async of 16 bytes, of which the first `source_bytes` come from `source` and the rest are zeros. The copy happens
// at a random moment up to its wait.
void AsyncCopy(void* shared, const void* source, int source_bytes, Site site);
void AsyncCommit();
void AsyncWait(int groups_in_flight);  // all but the newest so many groups have landed

// A store of 16 bytes that the kernel does not read again. It shows at a random moment up to this thread's next fence,
// release or end.
void StoreLate(void* to, const void* from);
void FenceSystem();
void StoreRelease(uint64_t* word, uint64_t value);

// Lets other threads go first, perhaps. Sleep also advances the clock.
void Yield();
void Sleep(uint32_t nanoseconds);
uint64_t Now();  // nanoseconds of a clock that every switch advances

// Ends the launch with this error.
[[noreturn]] void Fail(const char* message, Site site);

}  // namespace hybridgen::simt

#endif  // TESTS_SIMT_EXECUTOR_H_
