// What a backend is created from, and the check that names what cannot be used.
#ifndef BACKEND_BACKEND_OPTIONS_H_
#define BACKEND_BACKEND_OPTIONS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "backend/executor.h"
#include "backend/head_groups.h"
#include "kernels/dtype.h"
#include "kernels/isa.h"

namespace hybridgen {

// Who does the device tier's work. Values are part of the C ABI.
enum class DeviceKind : uint8_t { kCpu = 0, kEmulated = 1, kCuda = 2 };
const char* DeviceKindName(DeviceKind kind);
enum class Binding : uint8_t { kIdentity = 0, kTiered = 1 };
enum class ExecutorKind : uint8_t { kAuto = 0, kOpenMp = 1, kPool = 2 };
// The policies of memory/placement.h, or the choice among them.
enum class PlacementChoice : uint8_t { kAuto = 0, kRole = 1, kProportional = 2, kInterleave = 3 };
// How the host tiers store K and V: in the model's dtype, or as 8-bit values with a scale for each token and KV head
// (kPackedInt8V1 of kernels/page_format.h), which rounds what is published or written there.
enum class HostPageFormat : uint8_t { kExact = 0, kInt8 = 1 };
const char* HostPageFormatName(HostPageFormat format);
// When digests of host pages (kernels/page_digest.h) are built.
enum class PageDigests : uint8_t { kNone = 0, kOnPublish = 1 };
const char* PageDigestsName(PageDigests digests);

struct BackendOptions {
  DeviceKind device_kind = DeviceKind::kCpu;
  Binding binding = Binding::kIdentity;
  ExecutorKind executor = ExecutorKind::kAuto;
  bool isa_is_auto = true;  // else `isa`
  Isa isa = Isa::kPortable;
  DType dtype = DType::kFloat32;  // of queries, outputs and new K/V
  std::optional<DType> kv_dtype;  // of the KV cache: dtype or float8; unset: dtype
  int num_kv_heads = 0;
  int head_size = 0;
  int block_size = 0;
  int num_threads = 0;      // CPU worker; 0: all CPUs it may use (emulated: less device_threads)
  int device_threads = 1;   // emulated device
  int cuda_device = 0;      // ordinal as this process sees it
  std::vector<int> cpus;    // own threads are pinned to these; empty: not pinned
  int max_call_rows = 256;  // cuda device: query rows that the CPU attends at a time, CudaDeviceOptions::max_call_rows
  // cuda device: tokens of the largest graph that is captured, and device pages of the largest step that is replayed;
  // 0: no graphs.
  int graph_tokens = 0;
  int64_t graph_pages = 0;
  int ring_pages = 512;  // cuda device: pages that host pages are streamed through, CudaDeviceOptions::ring_pages
  int64_t staging_bytes = 64 << 20;  // cuda device: CudaDeviceOptions::staging_bytes
  int speculative_tokens = 0;        // draft tokens that a step may write and later reject
  int64_t dram_bytes = 0;            // host tiers, all layers together
  int64_t cxl_bytes = 0;
  HostPageFormat host_page_format = HostPageFormat::kExact;
  PageDigests page_digests = PageDigests::kNone;  // their memory comes on top of dram_bytes
  int dram_node = -1;
  int head_groups = 0;  // parts of the KV heads with a DRAM node each (head_groups.h); 0: as the machine is
  int cxl_node = -1;
  std::string cxl_device;  // "/dev/daxX.Y": the CXL tier is this device's memory; empty: none
  PlacementChoice placement = PlacementChoice::kAuto;
  int interleave_dram_weight = 1;  // pages to DRAM for every interleave_cxl_weight pages to CXL
  int interleave_cxl_weight = 1;
  // Rates that the CPU worker's reads of a tier are paced to, so that it stands for slower memory; 0: unpaced.
  double dram_gigabytes_per_second = 0;
  double cxl_gigabytes_per_second = 0;  // only where the CXL tier is plain memory
  double streaming_share = 0;
  double device_gigabytes_per_second = 0;
  double mover_gigabytes_per_second = 0;  // budget of migrations between host tiers; 0: none are made
  absl::Duration timeout = absl::Seconds(60);

  DType kv() const { return kv_dtype.value_or(dtype); }
};

// Whether the CXL tier is plain memory, which stands for CXL.
inline bool CxlIsEmulated(const BackendOptions& options) { return options.cxl_node < 0 && options.cxl_device.empty(); }

// Errors: InvalidArgument naming field, value and accepted values; Unimplemented for what this build lacks.
absl::Status Validate(const BackendOptions& options);

// The process's OpenMP team as the CPU worker's executor; null where a pool of our own is to be it.
absl::StatusOr<std::unique_ptr<Executor>> CreateTeam(const BackendOptions& options);
// The pool. Its threads are dealt to the groups' CPUs if the options name none.
absl::StatusOr<std::unique_ptr<Executor>> CreatePool(const BackendOptions& options, const HeadGroups& head_groups);

}  // namespace hybridgen

#endif  // BACKEND_BACKEND_OPTIONS_H_
