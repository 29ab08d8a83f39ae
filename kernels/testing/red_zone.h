// Memory for test outputs with guard bands on both sides, filled with a pattern that reads as NaN.
#ifndef KERNELS_TESTING_RED_ZONE_H_
#define KERNELS_TESTING_RED_ZONE_H_

#include <cstdint>
#include <cstring>
#include <vector>

namespace hybridgen {

// A buffer of `size` elements at a 64-byte boundary (plus `misalign` bytes).
template <typename T>
class RedZoned {
 public:
  explicit RedZoned(size_t size, size_t misalign = 0) : size_(size), bytes_(size * sizeof(T) + 3 * kBand, kPattern) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(bytes_.data()) + kBand;
    offset_ = kBand + (64 - begin % 64) % 64 + misalign;
  }
  T* data() { return reinterpret_cast<T*>(bytes_.data() + offset_); }
  size_t size() const { return size_; }
  T operator[](size_t i) const {
    T value;
    std::memcpy(&value, bytes_.data() + offset_ + i * sizeof(T), sizeof(T));
    return value;
  }
  // Whether every byte outside the buffer still has the pattern.
  bool Intact() const {
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if (i >= offset_ && i < offset_ + size_ * sizeof(T)) continue;
      if (bytes_[i] != kPattern) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kBand = 256;
  static constexpr uint8_t kPattern = 0xff;  // NaN in every float format
  size_t size_;
  std::vector<uint8_t> bytes_;
  size_t offset_;
};

}  // namespace hybridgen

#endif  // KERNELS_TESTING_RED_ZONE_H_
