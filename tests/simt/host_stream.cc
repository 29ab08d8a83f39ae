#include "tests/simt/host_stream.h"

#include <chrono>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/joint.cuh"
#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/prefill.cuh"
#include "kernels/cuda/repack.cuh"
#include "kernels/cuda/write_kv.cuh"

namespace hybridgen::simt {
namespace {

constexpr size_t kAlignment = 256;

// The joint's operations for a wait outside the executor: on the clock of the machine, giving way to the CPU worker.
struct WaitOps {
  void store(uint64_t* p, uint64_t v) { *p = v; }
  uint64_t load_acquire_sys(const uint64_t* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
  void store_release_sys(uint64_t* p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
  void fence_sys() { std::atomic_thread_fence(std::memory_order_seq_cst); }
  uint64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  void pause() { std::this_thread::yield(); }
};

}  // namespace

HostStream::HostStream(uint64_t seed) : seed_(seed), thread_([this] { Loop(); }) {}

HostStream::~HostStream() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

absl::Status HostStream::SwitchTo(CUstream_st*) { return absl::OkStatus(); }

absl::StatusOr<bool> HostStream::Capturing(CUstream_st*) { return capture_ != nullptr; }
void HostStream::BeginCapture(CUstream_st*) { into_graph_ = true; }
void HostStream::EndCapture() { into_graph_ = false; }

HostStream::Graph HostStream::TakeGraph() {
  const std::unique_ptr<Graph> graph = std::move(capture_);
  return *graph;
}

absl::Status HostStream::Replay(const Graph& graph) {
  for (const Work& kernel : graph) {
    if (absl::Status status = Push(kernel); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// ---- Memory ----

absl::StatusOr<std::shared_ptr<void>> HostStream::Allocate(size_t bytes, Kind kind) {
  ++allocations_;
  void* const data = ::operator new(bytes, std::align_val_t(kAlignment));
  std::memset(data, 0xff, bytes);
  std::lock_guard<std::mutex> lock(memory_->mutex);
  memory_->ranges[reinterpret_cast<uintptr_t>(data)] = {bytes, kind};
  return std::shared_ptr<void>(data, [memory = memory_](void* p) {
    {
      std::lock_guard<std::mutex> lock(memory->mutex);
      memory->ranges.erase(reinterpret_cast<uintptr_t>(p));
    }
    ::operator delete(p, std::align_val_t(kAlignment));
  });
}

absl::StatusOr<std::shared_ptr<void>> HostStream::AllocateDevice(size_t bytes) {
  return Allocate(bytes, Kind::kDevice);
}
absl::StatusOr<std::shared_ptr<void>> HostStream::AllocatePinned(size_t bytes) {
  if (bytes > pinned_limit_) return absl::ResourceExhaustedError("host stream: pinned memory refused");
  return Allocate(bytes, Kind::kPinned);
}

void HostStream::Lend(const void* data, size_t bytes) {
  std::lock_guard<std::mutex> lock(memory_->mutex);
  memory_->ranges[reinterpret_cast<uintptr_t>(data)] = {bytes, Kind::kDevice};
}

void HostStream::TakeBack(const void* data) {
  std::lock_guard<std::mutex> lock(memory_->mutex);
  memory_->ranges.erase(reinterpret_cast<uintptr_t>(data));
}

absl::Status HostStream::Registrar::Register(absl::Span<std::byte> range) {
  if (accepts_every == 0 || ++asked % accepts_every != 0) {
    return absl::ResourceExhaustedError("host stream: registration refused");
  }
  std::lock_guard<std::mutex> lock(memory->mutex);
  memory->ranges[reinterpret_cast<uintptr_t>(range.data())] = {range.size(), Kind::kPinned};
  return absl::OkStatus();
}

absl::Status HostStream::Registrar::Unregister(absl::Span<std::byte> range) {
  std::lock_guard<std::mutex> lock(memory->mutex);
  memory->ranges.erase(reinterpret_cast<uintptr_t>(range.data()));
  return absl::OkStatus();
}

absl::Status HostStream::Check(const char* what, const void* data, size_t bytes, bool device_only) const {
  if (bytes == 0) return absl::OkStatus();
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  std::lock_guard<std::mutex> lock(memory_->mutex);
  auto after = memory_->ranges.upper_bound(begin);
  if (after != memory_->ranges.begin()) {
    const auto& [first, range] = *std::prev(after);
    if (begin + bytes <= first + range.bytes && (range.kind == Kind::kDevice || !device_only)) return absl::OkStatus();
  }
  return absl::PermissionDeniedError(absl::StrCat("host stream: ", what, " is not memory of the device"));
}

// ---- The queue ----

absl::Status HostStream::Push(Work work) {
  // What an engine's capture would refuse, or leave out of the graph.
  if (capture_ != nullptr) return absl::FailedPreconditionError("host stream: work outside of the graph in a capture");
  ++queued_;
  std::lock_guard<std::mutex> lock(mutex_);
  if (!status_.ok()) return status_;
  work_.push_back(std::move(work));
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status HostStream::PushKernel(cuda::LaunchStatus checked, Work work) {
  if (checked != cuda::LaunchStatus::kOk) return absl::InvalidArgumentError(cuda::LaunchStatusText(checked));
  if (into_graph_) {
    capture_->push_back(std::move(work));
    return absl::OkStatus();
  }
  return Push(std::move(work));
}

void HostStream::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || !work_.empty(); });
    if (work_.empty()) return;
    Work work = std::move(work_.front());
    work_.pop_front();
    if (!status_.ok()) continue;  // dead: nothing that is queued behind runs
    lock.unlock();
    absl::Status status = work();
    lock.lock();
    if (!status.ok()) status_ = std::move(status);
    changed_.notify_all();
  }
}

absl::StatusOr<int> HostStream::MakeStamps(int count) {
  std::lock_guard<std::mutex> lock(mutex_);
  const int first = static_cast<int>(stamps_.size());
  stamps_.resize(stamps_.size() + count);
  return first;
}

absl::Status HostStream::Stamp(int stamp) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stamps_[stamp] = {};
  }
  return Push([this, stamp] {
    std::lock_guard<std::mutex> lock(mutex_);
    stamps_[stamp] = std::chrono::steady_clock::now();
    return absl::OkStatus();
  });
}

absl::StatusOr<double> HostStream::SecondsBetween(int from, int to) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const int stamp : {from, to}) {
    if (stamps_[stamp] == std::chrono::steady_clock::time_point()) {
      return absl::FailedPreconditionError("host stream: a stamp that has not been passed has no time");
    }
  }
  return std::chrono::duration<double>(stamps_[to] - stamps_[from]).count();
}

absl::StatusOr<StreamMark> HostStream::Mark() {
  const StreamMark mark = ++marks_;
  absl::Status status = Push([this, mark] {
    std::lock_guard<std::mutex> lock(mutex_);
    passed_ = mark;
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return mark;
}

absl::StatusOr<bool> HostStream::Passed(StreamMark mark) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!status_.ok()) return status_;
  return passed_ >= mark;
}

absl::Status HostStream::Wait(StreamMark mark, absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout), [&] { return !status_.ok() || passed_ >= mark; })) {
    return absl::DeadlineExceededError("host stream: not done in time");
  }
  return status_;
}

absl::Status HostStream::Synchronize() {
  absl::StatusOr<StreamMark> mark = Mark();
  return mark.ok() ? Wait(*mark, absl::Minutes(5)) : mark.status();
}

// ---- Copies and kernels ----

absl::Status HostStream::CopyToDevice(void* to, const void* from, size_t bytes) {
  if (absl::Status s = Check("destination of a copy", to, bytes, /*device_only=*/true); !s.ok()) return s;
  if (absl::Status s = Check("source of a copy", from, bytes, /*device_only=*/false); !s.ok()) return s;
  return Push([=] {
    if (bytes > 0) std::memcpy(to, from, bytes);  // nothing may come from nowhere
    return absl::OkStatus();
  });
}

absl::Status HostStream::CopyToHost(void* to, const void* from, size_t bytes) {
  if (absl::Status s = Check("destination of a copy", to, bytes, /*device_only=*/false); !s.ok()) return s;
  if (absl::Status s = Check("source of a copy", from, bytes, /*device_only=*/true); !s.ok()) return s;
  return Push([=] {
    if (bytes > 0) std::memcpy(to, from, bytes);  // nothing may come from nowhere
    return absl::OkStatus();
  });
}

absl::Status HostStream::Zero(void* device, size_t bytes) {
  if (absl::Status s = Check("memory to zero", device, bytes, /*device_only=*/true); !s.ok()) return s;
  return Push([=] {
    if (bytes > 0) std::memset(device, 0, bytes);
    return absl::OkStatus();
  });
}

absl::Status HostStream::Run(Dim3 grid, int threads, int shared_bytes, const std::function<void()>& kernel) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return absl::OkStatus();
  LaunchConfig config;
  config.grid = grid;
  config.threads = threads;
  config.shared_bytes = shared_bytes;
  config.seed = ++seed_;
  return Launch(config, kernel);
}

absl::Status HostStream::WriteKv(const cuda::WriteKvParams& p) {
  const int64_t row = 2 * p.geometry.head_size;
  const int64_t stored = p.geometry.head_size * static_cast<int64_t>(DTypeSize(p.geometry.dtype));
  for (const absl::Status& status :
       {Check("key", p.key.data, row, true), Check("value", p.value.data, row, true),
        Check("slots", p.slots, p.num_tokens * sizeof(*p.slots), true), Check("cache", p.k_cache, stored, true),
        Check("cache", p.v_cache, stored, true)}) {
    if (!status.ok()) return status;
  }
  return PushKernel(cuda::Check(p), [this, p] {
    absl::Status status;
    cuda::DispatchElements(p.dtype, p.geometry.dtype, [&](auto element, auto kv) {
      using T = typename decltype(element)::type;
      using Kv = typename decltype(kv)::type;
      status = Run({cuda::WriteKvBlocks(p)}, cuda::kWriteKvThreads, 0, [&] { cuda::WriteKvKernel<T, Kv>(p); });
      return cuda::LaunchStatus::kOk;
    });
    return status;
  });
}

absl::Status HostStream::CheckAttend(const cuda::AttendParams& p) const {
  const int64_t row = 2 * p.geometry.head_size;
  const size_t vector = p.query_heads * sizeof(float);
  for (const absl::Status& status :
       {Check("query", p.q.data, row, true), Check("output", p.o.data, row, true),
        Check("items", p.items, p.num_items * sizeof(*p.items), true), Check("pages", p.pages, 1, true),
        Check("ranges", p.kv_begin, 4, true), Check("ranges", p.kv_end, 4, true),
        Check("positions", p.position, 4, true), Check("status", p.status, sizeof(*p.status), true),
        Check("partials", p.partials.o, 1, true), Check("partials", p.partials.lse, 1, true),
        Check("slopes", p.alibi_slopes, p.alibi_slopes == nullptr ? 0 : vector, true),
        Check("sinks", p.sinks, p.sinks == nullptr ? 0 : vector, true)}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status HostStream::Decode(const cuda::AttendParams& p) {
  if (absl::Status status = CheckAttend(p); !status.ok()) return status;
  return PushKernel(cuda::Check(p), [this, p] {
    absl::Status status;
    cuda::DispatchElements(p.dtype, p.geometry.dtype, [&](auto element, auto kv) {
      using T = typename decltype(element)::type;
      using Kv = typename decltype(kv)::type;
      return cuda::DispatchDecode<T, Kv>(p, [&](auto type) {
        using Tile = typename decltype(type)::type;
        using Shape = cuda::DecodeShape<Tile>;
        status = Run({p.num_items, p.geometry.kv_heads, (cuda::MaxRows(p) + Tile::kRows - 1) / Tile::kRows},
                     Shape::kThreads, Shape::kSharedBytes, [&] { cuda::DecodeKernel<Tile>(p); });
        return cuda::LaunchStatus::kOk;
      });
    });
    return status;
  });
}

absl::Status HostStream::Prefill(const cuda::AttendParams& p) {
  if (absl::Status status = CheckAttend(p); !status.ok()) return status;
  return PushKernel(cuda::Check(p), [this, p] {
    absl::Status status;
    cuda::DispatchElements(p.dtype, p.geometry.dtype, [&](auto element, auto kv) {
      using T = typename decltype(element)::type;
      using Kv = typename decltype(kv)::type;
      return cuda::DispatchHeadSize(p.geometry.head_size, [&](auto size) {
        using Tile = cuda::MmaTile<T, Kv, decltype(size)::value>;
        using Shape = cuda::PrefillShape<Tile>;
        status = Run({p.num_items, p.geometry.kv_heads, (cuda::MaxRows(p) + Shape::kRows - 1) / Shape::kRows},
                     Shape::kThreads, Shape::kSharedBytes, [&] { cuda::PrefillKernel<Tile>(p); });
        return cuda::LaunchStatus::kOk;
      });
    });
    return status;
  });
}

absl::Status HostStream::Merge(const cuda::MergeParams& p) {
  for (const cuda::Partials& host : p.host) {
    const int64_t bytes = host.o == nullptr ? 0 : 1;
    for (const absl::Status& status :
         {Check("host partials", host.o, bytes, false), Check("host lse", host.lse, bytes, false)}) {
      if (!status.ok()) return status;
    }
  }
  for (const absl::Status& status :
       {Check("items", p.items, p.num_items * sizeof(*p.items), true), Check("partials", p.device.o, 1, true),
        Check("partials", p.device.lse, 1, true),
        Check("sequence", p.first_sequence, p.first_sequence == nullptr ? 0 : sizeof(*p.first_sequence), true),
        Check("output", p.o.data, 1, true)}) {
    if (!status.ok()) return status;
  }
  return PushKernel(cuda::Check(p), [this, p] {
    return Run({cuda::MergeBlocks(p)}, cuda::kMergeThreads, 0, [&] { cuda::MergeKernel(p); });
  });
}

// The jobs lie in device memory, so they are read when their turn comes.
absl::Status HostStream::CheckJobs(const cuda::RepackParams& p) const {
  const PageGeometry& g = p.geometry;
  const size_t packed = PackedPageBytes(g.dtype, g.kv_heads, g.page_tokens, g.head_size);
  const size_t strided =
      DTypeSize(g.dtype) * ((g.kv_heads - 1) * g.k_head_stride + (g.page_tokens - 1) * g.k_token_stride + g.head_size);
  for (int i = 0; i < p.num_jobs; ++i) {
    cuda::RepackJob job = p.jobs[i];
    job.packed_k += p.base.packed_k;
    job.packed_v += p.base.packed_v;
    job.strided_k += p.base.strided_k;
    job.strided_v += p.base.strided_v;
    for (const absl::Status& status : {Check("packed K", reinterpret_cast<void*>(job.packed_k), packed, false),
                                       Check("packed V", reinterpret_cast<void*>(job.packed_v), packed, false),
                                       Check("strided K", reinterpret_cast<void*>(job.strided_k), strided, true),
                                       Check("strided V", reinterpret_cast<void*>(job.strided_v), strided, true)}) {
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::Status HostStream::Repack(const cuda::RepackParams& p, bool pack) {
  if (absl::Status s = Check("jobs", p.jobs, p.num_jobs * sizeof(*p.jobs), true); !s.ok()) return s;
  return PushKernel(cuda::Check(p), [this, p, pack] {
    absl::Status status = CheckJobs(p);
    if (!status.ok()) return status;
    cuda::DispatchRepack(p.geometry.dtype, [&](auto element) {
      using T = typename decltype(element)::type;
      status = Run({p.num_jobs * (p.geometry.page_tokens / kPackedTokenGroup), p.geometry.kv_heads, 2},
                   cuda::kRepackThreads, cuda::RepackSharedBytes(p.geometry.dtype, p.geometry.head_size), [&] {
                     if (pack) {
                       cuda::RepackKernel<T, cuda::Repack::kPack>(p);
                     } else {
                       cuda::RepackKernel<T, cuda::Repack::kUnpack>(p);
                     }
                   });
      return cuda::LaunchStatus::kOk;
    });
    return status;
  });
}

absl::Status HostStream::PackPages(const cuda::RepackParams& p) { return Repack(p, true); }
absl::Status HostStream::UnpackPages(const cuda::RepackParams& p) { return Repack(p, false); }

absl::Status HostStream::Publish(const cuda::PublishParams& params) {
  for (const cuda::PublishPart& part : params.parts) {
    if (part.num_rows == 0) continue;
    for (const absl::Status& status :
         {Check("rows to publish", part.from.data, 2 * params.head_size, true),
          Check("tokens to publish", part.tokens, part.num_rows * sizeof(int32_t), true)}) {
      if (!status.ok()) return status;
    }
  }
  if (absl::Status s = Check("slots of the joint", params.table.slots, 1, false); !s.ok()) return s;
  if (absl::Status s = Check("plan of the joint", params.table.plan, sizeof(JointPlan), true); !s.ok()) return s;
  cuda::PublishParams p = params;
  p.num_blocks = cuda::PublishBlocks(p);
  return PushKernel(cuda::Check(p), [this, p] {
    return Run({p.num_blocks}, cuda::kPublishThreads, 0, [&] { cuda::PublishKernel(p); });
  });
}

absl::Status HostStream::Await(const cuda::AwaitParams& p) {
  return PushKernel(cuda::LaunchStatus::kOk, [p] {
    WaitOps ops;
    const JointOutcome outcome = JointWait(ops, p.table, p.call);
    if (outcome == JointOutcome::kAnswered) return absl::OkStatus();
    return absl::AbortedError(
        absl::StrCat("host stream: the wait for a call trapped, outcome ", static_cast<int>(outcome)));
  });
}

}  // namespace hybridgen::simt
