// Opens libhybridgen.so with dlopen.
#include "tests/harness/library.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

template <typename Function>
absl::Status Look(void* handle, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
  if (*function == nullptr) return absl::NotFoundError(absl::StrCat("libhybridgen.so has no function ", name));
  return absl::OkStatus();
}

}  // namespace

absl::Status Library::ToStatus(hg_status status) const {
  if (status == HG_OK) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status), last_error());
}

absl::StatusOr<Library> OpenLibrary(const std::string& path) {
  // A name without a slash would be searched on the library path.
  const std::string file = path.find('/') == std::string::npos ? absl::StrCat("./", path) : path;
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return absl::NotFoundError(absl::StrCat("opening the library failed: ", dlerror()));
  Library library;
  absl::Status status;
  status.Update(Look(handle, "hg_abi_version", &library.abi_version));
  status.Update(Look(handle, "hg_last_error", &library.last_error));
  status.Update(Look(handle, "hg_build_info", &library.build_info));
  status.Update(Look(handle, "hg_cuda_status", &library.cuda_status));
  status.Update(Look(handle, "hg_backend_create", &library.backend_create));
  status.Update(Look(handle, "hg_backend_destroy", &library.backend_destroy));
  status.Update(Look(handle, "hg_backend_add_layer", &library.backend_add_layer));
  status.Update(Look(handle, "hg_backend_bind_identity", &library.backend_bind_identity));
  status.Update(Look(handle, "hg_backend_bind_tiered", &library.backend_bind_tiered));
  status.Update(Look(handle, "hg_backend_update_requests", &library.backend_update_requests));
  status.Update(Look(handle, "hg_backend_plan_step", &library.backend_plan_step));
  status.Update(Look(handle, "hg_plan_destroy", &library.plan_destroy));
  status.Update(Look(handle, "hg_backend_forward", &library.backend_forward));
  status.Update(Look(handle, "hg_backend_plan_capture", &library.backend_plan_capture));
  status.Update(Look(handle, "hg_backend_begin_step", &library.backend_begin_step));
  status.Update(Look(handle, "hg_backend_check_replay", &library.backend_check_replay));
  status.Update(Look(handle, "hg_backend_stats_json", &library.backend_stats_json));
  status.Update(Look(handle, "hg_backend_set_streaming_share", &library.backend_set_streaming_share));
  status.Update(Look(handle, "hg_topology_json", &library.topology_json));
  status.Update(Look(handle, "hg_topology_measured_json", &library.topology_measured_json));
  if (!status.ok()) return status;
  if (library.abi_version() != HG_ABI_VERSION) {
    return absl::FailedPreconditionError(absl::StrCat(file, " has ABI version ", library.abi_version(),
                                                      ", this program was built for ", HG_ABI_VERSION));
  }
  return library;
}

}  // namespace hybridgen
