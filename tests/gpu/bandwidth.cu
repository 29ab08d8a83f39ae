// Decode attention of long contexts against what a copy of device memory moves in the same run.
#include <string>

#include "tests/gpu/problem.cuh"
#include "tests/gpu/sections.cuh"

namespace hybridgen::cuda {
namespace {

constexpr int kContext = 32768;
constexpr int kKvHeads = 8;

// Read + write of device memory, bytes per second.
double CopyBandwidth() {
  const size_t bytes = size_t{1} << 30;
  const Device<char> from(bytes), to(bytes);
  return 2.0 * bytes /
         Seconds([&] { Cuda(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice), "copy"); });
}

}  // namespace

bool MeasureDecode(const std::vector<std::pair<int, double>>& sdpa, Report& report) {
  int processors = 0;
  Cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), "device");
  const double copy = CopyBandwidth();
  report.Add({"copy within device memory, read + write", copy * 1e-9, "GB/s", "", 0});
  for (int group : {1, 4, 8}) {
    Case c;
    c.group = group;
    c.kv_heads = kKvHeads;
    c.length = kContext;
    c.splits = std::max(1, 4 * processors / c.kv_heads);
    Problem problem(c, group);
    problem.Write();
    const double seconds = Seconds([&] { problem.Attend(); });
    if (!(problem.WorstError() <= 1)) return false;
    const double rate = problem.kv_bytes() / seconds;
    const std::string shape = "decode, 32768 tokens, 8 KV heads of 128, float16, group " + std::to_string(group);
    report.Add({shape, rate * 1e-9, "GB/s", "copy", rate / copy});
    for (const auto& [sdpa_group, sdpa_seconds] : sdpa) {
      if (sdpa_group != group) continue;
      const double sdpa_rate = problem.kv_bytes() / sdpa_seconds;
      report.Add({"torch SDPA, the same shape, group " + std::to_string(group), sdpa_rate * 1e-9, "GB/s",
                  "this project's decode", sdpa_rate / rate});
    }
  }
  return true;
}

}  // namespace hybridgen::cuda
