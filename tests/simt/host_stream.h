// A device without hardware: a thread that does queued work in order, with the kernels of kernels/cuda under the
// executor. Its memory is separate and poisoned, so that a copy which is missing shows.
#ifndef TESTS_SIMT_HOST_STREAM_H_
#define TESTS_SIMT_HOST_STREAM_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/types/span.h"
#include "backend/device_stream.h"
#include "tests/simt/executor.h"

namespace hybridgen::simt {

// A kernel or copy that touches memory which the device could not reach ends the stream, as it would a GPU's.
class HostStream final : public DeviceStream {
 public:
  // `seed` draws the order of threads in every kernel.
  explicit HostStream(uint64_t seed);
  ~HostStream() override;

  const char* name() const override { return "host (SIMT executor)"; }
  int num_processors() const override { return 4; }
  absl::Status SwitchTo(CUstream_st* queue) override;
  absl::StatusOr<bool> Capturing(CUstream_st* queue) override;
  void BeginCapture(CUstream_st* queue) override;
  void EndCapture() override;
  absl::StatusOr<std::shared_ptr<void>> AllocateDevice(size_t bytes) override;
  absl::StatusOr<std::shared_ptr<void>> AllocatePinned(size_t bytes) override;
  DeviceRegistrar& registrar() override { return registrar_; }
  absl::Status CopyToDevice(void* to, const void* from, size_t bytes) override;
  absl::Status CopyToHost(void* to, const void* from, size_t bytes) override;
  absl::Status Zero(void* device, size_t bytes) override;
  absl::Status WriteKv(const cuda::WriteKvParams& params) override;
  absl::Status Decode(const cuda::AttendParams& params) override;
  absl::Status Prefill(const cuda::AttendParams& params) override;
  absl::Status Merge(const cuda::MergeParams& params) override;
  absl::Status PackPages(const cuda::RepackParams& params) override;
  absl::Status UnpackPages(const cuda::RepackParams& params) override;
  absl::Status Publish(const cuda::PublishParams& params) override;
  absl::Status Await(const cuda::AwaitParams& params) override;
  absl::StatusOr<int> MakeStamps(int count) override;
  absl::Status Stamp(int stamp) override;
  absl::StatusOr<double> SecondsBetween(int from, int to) override;
  absl::StatusOr<StreamMark> Mark() override;
  absl::StatusOr<bool> Passed(StreamMark mark) override;
  absl::Status Wait(StreamMark mark, absl::Duration timeout) override;

  // For tests.
  // Memory of the test stands for device memory: the engine's tensors.
  void Lend(const void* data, size_t bytes);
  void TakeBack(const void* data);
  absl::Status Synchronize();  // waits for all that is queued
  int64_t allocations() const { return allocations_.load(); }
  int64_t queued() const { return queued_.load(); }
  // A graph: kernels with the arguments that they were launched with. The engine's part of a capture is Capture, then
  // the layers, then TakeGraph; Replay queues a graph's kernels, any number of times.
  using Graph = std::vector<std::function<absl::Status()>>;
  void Capture() { capture_ = std::make_unique<Graph>(); }
  Graph TakeGraph();
  absl::Status Replay(const Graph& graph);
  // Refuses pinned memory of more bytes.
  void set_pinned_limit(size_t bytes) { pinned_limit_ = bytes; }
  // Accepts every n-th registration from now on; 0: none.
  void accept_every_registration(int n) { registrar_.accepts_every = n; }

 private:
  enum class Kind { kDevice, kPinned };
  struct Range {
    size_t bytes;
    Kind kind;
  };
  // What the device can reach. The memory's deleters share it, as they may outlive the stream.
  struct Memory {
    std::mutex mutex;
    std::map<uintptr_t, Range> ranges;  // by begin
  };
  struct Registrar final : DeviceRegistrar {
    explicit Registrar(Memory* memory) : memory(memory) {}
    absl::Status Register(absl::Span<std::byte> range) override;
    absl::Status Unregister(absl::Span<std::byte> range) override;
    Memory* const memory;
    int accepts_every = 1;  // 0: none
    int asked = 0;
  };
  using Work = std::function<absl::Status()>;

  absl::StatusOr<std::shared_ptr<void>> Allocate(size_t bytes, Kind kind);
  // Errors: PermissionDenied, naming `what`, unless one range holds all of it.
  absl::Status Check(const char* what, const void* data, size_t bytes, bool device_only) const;
  absl::Status CheckJobs(const cuda::RepackParams& params) const;
  absl::Status Push(Work work);
  absl::Status PushKernel(cuda::LaunchStatus checked, Work work);
  absl::Status Run(Dim3 grid, int threads, int shared_bytes, const std::function<void()>& kernel);
  absl::Status CheckAttend(const cuda::AttendParams& params) const;
  absl::Status Repack(const cuda::RepackParams& params, bool pack);
  void Loop();

  const std::shared_ptr<Memory> memory_ = std::make_shared<Memory>();
  Registrar registrar_{memory_.get()};
  std::atomic<int64_t> allocations_{0};
  std::atomic<int64_t> queued_{0};
  std::unique_ptr<Graph> capture_;  // null: no capture is under way
  bool into_graph_ = false;         // between BeginCapture and EndCapture
  size_t pinned_limit_ = SIZE_MAX;
  uint64_t seed_;  // of the thread

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<Work> work_;
  StreamMark marks_ = 0;
  StreamMark passed_ = 0;
  std::vector<std::chrono::steady_clock::time_point> stamps_;  // epoch: under way
  absl::Status status_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace hybridgen::simt

#endif  // TESTS_SIMT_HOST_STREAM_H_
