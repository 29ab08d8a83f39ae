#include "backend/cpu_worker.h"

#include <utility>

#include "backend/pacer.h"
#include "kernels/cpu_features.h"
#include "memory/node_probe.h"
#include "memory/topology.h"

namespace hybridgen {
namespace {

// How the CPU worker's reads of each tier are paced.
TierPacers CpuPacers(const BackendOptions& options) {
  TierPacers pacers;
  const auto pacer = [](double rate) { return rate > 0 ? std::make_shared<Pacer>(rate) : nullptr; };
  pacers.of[Index(Tier::kDram)] = pacer(options.dram_gigabytes_per_second);
  pacers.of[Index(Tier::kCxl)] = pacer(options.cxl_gigabytes_per_second);
  // In the `cpu` kind the engine's tensor is DRAM too.
  if (options.device_kind == DeviceKind::kCpu) pacers.of[Index(Tier::kDevice)] = pacers.of[Index(Tier::kDram)];
  return pacers;
}

}  // namespace

CpuWorker::CpuWorker(const BackendOptions& options, const KernelSet& kernels, std::unique_ptr<Executor> threads,
                     const HeadGroups& head_groups)
    : kernels(kernels),
      head_groups(head_groups),
      executor(std::move(threads)),
      attention(executor.get(), kernels, options.dtype, options.head_size, options.num_kv_heads, CpuPacers(options),
                head_groups) {}

absl::StatusOr<std::shared_ptr<CpuWorker>> CreateCpuWorker(const BackendOptions& options) {
  const CpuFeatures features = DetectCpuFeatures();
  KernelSet kernels = SelectKernels(features);
  if (!options.isa_is_auto) {
    absl::StatusOr<KernelSet> wanted = FindKernels(features, options.isa);
    if (!wanted.ok()) return wanted.status();
    kernels = *wanted;
  }
  absl::StatusOr<std::unique_ptr<Executor>> executor = CreateTeam(options);
  if (!executor.ok()) return executor.status();
  HeadGroups head_groups;
  if (options.binding == Binding::kTiered) {
    HeadGroupRequest request;
    request.wanted = options.head_groups;
    request.num_kv_heads = options.num_kv_heads;
    request.dram_node = options.dram_node;
    request.allowed_cpus = *executor != nullptr   ? CpusOf(**executor)
                           : options.cpus.empty() ? AllowedCpus()
                                                  : options.cpus;
    absl::StatusOr<HeadGroups> chosen = ChooseHeadGroups(request, ReadTopology());
    if (!chosen.ok()) return chosen.status();
    head_groups = *std::move(chosen);
  }
  if (*executor == nullptr) executor = CreatePool(options, head_groups);
  if (!executor.ok()) return executor.status();
  return std::make_shared<CpuWorker>(options, kernels, *std::move(executor), head_groups);
}

}  // namespace hybridgen
