#include "tests/bench/read_ceiling.h"

#include "kernels/cpu_features.h"

namespace hybridgen {
namespace {

constexpr int kVectors = 4;  // 256 bytes of each stream in turn

// The compiler's own vectors: the same source for every instruction set.
typedef uint64_t Words __attribute__((vector_size(64)));

inline __attribute__((always_inline)) uint64_t Read(const char* memory, size_t bytes, int streams) {
  Words x[kVectors] = {};
  const size_t part = bytes / streams;
  for (size_t offset = 0; offset < part; offset += sizeof(x)) {
    for (int s = 0; s < streams; ++s) {
      const Words* p = reinterpret_cast<const Words*>(memory + s * part + offset);
      for (int i = 0; i < kVectors; ++i) x[i] ^= p[i];
    }
  }
  x[0] ^= x[1] ^ x[2] ^ x[3];
  uint64_t all = 0;
  for (int i = 0; i < 8; ++i) all ^= x[0][i];
  return all;
}

uint64_t ReadBaseline(const char* memory, size_t bytes, int streams) { return Read(memory, bytes, streams); }

#if defined(__x86_64__)
__attribute__((target("avx512f"))) uint64_t ReadAvx512(const char* memory, size_t bytes, int streams) {
  return Read(memory, bytes, streams);
}

__attribute__((target("avx2"))) uint64_t ReadAvx2(const char* memory, size_t bytes, int streams) {
  return Read(memory, bytes, streams);
}
#endif

}  // namespace

uint64_t ReadStreams(const char* memory, size_t bytes, int streams) {
#if defined(__x86_64__)
  static const CpuFeatures features = DetectCpuFeatures();
  if (features.avx512f) return ReadAvx512(memory, bytes, streams);
  if (features.avx2) return ReadAvx2(memory, bytes, streams);
#endif
  return ReadBaseline(memory, bytes, streams);
}

}  // namespace hybridgen
