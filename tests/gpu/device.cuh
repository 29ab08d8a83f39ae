// CUDA calls of the check: errors end the program, device memory is poison until written, times are medians.
#ifndef TESTS_GPU_DEVICE_CUH_
#define TESTS_GPU_DEVICE_CUH_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "kernels/cuda/launch.h"

namespace hybridgen::cuda {

constexpr int kWrong = 1;      // exit status: a wrong answer, or an error of CUDA
constexpr int kNoDevice = 77;  // exit status: nothing to run on

inline void Cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "check: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(kWrong);
}

inline void Ok(LaunchStatus status, const char* what) {
  if (status == LaunchStatus::kOk) return;
  std::fprintf(stderr, "check: %s: %s (%s)\n", what, LaunchStatusText(status), cudaGetErrorString(cudaGetLastError()));
  std::exit(kWrong);
}

// An array in device memory.
template <typename T>
class Device {
 public:
  explicit Device(size_t count) : count_(count) {
    Cuda(cudaMalloc(&data_, std::max<size_t>(count, 1) * sizeof(T)), "cudaMalloc");
    Cuda(cudaMemset(data_, 0xff, std::max<size_t>(count, 1) * sizeof(T)), "cudaMemset");
  }
  explicit Device(const std::vector<T>& from) : Device(from.size()) { Write(from); }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* data() const { return data_; }
  size_t size() const { return count_; }
  void Write(const std::vector<T>& from) {
    Cuda(cudaMemcpy(data_, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
  }
  std::vector<T> Read() const {
    std::vector<T> to(count_);
    Cuda(cudaMemcpy(to.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy from the device");
    return to;
  }

 private:
  T* data_ = nullptr;
  const size_t count_;
};

// Host memory that the device maps at the same address.
class Pinned {
 public:
  explicit Pinned(size_t bytes) {
    Cuda(cudaHostAlloc(reinterpret_cast<void**>(&data_), std::max<size_t>(bytes, 1),
                       cudaHostAllocMapped | cudaHostAllocPortable),
         "cudaHostAlloc");
  }
  ~Pinned() { cudaFreeHost(data_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
};

// Median seconds of what `run` queues on the default stream, by events, each run on its own. Three come before.
inline double Seconds(const std::function<void()>& run, int repeats = 25) {
  cudaEvent_t begin, end;
  Cuda(cudaEventCreate(&begin), "event");
  Cuda(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int i = 0; i < repeats + 3; ++i) {
    Cuda(cudaEventRecord(begin), "event");
    run();
    Cuda(cudaEventRecord(end), "event");
    Cuda(cudaEventSynchronize(end), "kernels");
    float ms = 0;
    Cuda(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 3) times.push_back(ms * 1e-3);
  }
  Cuda(cudaEventDestroy(begin), "event");
  Cuda(cudaEventDestroy(end), "event");
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

}  // namespace hybridgen::cuda

#endif  // TESTS_GPU_DEVICE_CUH_
