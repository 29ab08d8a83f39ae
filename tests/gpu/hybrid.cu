// Calls of which the CPU answers a share, through the real joint kernels, against the two parts on their own and
// against bringing the same tokens to the device.
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "kernels/cuda/joint_launch.h"
#include "tests/gpu/host_part.h"
#include "tests/gpu/problem.cuh"
#include "tests/gpu/sections.cuh"

namespace hybridgen::cuda {
namespace {

constexpr int kRepeats = 25;
constexpr int kSplits = 64;
constexpr uint64_t kWaitNanoseconds = 5'000'000'000;

// A joint for calls of one query token.
class Joint {
 public:
  Joint(int heads, int head_size)
      : o_offset_(Lines(size_t{2} * heads * head_size)),
        lse_offset_(o_offset_ + Lines(sizeof(float) * heads * head_size)),
        slot_bytes_(lse_offset_ + Lines(sizeof(float) * heads)),
        memory_(sizeof(JointControl) + 2 * slot_bytes_),
        plan_(std::vector<JointPlan>{{kJointFirstSequence, kWaitNanoseconds, 0}}),
        tokens_(std::vector<int32_t>{0}),
        done_(std::vector<uint32_t>{0}) {
    std::memset(memory_.data(), 0, sizeof(JointControl) + 2 * slot_bytes_);
    table_.control = reinterpret_cast<JointControl*>(memory_.data());
    for (uint64_t s = 0; s < 2; ++s) table_.control->answer[s].value = JointWord(JointState::kAnswered, s);
    table_.plan = plan_.data();
    table_.slots = reinterpret_cast<unsigned char*>(memory_.data() + sizeof(JointControl));
    table_.slot_bytes = slot_bytes_;
    table_.o_offset = o_offset_;
    table_.lse_offset = lse_offset_;
    publish_.table = table_;
    publish_.head_size = head_size;
    publish_.blocks_done = done_.data();
    publish_.parts[0].tokens = tokens_.data();
    publish_.parts[0].num_rows = 1;
    publish_.parts[0].heads = heads;
  }

  const JointTable& table() const { return table_; }
  // Call 0 comes first; the next call has the next number.
  void Publish(const Rows& query) {
    publish_.call = call_;
    publish_.parts[0].from = query;
    Ok(LaunchPublish(publish_, nullptr), "publish");
  }
  // The partials of the published call, once the stream is past this.
  Partials Await() {
    Ok(LaunchAwait({table_, call_}, nullptr), "await");
    unsigned char* const slot = JointSlot(table_, kJointFirstSequence + call_++);
    return {reinterpret_cast<float*>(slot + o_offset_), reinterpret_cast<float*>(slot + lse_offset_)};
  }

 private:
  static size_t Lines(size_t bytes) { return (bytes + kJointLine - 1) / kJointLine * kJointLine; }

  const size_t o_offset_, lse_offset_, slot_bytes_;
  const Pinned memory_;
  const Device<JointPlan> plan_;
  const Device<int32_t> tokens_;
  const Device<uint32_t> done_;
  JointTable table_ = {};
  PublishParams publish_;
  uint32_t call_ = 0;
};

// A sequence whose last `host_tokens` tokens the CPU has, too: packed as host pages are, and as they lie on the device.
class Hybrid {
 public:
  Hybrid(const Case& c, int host_tokens, SpinPool* pool)
      : problem_(c, 1),
        joint_(problem_.heads(), c.head_size),
        device_pages_((c.length - host_tokens) / c.page_tokens),
        part_options_(Options(c, device_pages_ * c.page_tokens)),
        packed_(HostPart::PageBytes(part_options_)),
        strided_(problem_.page_bytes() * (problem_.num_pages() - device_pages_)),
        part_(part_options_, packed_.data(), pool),
        jobs_(problem_.Jobs(device_pages_, packed_.data())),
        o_(problem_.heads() * c.head_size),
        lse_(problem_.heads()) {
    problem_.Write();
    const size_t first = static_cast<size_t>(part_options_.first_position) * c.kv_heads * c.head_size;
    part_.Write(problem_.key_bits().data() + first, problem_.value_bits().data() + first);
    for (int i = device_pages_; i < problem_.num_pages(); ++i) {
      Cuda(cudaMemcpy(strided_.data() + (i - device_pages_) * problem_.page_bytes(), problem_.page(i),
                      problem_.page_bytes(), cudaMemcpyDeviceToHost),
           "copy of a page");
    }
    problem_.CutParts(device_pages_, c.splits);
    Cuda(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "stream");
    Cuda(cudaEventCreateWithFlags(&begun_, cudaEventDisableTiming), "event");
    Cuda(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming), "event");
  }
  ~Hybrid() {
    cudaEventDestroy(begun_);
    cudaEventDestroy(copied_);
    cudaStreamDestroy(copies_);
  }

  // Median seconds of a call, `repeats` and three more of which are made.
  double CallSeconds(int repeats) {
    std::thread server([&] { served_ = Serve(joint_.table(), kJointFirstSequence, repeats + 3, part_); });
    const double seconds = Seconds(
        [&] {
          joint_.Publish(problem_.query());
          if (device_pages_ > 0) problem_.AttendPart(Problem::Part::kDevice);
          const Partials host = joint_.Await();
          problem_.MergeParts(&host);
        },
        repeats);
    server.join();
    return seconds;
  }
  double DeviceSeconds() {
    return device_pages_ == 0 ? 0 : Seconds([&] { problem_.AttendPart(Problem::Part::kDevice); }, kRepeats);
  }
  double MergeSeconds() {
    const Partials host = {reinterpret_cast<float*>(joint_.table().slots + joint_.table().o_offset),
                           reinterpret_cast<float*>(joint_.table().slots + joint_.table().lse_offset)};
    return Seconds([&] { problem_.MergeParts(&host); }, kRepeats);
  }
  // Of the CPU's part alone, without the joint.
  double HostSeconds() {
    std::vector<double> times;
    for (int i = 0; i < kRepeats + 3; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      part_.Attend(problem_.query_bits().data(), o_.data(), lse_.data());
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      if (i >= 3) times.push_back(seconds.count());
    }
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2];
  }
  // The host's tokens to the device, then attention of all; the two in turn, nothing else on the link.
  double UnpackSeconds() {
    RepackParams p;
    p.jobs = jobs_.data();
    p.num_jobs = static_cast<int>(jobs_.size());
    p.geometry = problem_.geometry();
    return Seconds(
        [&] {
          Ok(LaunchUnpackPages(p, nullptr), "unpack");
          problem_.Attend();
        },
        kRepeats);
  }
  // The same by the copy engine, page after page, while the device attends its own pages.
  double CopySeconds() {
    return Seconds(
        [&] {
          Cuda(cudaEventRecord(begun_), "event");
          Cuda(cudaStreamWaitEvent(copies_, begun_), "wait");
          for (int i = device_pages_; i < problem_.num_pages(); ++i) {
            Cuda(cudaMemcpyAsync(problem_.page(i), strided_.data() + (i - device_pages_) * problem_.page_bytes(),
                                 problem_.page_bytes(), cudaMemcpyHostToDevice, copies_),
                 "copy");
          }
          Cuda(cudaEventRecord(copied_, copies_), "event");
          if (device_pages_ > 0) problem_.AttendPart(Problem::Part::kDevice);
          Cuda(cudaStreamWaitEvent(nullptr, copied_), "wait");
          problem_.AttendPart(Problem::Part::kOther);
          problem_.MergeParts(nullptr);
        },
        kRepeats);
  }

  bool Right() const { return problem_.WorstError() <= 1; }
  uint64_t served() const { return served_; }
  void PoisonOutput() { problem_.PoisonOutput(); }
  int64_t host_bytes() const { return problem_.page_bytes() * (problem_.num_pages() - device_pages_); }

 private:
  static HostPartOptions Options(const Case& c, int first) {
    HostPartOptions o;
    o.dtype = c.dtype;
    o.kv_heads = c.kv_heads;
    o.group = c.group;
    o.head_size = c.head_size;
    o.page_tokens = c.page_tokens;
    o.first_position = first;
    o.num_tokens = c.length - first;
    return o;
  }

  Problem problem_;
  Joint joint_;
  const int device_pages_;
  const HostPartOptions part_options_;
  const Pinned packed_, strided_;
  HostPart part_;
  const Device<RepackJob> jobs_;
  std::vector<float> o_, lse_;
  cudaStream_t copies_ = nullptr;
  cudaEvent_t begun_ = nullptr, copied_ = nullptr;
  uint64_t served_ = 0;
};

Case LongCase() {
  Case c;
  c.group = 4;
  c.kv_heads = 8;
  c.length = 32768;
  c.splits = kSplits;
  return c;
}

double LinkBandwidth() {
  const size_t bytes = size_t{256} << 20;
  const Device<char> to(bytes);
  const Pinned from(bytes);
  return bytes / Seconds([&] { Cuda(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyHostToDevice), "copy"); });
}

double DramCeiling(SpinPool& pool) {
  const size_t bytes = size_t{1} << 30;
  const Pinned memory(bytes);
  std::memset(memory.data(), 1, bytes);
  return ReadCeiling(pool, memory.data(), bytes);
}

}  // namespace

bool CheckJoint() {
  SpinPool pool(0);
  Case c;
  c.group = 4;
  c.length = 100;
  c.splits = 2;
  Hybrid hybrid(c, 40, &pool);
  hybrid.PoisonOutput();
  hybrid.CallSeconds(1);
  return hybrid.served() == 4 && hybrid.Right();
}

bool MeasureHybrid(Report& report) {
  // One CPU stays with the thread that launches; the joint's thread is one of the others.
  const int threads = std::max(1, CpusOfProcess() - 1);
  SpinPool pool(threads - 1);
  report.Fact("CPU", std::string(CpuModel()) + ", " + std::to_string(CpusOfProcess()) + " CPUs of this process, " +
                         std::to_string(threads) + " threads attend");
  const double link = LinkBandwidth(), dram = DramCeiling(pool);
  report.Add({"copy from pinned memory to the device", link * 1e-9, "GB/s", "", 0});
  report.Add({"read of pinned memory by these threads", dram * 1e-9, "GB/s", "", 0});

  {
    Problem problem(LongCase(), 1);
    problem.Write();
    const double seconds = Seconds([&] { problem.Attend(); }, kRepeats);
    if (!(problem.WorstError() <= 1)) return false;
    report.Add({"0% of 32768 tokens on the host, group 4: device alone", seconds * 1e6, "us", "", 0});
  }
  for (int percent : {10, 25, 50}) {
    const Case c = LongCase();
    const std::string name = std::to_string(percent) + "% of 32768 tokens on the host, group 4: ";
    Hybrid hybrid(c, c.length * percent / 100, &pool);
    hybrid.PoisonOutput();
    const double call = hybrid.CallSeconds(kRepeats);
    if (hybrid.served() != kRepeats + 3 || !hybrid.Right()) return false;
    const double device = hybrid.DeviceSeconds(), host = hybrid.HostSeconds(), merge = hybrid.MergeSeconds();
    hybrid.PoisonOutput();
    const double unpack = hybrid.UnpackSeconds();
    if (!hybrid.Right()) return false;
    hybrid.PoisonOutput();
    const double copy = hybrid.CopySeconds();
    if (!hybrid.Right()) return false;
    const double ideal = std::max(device, host) + merge, rate = hybrid.host_bytes() / host;
    report.Add({name + "device's part alone", device * 1e6, "us", "", 0});
    report.Add({name + "CPU's part alone", host * 1e6, "us", "", 0});
    report.Add({name + "CPU's part alone, K and V", rate * 1e-9, "GB/s", "read by these threads", rate / dram});
    report.Add({name + "merge alone", merge * 1e6, "us", "", 0});
    report.Add({name + "shared call", call * 1e6, "us", "longer part + merge", ideal / call});
    report.Add({name + "streamed by kernels, then attended", unpack * 1e6, "us", "shared call", call / unpack});
    report.Add({name + "streamed by copies beside the device's part, then attended", copy * 1e6, "us", "shared call",
                call / copy});
  }

  // What a call costs beyond its work: one token in all, so that nothing is attended but it.
  Case c = LongCase();
  c.length = 1;
  Hybrid one(c, 1, &pool);
  one.PoisonOutput();
  const double call = one.CallSeconds(200);
  if (one.served() != 203 || !one.Right()) return false;
  report.Add({"call with one token, on the host", call * 1e6, "us", "", 0});
  Joint joint(1, 128);
  const Device<uint16_t> query(std::vector<uint16_t>(128, 0));
  std::thread server([&] {
    for (uint64_t s = kJointFirstSequence; s < kJointFirstSequence + 203; ++s) {
      while (__atomic_load_n(&joint.table().control->published.value, __ATOMIC_ACQUIRE) < s &&
             __atomic_load_n(&joint.table().control->device_failure.value, __ATOMIC_ACQUIRE) == 0) {
      }
      __atomic_store_n(&joint.table().control->answer[s & 1].value, JointWord(JointState::kAnswered, s),
                       __ATOMIC_RELEASE);
    }
  });
  const double empty = Seconds(
      [&] {
        joint.Publish({query.data(), 128, 128});
        joint.Await();
      },
      200);
  server.join();
  report.Add({"call whose CPU part is nothing, from publication to the end of the wait", empty * 1e6, "us", "", 0});
  return true;
}

}  // namespace hybridgen::cuda
