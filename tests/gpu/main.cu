// Checks and measures the CUDA kernels on the GPU of this machine; tests/gpu/check.sh builds and runs it.
// Exit status: 0 all right, 1 a wrong answer or an error of CUDA, 2 arguments that are not taken, 77 no CUDA device.
#include <cstdio>
#include <fstream>
#include <string>

#include "kernels/cuda/joint_launch.h"
#include "tests/gpu/device.cuh"
#include "tests/gpu/report.h"
#include "tests/gpu/sections.cuh"

namespace hybridgen::cuda {
namespace {

constexpr int kBadArguments = 2;

std::string Megahertz(cudaDeviceAttr attribute) {
  int kilohertz = 0;
  if (cudaDeviceGetAttribute(&kilohertz, attribute, 0) != cudaSuccess) {
    cudaGetLastError();
    return "unknown";
  }
  return std::to_string(kilohertz / 1000) + " MHz";
}

int Main(int argc, char** argv) {
  CheckOptions options;
  if (const std::string why = ParseArguments(argc, argv, options); !why.empty()) {
    std::fprintf(stderr, "check: %s\n", why.c_str());
    return kBadArguments;
  }
  int devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&devices);
  if (found != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: %s\n", found != cudaSuccess ? cudaGetErrorString(found) : "the driver has none");
    return kNoDevice;
  }
  cudaDeviceProp device = {};
  Cuda(cudaGetDeviceProperties(&device, 0), "device");
  Ok(LoadKernels(), "loading kernels");
  Ok(LoadJointKernels(), "loading the joint's kernels");
  const int wrong = CheckCorrectness(options.few ? Cases::kFew : Cases::kFull);
  if (options.few || wrong > 0) return wrong > 0 ? kWrong : 0;

  Report report;
  int driver = 0, runtime = 0;
  Cuda(cudaDriverGetVersion(&driver), "driver");
  Cuda(cudaRuntimeGetVersion(&runtime), "runtime");
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  report.Fact("GPU", std::string(device.name) + ", compute capability " + std::to_string(device.major) + "." +
                         std::to_string(device.minor) + ", " + std::to_string(device.multiProcessorCount) +
                         " multiprocessors");
  report.Fact("CUDA", "driver's " + version(driver) + ", runtime " + version(runtime));
  report.Fact("highest clocks", "multiprocessors " + Megahertz(cudaDevAttrClockRate) + ", memory " +
                                    Megahertz(cudaDevAttrMemoryClockRate));
  for (const auto& [name, value] : options.facts) report.Fact(name, value);
  if (!MeasureDecode(options.sdpa, report) || !MeasureHybrid(report)) {
    std::fprintf(stderr, "check: a wrong answer while measuring\n");
    return kWrong;
  }
  const std::string markdown = report.Markdown();
  std::printf("%s", markdown.c_str());
  std::ofstream json_file(options.out + "/gpu_check.json"), markdown_file(options.out + "/gpu_check.md");
  json_file << report.Json();
  markdown_file << markdown;
  json_file.close();
  markdown_file.close();
  if (!json_file || !markdown_file) {
    std::fprintf(stderr, "check: cannot write to %s\n", options.out.c_str());
    return kWrong;
  }
  return 0;
}

}  // namespace
}  // namespace hybridgen::cuda

int main(int argc, char** argv) { return hybridgen::cuda::Main(argc, argv); }
