#include "backend/openmp_executor.h"

#include <dlfcn.h>
#include <link.h>

#include <atomic>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace hybridgen {
namespace {

// GOMP_parallel(fn, data, num_threads, flags): the entry point that gcc's `#pragma omp parallel` compiles to.
using GompParallelFn = void (*)(void (*fn)(void*), void* data, unsigned num_threads, unsigned flags);
using GetMaxThreadsFn = int (*)();

struct Runtime {
  std::string name;
  GompParallelFn parallel = nullptr;
  GetMaxThreadsFn max_threads = nullptr;
};

int CollectRuntime(struct dl_phdr_info* info, size_t, void* data) {
  const absl::string_view path(info->dlpi_name == nullptr ? "" : info->dlpi_name);
  const absl::string_view file = path.substr(path.rfind('/') == absl::string_view::npos ? 0 : path.rfind('/') + 1);
  if (absl::StartsWith(file, "libgomp") || absl::StartsWith(file, "libiomp5") || absl::StartsWith(file, "libomp")) {
    static_cast<std::vector<std::string>*>(data)->emplace_back(path);
  }
  return 0;
}

absl::StatusOr<Runtime> FindRuntime() {
  std::vector<std::string> paths;
  dl_iterate_phdr(CollectRuntime, &paths);
  // A preloaded Intel or LLVM runtime is what the engine's regions really bind to, hence it comes first; then the
  // engine's bundled libgomp before the system's.
  const auto rank = [](const std::string& path) {
    if (absl::StrContains(path, "libiomp5") || absl::StrContains(path, "/libomp")) return 0;
    return absl::StrContains(path, "torch") ? 1 : 2;
  };
  for (int wanted = 0; wanted <= 2; ++wanted) {
    for (const std::string& path : paths) {
      if (rank(path) != wanted) continue;
      void* handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
      if (handle == nullptr) continue;
      Runtime runtime;
      runtime.name = path.substr(path.rfind('/') + 1);
      runtime.parallel = reinterpret_cast<GompParallelFn>(dlsym(handle, "GOMP_parallel"));
      runtime.max_threads = reinterpret_cast<GetMaxThreadsFn>(dlsym(handle, "omp_get_max_threads"));
      // The handle stays open: the runtime must not be unloaded under us.
      if (runtime.parallel != nullptr && runtime.max_threads != nullptr) return runtime;
      dlclose(handle);
    }
  }
  return absl::UnavailableError(
      "OpenMP executor: no OpenMP runtime (libgomp, libiomp5, libomp) is loaded in this process; "
      "use the pool executor");
}

class OpenMpExecutor final : public Executor {
 public:
  OpenMpExecutor(Runtime runtime, int num_threads)
      : runtime_(std::move(runtime)),
        num_threads_(num_threads > 0 ? num_threads : std::max(1, runtime_.max_threads())),
        description_(absl::StrCat("openmp (", runtime_.name, ", ", num_threads_, " threads)")) {}

  int num_workers() const override { return num_threads_; }

  absl::Status Run(absl::FunctionRef<void(int)> body) override {
    // The runtime may grant fewer threads than asked (nested regions, dynamic teams), so members number themselves.
    Region region{body, {0}};
    runtime_.parallel(
        [](void* data) {
          Region* r = static_cast<Region*>(data);
          r->body(r->next_worker.fetch_add(1, std::memory_order_relaxed));
        },
        &region, static_cast<unsigned>(num_threads_), 0);
    return absl::OkStatus();
  }

  const char* description() const override { return description_.c_str(); }

 private:
  struct Region {
    absl::FunctionRef<void(int)> body;
    std::atomic<int> next_worker;
  };

  const Runtime runtime_;
  const int num_threads_;
  const std::string description_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Executor>> CreateOpenMpExecutor(int num_threads) {
  absl::StatusOr<Runtime> runtime = FindRuntime();
  if (!runtime.ok()) return runtime.status();
  return std::make_unique<OpenMpExecutor>(*std::move(runtime), num_threads);
}

}  // namespace hybridgen
