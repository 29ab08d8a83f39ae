// The machine's read ceiling: plain vector loads over a piece of memory in one or several interleaved streams.
#ifndef TESTS_BENCH_READ_CEILING_H_
#define TESTS_BENCH_READ_CEILING_H_

#include <cstddef>
#include <cstdint>

namespace hybridgen {

// Reads `bytes` from `memory` (aligned to 64) as `streams` sequential streams side by side, each a part of it; bytes a
// multiple of 256 * streams. Widest vectors that the CPU has. Returns the exclusive or of all 8-byte words.
uint64_t ReadStreams(const char* memory, size_t bytes, int streams);

}  // namespace hybridgen

#endif  // TESTS_BENCH_READ_CEILING_H_
