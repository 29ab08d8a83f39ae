// Poisoned buffers and synthetic elements.
#include "tests/harness/buffers.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace hybridgen {
namespace {

constexpr size_t kAlignment = 64;
constexpr int kHeadGap = 8;    // elements between heads
constexpr int kTokenGap = 24;  // elements between tokens

bool AllPoison(const unsigned char* begin, size_t bytes) {
  return std::all_of(begin, begin + bytes, [](unsigned char byte) { return byte == kPoison; });
}

}  // namespace

GuardedBuffer::GuardedBuffer(size_t bytes)
    : bytes_((bytes + kAlignment - 1) / kAlignment * kAlignment),
      owner_(static_cast<unsigned char*>(std::aligned_alloc(kAlignment, bytes_ + 2 * kRedZoneBytes)), &std::free),
      base_(owner_.get()) {
  std::memset(base_, kPoison, bytes_ + 2 * kRedZoneBytes);
}

void GuardedBuffer::Poison() { std::memset(data(), kPoison, bytes_); }

bool GuardedBuffer::RedZonesIntact() const {
  return AllPoison(base_, kRedZoneBytes) && AllPoison(base_ + kRedZoneBytes + bytes_, kRedZoneBytes);
}

TokenTensor::TokenTensor(int tokens, int heads, int head_size, DType dtype)
    : tokens_(tokens),
      heads_(heads),
      head_size_(head_size),
      dtype_(dtype),
      head_stride_(head_size + kHeadGap),
      token_stride_(heads * head_stride_ + kTokenGap),
      buffer_(DTypeSize(dtype) * tokens * token_stride_) {}

void TokenTensor::Set(int token, int head, int dim, float value) {
  WriteElement(dtype_, buffer_.data() + Offset(token, head, dim), 0, value);
}

float TokenTensor::Get(int token, int head, int dim) {
  return ReadElement(dtype_, buffer_.data() + Offset(token, head, dim), 0);
}

bool TokenTensor::SurroundingsIntact(int tokens) {
  const size_t element = DTypeSize(dtype_);
  for (int token = 0; token < tokens; ++token) {
    for (int head = 0; head < heads_; ++head) {
      if (!AllPoison(buffer_.data() + Offset(token, head, head_size_), element * kHeadGap)) return false;
    }
    if (!AllPoison(buffer_.data() + Offset(token, heads_, 0), element * kTokenGap)) return false;
  }
  const size_t used = Offset(tokens, 0, 0);
  return AllPoison(buffer_.data() + used, buffer_.size() - used) && buffer_.RedZonesIntact();
}

float Rounded(float value, DType dtype) {
  float stored = 0;
  WriteElement(dtype, &stored, 0, value);
  return ReadElement(dtype, &stored, 0);
}

// splitmix64; 24 bits of it are exact in a float.
float ElementStream::Next() {
  state_ += 0x9e3779b97f4a7c15u;
  uint64_t bits = state_;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  bits ^= bits >> 31;
  return static_cast<float>(static_cast<int64_t>(bits >> 40) - (int64_t{1} << 23)) * 0x1p-23f;
}

}  // namespace hybridgen
