// The CPU's half of a backend: its attention worker, with the kernels, threads, head groups and pacing that the options
// and the machine give it.
#ifndef BACKEND_CPU_WORKER_H_
#define BACKEND_CPU_WORKER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "backend/attention_worker.h"
#include "backend/backend_options.h"
#include "backend/executor.h"
#include "backend/head_groups.h"
#include "kernels/kernel_table.h"

namespace hybridgen {

// A device may hold on to it.
struct CpuWorker {
  CpuWorker(const BackendOptions& options, const KernelSet& kernels, std::unique_ptr<Executor> threads,
            const HeadGroups& head_groups);

  const KernelSet kernels;
  const HeadGroups head_groups;  // one, without a reason, in the identity binding
  const std::unique_ptr<Executor> executor;
  AttentionWorker attention;
};

// Errors: those of the options' ISA, executor and head groups.
absl::StatusOr<std::shared_ptr<CpuWorker>> CreateCpuWorker(const BackendOptions& options);

}  // namespace hybridgen

#endif  // BACKEND_CPU_WORKER_H_
