// libhybridgen.so opened by its C ABI at run time: what a caller that shares no code with the project sees.
#ifndef TESTS_HARNESS_LIBRARY_H_
#define TESTS_HARNESS_LIBRARY_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "backend/hybridgen.h"

namespace hybridgen {

// The functions of hybridgen.h, each by its own name without the prefix.
struct Library {
  decltype(&::hg_abi_version) abi_version;
  decltype(&::hg_last_error) last_error;
  decltype(&::hg_build_info) build_info;
  decltype(&::hg_cuda_status) cuda_status;
  decltype(&::hg_backend_create) backend_create;
  decltype(&::hg_backend_destroy) backend_destroy;
  decltype(&::hg_backend_add_layer) backend_add_layer;
  decltype(&::hg_backend_bind_identity) backend_bind_identity;
  decltype(&::hg_backend_bind_tiered) backend_bind_tiered;
  decltype(&::hg_backend_update_requests) backend_update_requests;
  decltype(&::hg_backend_plan_step) backend_plan_step;
  decltype(&::hg_plan_destroy) plan_destroy;
  decltype(&::hg_backend_forward) backend_forward;
  decltype(&::hg_backend_plan_capture) backend_plan_capture;
  decltype(&::hg_backend_begin_step) backend_begin_step;
  decltype(&::hg_backend_check_replay) backend_check_replay;
  decltype(&::hg_backend_stats_json) backend_stats_json;
  decltype(&::hg_backend_set_streaming_share) backend_set_streaming_share;
  decltype(&::hg_topology_json) topology_json;
  decltype(&::hg_topology_measured_json) topology_measured_json;

  // The status of a call with this thread's message.
  absl::Status ToStatus(hg_status status) const;
};

// Opens the library and looks every function up; it stays open until the process ends.
// Errors: NotFound (no such file, or a function is missing), FailedPrecondition (another ABI version).
absl::StatusOr<Library> OpenLibrary(const std::string& path);

}  // namespace hybridgen

#endif  // TESTS_HARNESS_LIBRARY_H_
