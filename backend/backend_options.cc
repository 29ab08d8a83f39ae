#include "backend/backend_options.h"

#include <sched.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "backend/openmp_executor.h"
#include "backend/pool_executor.h"

namespace hybridgen {
namespace {

absl::Status CheckRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("create backend: ", field, " is ", value, "; accepted: ", low, " to ", high));
}

// Rates so small or large that times would overflow are no rates.
absl::Status CheckRate(const char* field, double value) {
  constexpr double kLeast = 1e-6, kMost = 1e6;
  if (value == 0 || (value >= kLeast && value <= kMost)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("create backend: ", field, " is ", value, "; accepted: 0 (unpaced), or ", kLeast, " to ", kMost));
}

// The CXL tier is one of a node, a device, or plain memory, and only the last may be slowed down to stand for CXL.
absl::Status CheckCxl(const BackendOptions& o) {
  if (o.cxl_node >= 0 && !o.cxl_device.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("create backend: cxl_node is ", o.cxl_node, " and cxl_device is '",
                                                   o.cxl_device, "'; accepted: one of them, or neither"));
  }
  if (o.cxl_gigabytes_per_second > 0 && !CxlIsEmulated(o)) {
    return absl::InvalidArgumentError(
        absl::StrCat("create backend: cxl_gigabytes_per_second is ", o.cxl_gigabytes_per_second,
                     " and the CXL tier is ", o.cxl_device.empty() ? absl::StrCat("node ", o.cxl_node) : o.cxl_device,
                     "; accepted: 0, as only a tier of plain memory (cxl_node -1, no cxl_device) is paced"));
  }
  return absl::OkStatus();
}

// KV has the model's dtype or is float8.
absl::Status CheckDTypes(const BackendOptions& o) {
  if (IsFloat8(o.dtype)) {
    return absl::InvalidArgumentError(absl::StrCat("create backend: dtype is ", DTypeName(o.dtype),
                                                   "; accepted: float32, float16, bfloat16 (float8 as kv_dtype)"));
  }
  if (!IsFloat8(o.kv()) && o.kv() != o.dtype) {
    return absl::InvalidArgumentError(absl::StrCat("create backend: kv_dtype is ", DTypeName(o.kv()), " and dtype ",
                                                   DTypeName(o.dtype),
                                                   "; accepted: the same, or a kv_dtype of float8_e4m3, float8_e5m2"));
  }
  return absl::OkStatus();
}

int UsableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

}  // namespace

const char* DeviceKindName(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::kCpu:
      return "cpu";
    case DeviceKind::kEmulated:
      return "emulated";
    case DeviceKind::kCuda:
      return "cuda";
  }
  return "unknown";
}

const char* HostPageFormatName(HostPageFormat format) {
  switch (format) {
    case HostPageFormat::kExact:
      return "exact";
    case HostPageFormat::kInt8:
      return "int8";
  }
  return "unknown";
}

const char* PageDigestsName(PageDigests digests) {
  switch (digests) {
    case PageDigests::kNone:
      return "none";
    case PageDigests::kOnPublish:
      return "on_publish";
  }
  return "unknown";
}

absl::Status Validate(const BackendOptions& o) {
  constexpr int kMaxThreads = 4096;
  for (const absl::Status& status : {
           CheckRange("num_kv_heads", o.num_kv_heads, 1, 1024),
           CheckRange("num_threads", o.num_threads, 0, kMaxThreads),
           CheckRange("device_threads", o.device_threads, 1, kMaxThreads),
           CheckRange("max_call_rows", o.max_call_rows, 1, 65536),
           CheckRange("graph_tokens", o.graph_tokens, 0, 65536),
           CheckRange("graph_pages", o.graph_pages, 0, INT32_MAX),
           CheckRange("ring_pages", o.ring_pages, 1, 1 << 24),
           CheckRange("staging_bytes", o.staging_bytes, 0, int64_t{1} << 40),
           CheckRange("speculative_tokens", o.speculative_tokens, 0, 4096),
           CheckRange("dram_bytes", o.dram_bytes, 0, INT64_MAX),
           CheckRange("cxl_bytes", o.cxl_bytes, 0, INT64_MAX),
           CheckRange("dram_node", o.dram_node, -1, 1023),
           CheckRange("head_groups", o.head_groups, 0, kMaxShares),
           CheckRange("cxl_node", o.cxl_node, -1, 1023),
           CheckRange("interleave_dram_weight", o.interleave_dram_weight, 1, 255),
           CheckRange("interleave_cxl_weight", o.interleave_cxl_weight, 1, 255),
       }) {
    if (!status.ok()) return status;
  }
  if (o.head_size % 8 != 0 || o.head_size < 8 || (o.head_size > 256 && o.head_size != 512)) {
    return absl::InvalidArgumentError(absl::StrCat("create backend: head_size is ", o.head_size,
                                                   "; accepted: multiples of 8 from 8 to 256, and 512"));
  }
  if (o.block_size % 16 != 0 || o.block_size < 16 || o.block_size > 65536) {
    return absl::InvalidArgumentError(
        absl::StrCat("create backend: block_size is ", o.block_size, "; accepted: multiples of 16 from 16 to 65536"));
  }
  if (!(o.streaming_share >= 0 && o.streaming_share <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("create backend: streaming_share is ", o.streaming_share, "; accepted: 0 to 1"));
  }
  for (const absl::Status& status : {
           CheckRate("device_gigabytes_per_second", o.device_gigabytes_per_second),
           CheckRate("dram_gigabytes_per_second", o.dram_gigabytes_per_second),
           CheckRate("cxl_gigabytes_per_second", o.cxl_gigabytes_per_second),
           CheckCxl(o),
           CheckDTypes(o),
       }) {
    if (!status.ok()) return status;
  }
  constexpr double kLeastMoverRate = 1e-3, kMostMoverRate = 1e6;  // bounds with which times cannot overflow
  if (o.mover_gigabytes_per_second != 0 &&
      !(o.mover_gigabytes_per_second >= kLeastMoverRate && o.mover_gigabytes_per_second <= kMostMoverRate)) {
    return absl::InvalidArgumentError(absl::StrCat("create backend: mover_gigabytes_per_second is ",
                                                   o.mover_gigabytes_per_second, "; accepted: 0 (no migrations), or ",
                                                   kLeastMoverRate, " to ", kMostMoverRate));
  }
  if (!(o.timeout > absl::ZeroDuration())) {
    return absl::InvalidArgumentError(absl::StrCat("create backend: timeout is ", absl::FormatDuration(o.timeout),
                                                   "; accepted: more than 0 seconds"));
  }
  if (o.graph_tokens != 0 && o.device_kind != DeviceKind::kCuda) {
    return absl::UnimplementedError(absl::StrCat("create backend: graph_tokens is ", o.graph_tokens,
                                                 "; accepted with device_kind ", DeviceKindName(o.device_kind), ": 0"));
  }
  if (o.graph_tokens != 0 && o.streaming_share != 0) {
    return absl::UnimplementedError(absl::StrCat("create backend: streaming_share is ", o.streaming_share,
                                                 "; accepted with graph_tokens ", o.graph_tokens, ": 0"));
  }
  if ((o.graph_tokens != 0) != (o.graph_pages != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("create backend: graph_tokens is ", o.graph_tokens,
                                                   " and graph_pages ", o.graph_pages,
                                                   "; accepted: both 0 (no graphs), or both 1 or more"));
  }
  if (o.host_page_format != HostPageFormat::kExact && o.binding == Binding::kIdentity) {
    return absl::InvalidArgumentError(absl::StrCat("create backend: host_page_format is ",
                                                   HostPageFormatName(o.host_page_format),
                                                   "; accepted with the identity binding, which has no host pages: "
                                                   "exact"));
  }
  if (o.host_page_format != HostPageFormat::kExact && o.device_kind == DeviceKind::kCuda) {
    return absl::UnimplementedError(absl::StrCat("create backend: host_page_format is ",
                                                 HostPageFormatName(o.host_page_format),
                                                 "; accepted with device_kind cuda, whose copies do not quantise: "
                                                 "exact"));
  }
  if (o.host_page_format != HostPageFormat::kExact && IsFloat8(o.kv())) {
    return absl::UnimplementedError(absl::StrCat("create backend: host_page_format is ",
                                                 HostPageFormatName(o.host_page_format), "; accepted with kv_dtype ",
                                                 DTypeName(o.kv()), ", which has 8 bits already: exact"));
  }
  if (o.page_digests != PageDigests::kNone && o.binding == Binding::kIdentity) {
    return absl::InvalidArgumentError(absl::StrCat("create backend: page_digests is ", PageDigestsName(o.page_digests),
                                                   "; accepted with the identity binding, which publishes nothing: "
                                                   "none"));
  }
  if (o.page_digests != PageDigests::kNone && o.host_page_format == HostPageFormat::kInt8) {
    return absl::UnimplementedError(absl::StrCat("create backend: page_digests is ", PageDigestsName(o.page_digests),
                                                 "; accepted with host_page_format int8, whose pages have no digests: "
                                                 "none"));
  }
  if (o.binding == Binding::kTiered && o.dram_bytes == 0 && o.cxl_bytes == 0) {
    return absl::InvalidArgumentError(
        "create backend: dram_bytes and cxl_bytes are both 0; the tiered binding needs a host tier, or take the "
        "identity binding");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Executor>> CreateTeam(const BackendOptions& o) {
  const bool wanted =
      o.executor == ExecutorKind::kOpenMp || (o.executor == ExecutorKind::kAuto && o.device_kind == DeviceKind::kCpu);
  if (!wanted) return nullptr;
  absl::StatusOr<std::unique_ptr<Executor>> team = CreateOpenMpExecutor(o.num_threads);
  if (!team.ok() && o.executor == ExecutorKind::kAuto) return nullptr;
  return team;
}

absl::StatusOr<std::unique_ptr<Executor>> CreatePool(const BackendOptions& o, const HeadGroups& head_groups) {
  PoolExecutorOptions pool;
  const int cpus = o.cpus.empty() ? UsableCpus() : static_cast<int>(o.cpus.size());
  const int taken = o.device_kind == DeviceKind::kEmulated ? o.device_threads : 0;
  pool.num_workers = o.num_threads > 0 ? o.num_threads : std::max(1, cpus - taken);
  for (const int cpu : o.cpus) pool.cpus.push_back({cpu});
  if (o.cpus.empty()) {
    for (const std::vector<int>& node : head_groups.cpus) {
      if (!node.empty()) pool.cpus.push_back(node);
    }
  }
  pool.timeout = o.timeout;
  return CreatePoolExecutor(pool);
}

}  // namespace hybridgen
