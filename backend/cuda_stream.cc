#include "backend/cuda_stream.h"

#include <cuda_runtime_api.h>
#include <numaif.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

constexpr size_t kCopyChunk = 1 << 20;  // priority does not order copy engines, so nobody waits longer than for this
constexpr int kLeastMajor = 8;          // compute capability that the kernels are compiled for

absl::Status Text(const char* operation, cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("cuda: ", operation, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
}

absl::Status Text(const char* kernel, cuda::LaunchStatus status) {
  if (status == cuda::LaunchStatus::kOk) return absl::OkStatus();
  if (status == cuda::LaunchStatus::kDriver) return Text(kernel, cudaGetLastError());
  return absl::InvalidArgumentError(absl::StrCat("cuda: ", kernel, ": ", cuda::LaunchStatusText(status)));
}

// Calls of this thread do not end a capture that the engine has under way in another.
class Relaxed {
 public:
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// NUMA node of the device, -1: unknown, or the machine has one.
int NodeOf(int device) {
  char bus[32] = {};
  if (cudaDeviceGetPCIBusId(bus, sizeof(bus), device) != cudaSuccess) return -1;
  std::ifstream file(absl::StrCat("/sys/bus/pci/devices/", absl::AsciiStrToLower(bus), "/numa_node"));
  int node = -1;
  return file >> node ? node : -1;
}

class CudaStream final : public DeviceStream {
 public:
  CudaStream(int device, const cudaDeviceProp& properties)
      : device_(device), node_(NodeOf(device)), name_(properties.name), processors_(properties.multiProcessorCount) {}

  ~CudaStream() override {
    Enter();
    for (const Place& place : places_) cudaEventDestroy(place.event);
    for (cudaEvent_t event : spare_) cudaEventDestroy(event);
    for (cudaEvent_t event : stamps_) cudaEventDestroy(event);
  }

  const char* name() const override { return name_.c_str(); }
  int num_processors() const override { return processors_; }

  absl::Status SwitchTo(CUstream_st* queue) override {
    Enter();
    if (queue == queue_) return absl::OkStatus();
    absl::StatusOr<StreamMark> mark = Mark();
    if (!mark.ok()) return mark.status();
    queue_ = queue;
    return Text("ordering two streams", cudaStreamWaitEvent(queue_, places_.back().event, 0));
  }

  absl::StatusOr<bool> Capturing(CUstream_st* queue) override {
    Enter();
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (absl::Status s = Text("asking for a capture", cudaStreamIsCapturing(queue, &capture)); !s.ok()) return s;
    return capture != cudaStreamCaptureStatusNone;
  }
  // Not by SwitchTo: what a graph holds is not ordered behind work outside of it.
  void BeginCapture(CUstream_st* queue) override {
    Enter();
    outside_ = queue_;
    queue_ = queue;
  }
  void EndCapture() override { queue_ = outside_; }

  absl::StatusOr<std::shared_ptr<void>> AllocateDevice(size_t bytes) override {
    Enter();
    const Relaxed relaxed;
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return absl::ResourceExhaustedError(
          absl::StrCat("cuda: the device has no room for ", bytes, " bytes; leave more of its memory to attention"));
    }
    if (absl::Status status = Text("allocating device memory", error); !status.ok()) return status;
    return std::shared_ptr<void>(data, [](void* p) {
      const Relaxed relaxed;
      cudaFree(p);
    });
  }

  absl::StatusOr<std::shared_ptr<void>> AllocatePinned(size_t bytes) override {
    Enter();
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t size = (bytes + page - 1) / page * page;
    void* const data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("cuda: the system refused ", bytes, " bytes of host memory"));
    }
    if (node_ >= 0) {
      std::vector<unsigned long> mask(node_ / (8 * sizeof(unsigned long)) + 1);
      mask[node_ / (8 * sizeof(unsigned long))] = 1ul << node_ % (8 * sizeof(unsigned long));
      mbind(data, size, MPOL_PREFERRED, mask.data(), mask.size() * 8 * sizeof(unsigned long) + 1, 0);  // advisory
    }
    const Relaxed relaxed;
    const cudaError_t error = cudaHostRegister(data, size, kRegister);
    if (error != cudaSuccess) {
      munmap(data, size);
      return absl::ResourceExhaustedError(
          absl::StrCat("cuda: pinning ", bytes, " bytes: ", cudaGetErrorString(error), "; see RLIMIT_MEMLOCK"));
    }
    return std::shared_ptr<void>(data, [size](void* p) {
      const Relaxed relaxed;
      cudaHostUnregister(p);
      munmap(p, size);
    });
  }

  DeviceRegistrar& registrar() override { return registrar_; }

  absl::Status CopyToDevice(void* to, const void* from, size_t bytes) override {
    return Copy(to, from, bytes, cudaMemcpyHostToDevice);
  }
  absl::Status CopyToHost(void* to, const void* from, size_t bytes) override {
    return Copy(to, from, bytes, cudaMemcpyDeviceToHost);
  }
  absl::Status Zero(void* device, size_t bytes) override {
    Enter();
    return Text("clearing memory", cudaMemsetAsync(device, 0, bytes, queue_));
  }

  absl::Status WriteKv(const cuda::WriteKvParams& p) override {
    return Text("write KV", cuda::LaunchWriteKv(p, queue_));
  }
  absl::Status Decode(const cuda::AttendParams& p) override { return Text("decode", cuda::LaunchDecode(p, queue_)); }
  absl::Status Prefill(const cuda::AttendParams& p) override { return Text("prefill", cuda::LaunchPrefill(p, queue_)); }
  absl::Status Merge(const cuda::MergeParams& p) override { return Text("merge", cuda::LaunchMerge(p, queue_)); }
  absl::Status PackPages(const cuda::RepackParams& p) override {
    Enter();  // planning may run on another thread than the layers
    return Text("pack pages", cuda::LaunchPackPages(p, queue_));
  }
  absl::Status UnpackPages(const cuda::RepackParams& p) override {
    Enter();
    return Text("unpack pages", cuda::LaunchUnpackPages(p, queue_));
  }
  absl::Status Publish(const cuda::PublishParams& p) override {
    return Text("publish", cuda::LaunchPublish(p, queue_));
  }
  absl::Status Await(const cuda::AwaitParams& p) override { return Text("await", cuda::LaunchAwait(p, queue_)); }

  absl::StatusOr<int> MakeStamps(int count) override {
    Enter();
    const Relaxed relaxed;
    const int first = static_cast<int>(stamps_.size());
    for (int i = 0; i < count; ++i) {
      cudaEvent_t event = nullptr;
      if (absl::Status s = Text("creating an event", cudaEventCreate(&event)); !s.ok()) return s;
      stamps_.push_back(event);
    }
    return first;
  }

  absl::Status Stamp(int stamp) override {
    Enter();
    return Text("recording an event", cudaEventRecord(stamps_[stamp], queue_));
  }

  absl::StatusOr<double> SecondsBetween(int from, int to) override {
    Enter();
    const Relaxed relaxed;
    float milliseconds = 0;
    const cudaError_t error = cudaEventElapsedTime(&milliseconds, stamps_[from], stamps_[to]);
    if (error != cudaSuccess) return Text("asking for a time", error);
    return milliseconds * 1e-3;
  }

  absl::StatusOr<StreamMark> Mark() override {
    Enter();
    cudaEvent_t event = nullptr;
    if (!spare_.empty()) {
      event = spare_.back();
      spare_.pop_back();
    } else {
      const Relaxed relaxed;
      const cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
      if (error != cudaSuccess) return Text("creating an event", error);
    }
    places_.push_back({++marks_, event});
    if (absl::Status s = Text("recording an event", cudaEventRecord(event, queue_)); !s.ok()) return s;
    return marks_;
  }

  absl::StatusOr<bool> Passed(StreamMark mark) override {
    Enter();
    const Relaxed relaxed;
    while (!places_.empty() && places_.front().mark <= mark) {
      const cudaError_t error = cudaEventQuery(places_.front().event);
      if (error == cudaErrorNotReady) return false;
      if (error != cudaSuccess) return Text("work on the device", error);
      // The newest stays: switching queues waits for it.
      if (places_.size() == 1) return true;
      spare_.push_back(places_.front().event);
      places_.pop_front();
    }
    return true;
  }

  absl::Status Wait(StreamMark mark, absl::Duration timeout) override {
    const auto begin = std::chrono::steady_clock::now();
    const auto limit = absl::ToChronoNanoseconds(timeout);
    for (;;) {
      absl::StatusOr<bool> passed = Passed(mark);
      if (!passed.ok()) return passed.status();
      if (*passed) return absl::OkStatus();
      const auto waited = std::chrono::steady_clock::now() - begin;
      if (waited > limit) {
        return absl::DeadlineExceededError(
            absl::StrCat("cuda: the device did not finish within ", absl::FormatDuration(timeout)));
      }
      if (waited < std::chrono::milliseconds(1)) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
  }

 private:
  static constexpr unsigned kRegister = cudaHostRegisterMapped | cudaHostRegisterPortable;

  struct Registrar final : DeviceRegistrar {
    explicit Registrar(CudaStream* stream) : stream(stream) {}
    absl::Status Register(absl::Span<std::byte> range) override {
      stream->Enter();
      const Relaxed relaxed;
      const cudaError_t error = cudaHostRegister(range.data(), range.size(), kRegister);
      if (error != cudaSuccess) cudaGetLastError();  // a refusal is no error of later work
      return Text("registering host memory", error);
    }
    absl::Status Unregister(absl::Span<std::byte> range) override {
      stream->Enter();
      const Relaxed relaxed;
      return Text("releasing host memory", cudaHostUnregister(range.data()));
    }
    CudaStream* const stream;
  };

  struct Place {
    StreamMark mark;
    cudaEvent_t event;
  };

  // The device is a property of the calling thread.
  void Enter() const { cudaSetDevice(device_); }

  absl::Status Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    Enter();
    for (size_t done = 0; done < bytes; done += kCopyChunk) {
      const cudaError_t error = cudaMemcpyAsync(static_cast<char*>(to) + done, static_cast<const char*>(from) + done,
                                                std::min(kCopyChunk, bytes - done), kind, queue_);
      if (error != cudaSuccess) return Text("copying", error);
    }
    return absl::OkStatus();
  }

  const int device_;
  const int node_;
  const std::string name_;
  const int processors_;
  Registrar registrar_{this};
  CUstream_st* queue_ = nullptr;
  CUstream_st* outside_ = nullptr;  // during a capture: queue_ before
  std::deque<Place> places_;        // recorded, ascending
  std::vector<cudaEvent_t> spare_;
  std::vector<cudaEvent_t> stamps_;
  StreamMark marks_ = 0;
};

}  // namespace

absl::Status CudaStatus() {
  int driver = 0;
  if (const cudaError_t error = cudaDriverGetVersion(&driver); error != cudaSuccess || driver == 0) {
    cudaGetLastError();
    return absl::UnavailableError(
        "device kind cuda: no NVIDIA driver on this machine (libcuda.so.1); accepted on the CPU: cpu, emulated");
  }
  // A driver runs every runtime of its own major version.
  if (driver / 1000 < CUDART_VERSION / 1000) {
    return absl::UnavailableError(absl::StrCat("device kind cuda: the NVIDIA driver is for CUDA ", driver / 1000,
                                               "; accepted: CUDA ", CUDART_VERSION / 1000, " or later"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<DeviceStream>> CreateCudaStream(int device) {
  if (absl::Status s = CudaStatus(); !s.ok()) return s;
  int devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&devices);
  if (found != cudaSuccess || device < 0 || device >= devices) {
    cudaGetLastError();
    return absl::UnavailableError(absl::StrCat("device kind cuda: cuda_device is ", device, " of ", devices, " devices",
                                               found != cudaSuccess ? ": " : "",
                                               found != cudaSuccess ? cudaGetErrorString(found) : ""));
  }
  // All calls of the stream select its device, and those below are about the selected one.
  if (absl::Status s = Text("selecting the device", cudaSetDevice(device)); !s.ok()) return s;
  cudaDeviceProp properties = {};
  if (absl::Status s = Text("asking for the device", cudaGetDeviceProperties(&properties, device)); !s.ok()) return s;
  int same_address = 0;
  cudaDeviceGetAttribute(&same_address, cudaDevAttrCanUseHostPointerForRegisteredMem, device);
  if (properties.major < kLeastMajor || same_address == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "device kind cuda: ", properties.name, " has compute capability ", properties.major, ".", properties.minor,
        same_address == 0 ? " and no unified addressing" : "", "; accepted: 8.0 or later, with unified addressing"));
  }
  if (absl::Status s = Text("loading kernels", cuda::LoadKernels()); !s.ok()) return s;
  if (absl::Status s = Text("loading kernels", cuda::LoadJointKernels()); !s.ok()) return s;
  return std::make_shared<CudaStream>(device, properties);
}

}  // namespace hybridgen
