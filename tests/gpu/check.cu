// Checks and measures the CUDA kernels on the GPU of this machine, without Bazel: tests/gpu/check.sh builds and runs
// it.
//   check OUT.json            correctness over the case matrix, then measurements
//   check --correctness       correctness over few cases, for compute-sanitizer
// Exit status: 0 all right, 1 a wrong answer or a CUDA error, 77 no CUDA device.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/joint_launch.h"
#include "kernels/cuda/launch.h"
#include "kernels/partial.h"

namespace hybridgen::cuda {
namespace {

constexpr int kNoDevice = 77;

void Cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ? kNoDevice : 1);
}

void Ok(LaunchStatus status, const char* what) {
  if (status == LaunchStatus::kOk) return;
  std::fprintf(stderr, "%s: %s (%s)\n", what, LaunchStatusText(status), cudaGetErrorString(cudaGetLastError()));
  std::exit(1);
}

template <typename T>
class Device {
 public:
  explicit Device(size_t count) : count_(count) {
    Cuda(cudaMalloc(&data_, std::max<size_t>(count, 1) * sizeof(T)), "cudaMalloc");
    Cuda(cudaMemset(data_, 0xff, std::max<size_t>(count, 1) * sizeof(T)), "cudaMemset");  // poison
  }
  explicit Device(const std::vector<T>& from) : Device(from.size()) {
    Cuda(cudaMemcpy(data_, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  T* data() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> to(count_);
    Cuda(cudaMemcpy(to.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy from the device");
    return to;
  }

 private:
  T* data_ = nullptr;
  const size_t count_;
};

struct Case {
  DType dtype = DType::kFloat16;
  int head_size = 128, group = 1, kv_heads = 2, page_tokens = 16;
  int length = 100, tokens = 1, splits = 1, window = 0;
  float soft_cap = 0.0f;
  bool prefill = false;
};

uint16_t Narrow(DType dtype, float x) { return dtype == DType::kFloat16 ? FloatToFloat16(x) : FloatToBFloat16(x); }
float Widen(DType dtype, uint16_t x) { return dtype == DType::kFloat16 ? Float16ToFloat(x) : BFloat16ToFloat(x); }

// A sequence in shuffled pages, written by the write kernel and attended by the attention and merge kernels.
class Problem {
 public:
  Problem(const Case& c, uint32_t seed)
      : c_(c),
        heads_(c.kv_heads * c.group),
        pages_((c.length + c.page_tokens - 1) / c.page_tokens),
        k_(Random(static_cast<size_t>(c.length) * c.kv_heads * c.head_size, seed)),
        v_(Random(k_.size(), seed + 1)),
        q_(Random(static_cast<size_t>(c.tokens) * heads_ * c.head_size, seed + 2)),
        key_(k_),
        value_(v_),
        query_(q_),
        cache_(static_cast<size_t>(pages_) * PageElements()),
        output_(q_.size()),
        partial_o_(q_.size() * c.splits),
        partial_lse_(q_.size() / c.head_size * c.splits),
        status_(std::vector<uint32_t>{0}) {
    geometry_.dtype = c.dtype;
    geometry_.page_tokens = c.page_tokens;
    geometry_.kv_heads = c.kv_heads;
    geometry_.head_size = c.head_size;
    geometry_.k_token_stride = geometry_.v_token_stride = 2 * c.head_size;
    geometry_.k_head_stride = geometry_.v_head_stride = static_cast<int64_t>(c.page_tokens) * 2 * c.head_size;
    std::vector<int> place(pages_);
    for (int i = 0; i < pages_; ++i) place[i] = i;
    std::shuffle(place.begin(), place.end(), std::mt19937(seed));
    std::vector<int64_t> slots(c.length);
    for (int t = 0; t < c.length; ++t) {
      slots[t] = static_cast<int64_t>(place[t / c.page_tokens]) * c.page_tokens + t % c.page_tokens;
    }
    std::vector<KvPage> list(pages_);
    for (int i = 0; i < pages_; ++i) {
      list[i].k = list[i].v = static_cast<uint64_t>(place[i]) * PageElements() * 2;
      list[i].first_position = i * c.page_tokens;
      list[i].num_tokens = std::min(c.page_tokens, c.length - i * c.page_tokens);
    }
    for (int t = 0; t < c.tokens; ++t) {
      position_.push_back(c.length - c.tokens + t);
      kv_end_.push_back(position_[t] + 1);
      kv_begin_.push_back(c.window > 0 ? std::max(0, position_[t] + 1 - c.window) : 0);
    }
    std::vector<AttendItem> items;
    std::vector<MergeItem> merges;
    for (int s = 0; s < c.splits; ++s) {
      AttendItem item;
      item.num_tokens = c.tokens;
      item.first_page = pages_ * s / c.splits;
      item.num_pages = pages_ * (s + 1) / c.splits - item.first_page;
      item.partial_row = c.splits == 1 ? -1 : s * c.tokens;
      items.push_back(item);
    }
    for (int t = 0; t < c.tokens && c.splits > 1; ++t) merges.push_back({t, t, c.splits, c.tokens});
    slots_ = std::make_unique<Device<int64_t>>(slots);
    list_ = std::make_unique<Device<KvPage>>(list);
    items_ = std::make_unique<Device<AttendItem>>(items);
    merges_ = std::make_unique<Device<MergeItem>>(merges);
    num_merges_ = static_cast<int>(merges.size());
    ranges_[0] = std::make_unique<Device<int32_t>>(kv_begin_);
    ranges_[1] = std::make_unique<Device<int32_t>>(kv_end_);
    ranges_[2] = std::make_unique<Device<int32_t>>(position_);
  }

  void Write() {
    WriteKvParams p;
    const int64_t row = static_cast<int64_t>(c_.kv_heads) * c_.head_size;
    p.key = {key_.data(), row, c_.head_size};
    p.value = {value_.data(), row, c_.head_size};
    p.num_tokens = c_.length;
    p.slots = slots_->data();
    p.geometry = geometry_;
    p.k_cache = cache_.data();
    p.v_cache = cache_.data() + c_.head_size;
    p.k_page_stride = p.v_page_stride = PageElements();
    Ok(LaunchWriteKv(p, nullptr), "write KV");
  }

  void Attend() {
    const int64_t row = static_cast<int64_t>(heads_) * c_.head_size;
    AttendParams p;
    p.q = {query_.data(), row, c_.head_size};
    p.query_heads = heads_;
    p.geometry = geometry_;
    p.pages = list_->data();
    p.k_base = reinterpret_cast<uint64_t>(cache_.data());
    p.v_base = p.k_base + 2 * c_.head_size;
    p.items = items_->data();
    p.num_items = c_.splits;
    p.max_item_tokens = c_.tokens;
    p.kv_begin = ranges_[0]->data();
    p.kv_end = ranges_[1]->data();
    p.position = ranges_[2]->data();
    p.scale = 1.0f / std::sqrt(static_cast<float>(c_.head_size));
    p.soft_cap = c_.soft_cap;
    p.partials = {partial_o_.data(), partial_lse_.data()};
    p.o = {output_.data(), row, c_.head_size};
    p.status = status_.data();
    Ok(c_.prefill ? LaunchPrefill(p, nullptr) : LaunchDecode(p, nullptr), c_.prefill ? "prefill" : "decode");
    MergeParams m;
    m.items = merges_->data();
    m.num_items = num_merges_;
    m.query_heads = heads_;
    m.head_size = c_.head_size;
    m.device = p.partials;
    m.o = p.o;
    m.dtype = c_.dtype;
    if (num_merges_ > 0) Ok(LaunchMerge(m, nullptr), "merge");
  }

  // Packs all pages into mapped host memory and unpacks them again: the cache must hold the same bits.
  bool RepackKeepsBits() {
    const size_t role = PackedPageBytes(c_.dtype, c_.kv_heads, c_.page_tokens, c_.head_size);
    char* host = nullptr;
    Cuda(cudaHostAlloc(&host, 2 * role * pages_, cudaHostAllocMapped), "cudaHostAlloc");
    std::vector<RepackJob> jobs;
    const std::vector<KvPage> list = list_->Read();
    for (int i = 0; i < pages_; ++i) {
      const uint64_t k = reinterpret_cast<uint64_t>(cache_.data()) + list[i].k;
      const uint64_t packed = reinterpret_cast<uint64_t>(host) + 2 * role * i;
      jobs.push_back({k, k + 2 * c_.head_size, packed, packed + role, list[i].num_tokens});
    }
    const Device<RepackJob> device(jobs);
    RepackParams p;
    p.jobs = device.data();
    p.num_jobs = pages_;
    p.geometry = geometry_;
    const std::vector<uint16_t> before = cache_.Read();
    Ok(LaunchPackPages(p, nullptr), "pack pages");
    Cuda(cudaMemset(cache_.data(), 0xff, before.size() * 2), "cudaMemset");
    Ok(LaunchUnpackPages(p, nullptr), "unpack pages");
    const bool same = cache_.Read() == before;
    cudaFreeHost(host);
    return same;
  }

  // The largest error over its tolerance. Rounding of the output and of the weights (unit roundoff of the dtype), and
  // 2^-24 for each of some 4 operations a key and 100 besides, all times the largest |v| = 1; twice that.
  double WorstError() {
    const std::vector<uint16_t> got = output_.Read();
    const double unit = c_.dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
    const double scale = 1.0f / std::sqrt(static_cast<float>(c_.head_size));
    double worst = 0;
    for (int t = 0; t < c_.tokens; ++t) {
      for (int h = 0; h < heads_; ++h) {
        std::vector<double> o(c_.head_size, 0.0);
        double sum = 0;
        for (int pos = kv_begin_[t]; pos < kv_end_[t]; ++pos) {
          const size_t key = (static_cast<size_t>(pos) * c_.kv_heads + h / c_.group) * c_.head_size;
          const size_t query = (static_cast<size_t>(t) * heads_ + h) * c_.head_size;
          double logit = 0;
          for (int d = 0; d < c_.head_size; ++d) {
            logit += static_cast<double>(Widen(c_.dtype, q_[query + d])) * Widen(c_.dtype, k_[key + d]);
          }
          logit *= scale;
          if (c_.soft_cap > 0) logit = c_.soft_cap * std::tanh(logit / c_.soft_cap);
          const double weight = std::exp(logit);
          sum += weight;
          for (int d = 0; d < c_.head_size; ++d) o[d] += weight * Widen(c_.dtype, v_[key + d]);
        }
        const double tolerance = 2 * (2 * unit + 0x1p-24 * (4 * (kv_end_[t] - kv_begin_[t]) + 100));
        for (int d = 0; d < c_.head_size; ++d) {
          const double x = Widen(c_.dtype, got[(static_cast<size_t>(t) * heads_ + h) * c_.head_size + d]);
          const double error = std::abs(x - o[d] / sum) / tolerance;
          worst = std::isnan(error) ? INFINITY : std::max(worst, error);
        }
      }
    }
    return worst;
  }

  int64_t kv_bytes() const { return static_cast<int64_t>(c_.length) * c_.kv_heads * c_.head_size * 4; }

 private:
  int64_t PageElements() const { return static_cast<int64_t>(2) * c_.kv_heads * c_.page_tokens * c_.head_size; }
  std::vector<uint16_t> Random(size_t count, uint32_t seed) const {
    std::mt19937 random(seed);
    std::vector<uint16_t> x(count);
    for (uint16_t& e : x) e = Narrow(c_.dtype, static_cast<float>(random() % 2001) / 1000.0f - 1.0f);
    return x;
  }

  const Case c_;
  const int heads_, pages_;
  const std::vector<uint16_t> k_, v_, q_;
  Device<uint16_t> key_, value_, query_, cache_, output_;
  Device<float> partial_o_, partial_lse_;
  Device<uint32_t> status_;
  PageGeometry geometry_;
  std::vector<int32_t> position_, kv_begin_, kv_end_;
  std::unique_ptr<Device<int64_t>> slots_;
  std::unique_ptr<Device<KvPage>> list_;
  std::unique_ptr<Device<AttendItem>> items_;
  std::unique_ptr<Device<MergeItem>> merges_;
  std::unique_ptr<Device<int32_t>> ranges_[3];
  int num_merges_ = 0;
};

int CheckCorrectness(bool few) {
  int cases = 0, wrong = 0;
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (int head_size : {64, 96, 128, 256}) {
      for (int group : {1, 4, 8, 16}) {
        for (int page : {16, 32, 128}) {
          for (int length : {1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000}) {
            if (few && (length % 16 == 0 || page == 32 || group == 4)) continue;
            Case c;
            c.dtype = dtype;
            c.head_size = head_size;
            c.group = group;
            c.page_tokens = page;
            c.length = length;
            // The other parameters go round, each at its own pace.
            c.tokens = std::min(length, cases % 3 == 0 ? 1 : cases % 3 == 1 ? 3 : 40);
            c.prefill = c.tokens > 3;
            c.splits = 1 + cases % 4;
            c.window = cases % 5 == 0 ? 33 : 0;
            c.soft_cap = cases % 7 == 0 ? 5.0f : 0.0f;
            Problem problem(c, cases++);
            problem.Write();
            problem.Attend();
            const double worst = problem.WorstError();
            const bool repacked = problem.RepackKeepsBits();
            if (worst <= 1 && repacked) continue;
            ++wrong;
            std::printf(
                "WRONG: dtype %d head %d group %d page %d length %d tokens %d splits %d: error %.2f of the "
                "tolerance, repack %s\n",
                static_cast<int>(dtype), head_size, group, page, length, c.tokens, c.splits, worst,
                repacked ? "right" : "wrong");
          }
        }
      }
    }
  }
  Cuda(cudaDeviceSynchronize(), "kernels");
  std::printf("%d cases, %d wrong\n", cases, wrong);
  return wrong;
}

// Median seconds of `run`, by events.
double Seconds(const std::function<void()>& run, int repeats = 25) {
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
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

// Read + write of device memory by the copy engine, bytes per second: the ceiling that decode is compared with.
double CopyBandwidth() {
  const size_t bytes = size_t{1} << 30;
  const Device<char> from(bytes), to(bytes);
  return 2.0 * bytes / Seconds([&] { cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice); });
}

double LinkBandwidth() {
  const size_t bytes = size_t{256} << 20;
  const Device<char> to(bytes);
  char* from = nullptr;
  Cuda(cudaHostAlloc(&from, bytes, cudaHostAllocDefault), "cudaHostAlloc");
  const double rate = bytes / Seconds([&] { cudaMemcpyAsync(to.data(), from, bytes, cudaMemcpyHostToDevice); });
  cudaFreeHost(from);
  return rate;
}

// One call of the joint whose CPU part is nothing: from the publication to the end of the wait.
double JointCallSeconds() {
  constexpr int kRepeats = 200;
  struct Shared {
    JointControl control;
    alignas(kJointLine) unsigned char slots[2][1 << 16];
  };
  Shared* shared = nullptr;
  Cuda(cudaHostAlloc(&shared, sizeof(Shared), cudaHostAllocMapped), "cudaHostAlloc");
  std::memset(shared, 0, sizeof(*shared));
  for (uint64_t s = 0; s < 2; ++s) shared->control.answer[s].value = JointWord(JointState::kAnswered, s);
  const Device<JointPlan> plan(std::vector<JointPlan>{{kJointFirstSequence, 5'000'000'000, 0}});
  const Device<uint16_t> query(size_t{32} * 128);
  const Device<int32_t> tokens(std::vector<int32_t>{0});
  const Device<uint32_t> done(std::vector<uint32_t>{0});
  std::thread worker([&] {
    for (uint64_t s = kJointFirstSequence; s < kJointFirstSequence + kRepeats; ++s) {
      while (__atomic_load_n(&shared->control.published.value, __ATOMIC_ACQUIRE) < s) {
      }
      __atomic_store_n(&shared->control.answer[s & 1].value, JointWord(JointState::kAnswered, s), __ATOMIC_RELEASE);
    }
  });
  JointTable table = {};
  table.control = &shared->control;
  table.plan = plan.data();
  table.slots = shared->slots[0];
  table.slot_bytes = sizeof(shared->slots[0]);
  uint32_t call = 0;
  const double seconds = Seconds(
      [&] {
        PublishParams p;
        p.table = table;
        p.call = call;
        p.parts[0] = {{query.data(), 32 * 128, 128}, tokens.data(), 1, 32, 0};
        p.head_size = 128;
        p.blocks_done = done.data();
        Ok(LaunchPublish(p, nullptr), "publish");
        Ok(LaunchAwait({table, call}, nullptr), "await");
        ++call;
      },
      kRepeats - 3);
  worker.join();
  cudaFreeHost(shared);
  return seconds;
}

int Main(int argc, char** argv) {
  int devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&devices);
  if (found != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: %s\n", found != cudaSuccess ? cudaGetErrorString(found) : "none");
    return kNoDevice;
  }
  cudaDeviceProp device = {};
  Cuda(cudaGetDeviceProperties(&device, 0), "device");
  std::printf("%s, compute capability %d.%d\n", device.name, device.major, device.minor);
  Ok(LoadKernels(), "loading kernels");
  Ok(LoadJointKernels(), "loading kernels");
  const bool few = argc > 1 && std::strcmp(argv[1], "--correctness") == 0;
  const int wrong = CheckCorrectness(few);
  if (few || wrong > 0 || argc < 2) return wrong > 0 ? 1 : 0;

  const double copy = CopyBandwidth(), link = LinkBandwidth();
  std::string rows;
  std::printf("| group | decode GB/s | of copy bandwidth |\n|---|---|---|\n");
  for (int group : {1, 4, 8, 16}) {
    Case c;
    c.group = group;
    c.kv_heads = 8;
    c.length = 32768;
    c.splits = std::max(1, 4 * device.multiProcessorCount / c.kv_heads);
    Problem problem(c, group);
    problem.Write();
    const double rate = problem.kv_bytes() / Seconds([&] { problem.Attend(); });
    if (problem.WorstError() > 1) return 1;
    std::printf("| %d | %.0f | %.2f |\n", group, rate * 1e-9, rate / copy);
    rows += (rows.empty() ? "" : ", ") + std::string("{\"group\": ") + std::to_string(group) +
            ", \"context\": 32768, \"gigabytes_per_second\": " + std::to_string(rate * 1e-9) + "}";
  }
  const double call = JointCallSeconds();
  std::printf("copy %.0f GB/s, link %.1f GB/s, fixed cost of a call %.1f us\n", copy * 1e-9, link * 1e-9, call * 1e6);
  FILE* out = std::fopen(argv[1], "w");
  if (out == nullptr) return 1;
  std::fprintf(out,
               "{\"device\": \"%s\", \"copy_gigabytes_per_second\": %.3f, \"link_gigabytes_per_second\": %.3f, "
               "\"joint_call_microseconds\": %.3f, \"decode\": [%s]}\n",
               device.name, copy * 1e-9, link * 1e-9, call * 1e6, rows.c_str());
  return std::fclose(out) == 0 ? 0 : 1;
}

}  // namespace
}  // namespace hybridgen::cuda

int main(int argc, char** argv) { return hybridgen::cuda::Main(argc, argv); }
