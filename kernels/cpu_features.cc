// Feature detection through the compiler's CPU model, which includes the operating system's register support.
#include "kernels/cpu_features.h"

#include <string>
#include <utility>

#include "kernels/cpu/tiles_usable.h"

namespace hybridgen {
namespace {

void Append(std::string& list, const char* name) {
  if (!list.empty()) list += ' ';
  list += name;
}

}  // namespace

std::string CpuFeatures::ToString() const {
  std::string list;
  const std::pair<bool, const char*> features[] = {
      {avx2, "avx2"},
      {fma, "fma"},
      {f16c, "f16c"},
      {avx512f, "avx512f"},
      {avx512bw, "avx512bw"},
      {avx512dq, "avx512dq"},
      {avx512vl, "avx512vl"},
      {avx512_vnni, "avx512_vnni"},
      {avx512_bf16, "avx512_bf16"},
      {fast_bf16_dot, "fast_bf16_dot"},
      {avx512_fp16, "avx512_fp16"},
      {amx_tile, "amx_tile"},
      {amx_bf16, "amx_bf16"},
  };
  for (const auto& [present, name] : features) {
    if (present) Append(list, name);
  }
  if (!amx_refused.empty()) Append(list, ("(amx unusable: " + amx_refused + ")").c_str());
  return list.empty() ? "none" : list;
}

CpuFeatures DetectCpuFeatures() {
  CpuFeatures features;
#if defined(__x86_64__)
  __builtin_cpu_init();
  features.avx2 = __builtin_cpu_supports("avx2");
  features.fma = __builtin_cpu_supports("fma");
  features.f16c = __builtin_cpu_supports("f16c");
  features.avx512f = __builtin_cpu_supports("avx512f");
  features.avx512bw = __builtin_cpu_supports("avx512bw");
  features.avx512dq = __builtin_cpu_supports("avx512dq");
  features.avx512vl = __builtin_cpu_supports("avx512vl");
  features.avx512_vnni = __builtin_cpu_supports("avx512vnni");
  features.avx512_bf16 = __builtin_cpu_supports("avx512bf16");
  features.fast_bf16_dot = features.avx512_bf16 && __builtin_cpu_is("amd");
  features.avx512_fp16 = __builtin_cpu_supports("avx512fp16");
  features.amx_tile = __builtin_cpu_supports("amx-tile");
  features.amx_bf16 = __builtin_cpu_supports("amx-bf16");
  if (features.amx_tile && features.amx_bf16) {
    static const std::string* const kReason = new std::string(WhyTilesAreUnusable());
    features.amx_refused = *kReason;
  }
#endif
  return features;
}

std::string MissingFeatures(const CpuFeatures& features, Isa isa) {
  std::string missing;
  if (isa >= Isa::kAvx2) {
    if (!features.avx2) Append(missing, "avx2");
    if (!features.fma) Append(missing, "fma");
    if (!features.f16c) Append(missing, "f16c");
  }
  if (isa >= Isa::kAvx512) {
    if (!features.avx512f) Append(missing, "avx512f");
    if (!features.avx512bw) Append(missing, "avx512bw");
    if (!features.avx512dq) Append(missing, "avx512dq");
    if (!features.avx512vl) Append(missing, "avx512vl");
  }
  const bool amx = isa == Isa::kAmxBf16;
  if (isa == Isa::kAvx512Vnni && !features.avx512_vnni) Append(missing, "avx512_vnni");
  if ((isa == Isa::kAvx512Bf16 || amx) && !features.avx512_bf16) Append(missing, "avx512_bf16");
  if (amx) {
    if (!features.amx_tile) Append(missing, "amx_tile");
    if (!features.amx_bf16) Append(missing, "amx_bf16");
    if (!features.amx_refused.empty()) Append(missing, ("amx_tile (" + features.amx_refused + ")").c_str());
  }
  return missing;
}

bool Supports(const CpuFeatures& features, Isa isa) { return MissingFeatures(features, isa).empty(); }

}  // namespace hybridgen
