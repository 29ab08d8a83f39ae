// Buffers of the harness with poison and red zones, and the elements that it puts into them.
#ifndef TESTS_HARNESS_BUFFERS_H_
#define TESTS_HARNESS_BUFFERS_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/dtype.h"

namespace hybridgen {

// Every byte 0xff is a NaN in every dtype.
constexpr unsigned char kPoison = 0xff;
constexpr size_t kRedZoneBytes = 4096;

// Poisoned memory between two red zones, aligned to 64 bytes.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(size_t bytes);

  unsigned char* data() { return base_ + kRedZoneBytes; }
  size_t size() const { return bytes_; }
  void Poison();
  bool RedZonesIntact() const;

 private:
  size_t bytes_;
  std::unique_ptr<unsigned char, void (*)(void*)> owner_;
  unsigned char* base_;
};

// A [tokens][heads][head_size] tensor whose rows are further apart than they need be; the gaps stay poisoned.
class TokenTensor {
 public:
  TokenTensor(int tokens, int heads, int head_size, DType dtype);

  void* data() { return buffer_.data(); }
  int64_t token_stride() const { return token_stride_; }
  int64_t head_stride() const { return head_stride_; }
  void Poison() { buffer_.Poison(); }

  void Set(int token, int head, int dim, float value);
  float Get(int token, int head, int dim);
  // Red zones, gaps and rows from `tokens` on are as Poison left them.
  bool SurroundingsIntact(int tokens);

 private:
  size_t Offset(int token, int head, int dim) const {
    return DTypeSize(dtype_) * (token * token_stride_ + head * head_stride_ + dim);
  }

  const int tokens_;
  const int heads_;
  const int head_size_;
  const DType dtype_;
  const int64_t head_stride_;
  const int64_t token_stride_;
  GuardedBuffer buffer_;
};

// `value` as `dtype` holds it.
float Rounded(float value, DType dtype);

// A sequence of elements uniform in [-1, 1).
class ElementStream {
 public:
  explicit ElementStream(uint64_t seed) : state_(seed) {}
  float Next();

 private:
  uint64_t state_;
};

}  // namespace hybridgen

#endif  // TESTS_HARNESS_BUFFERS_H_
