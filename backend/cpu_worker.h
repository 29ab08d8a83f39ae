// The CPU's half of a backend: its attention worker, with the threads and the pacing that the options name.
#ifndef BACKEND_CPU_WORKER_H_
#define BACKEND_CPU_WORKER_H_

#include <memory>
#include <utility>

#include "backend/attention_worker.h"
#include "backend/backend_options.h"
#include "backend/executor.h"
#include "backend/head_groups.h"
#include "kernels/kernel_set.h"

namespace hybridgen {

// How the CPU worker's reads of each tier are paced.
TierPacers CpuPacers(const BackendOptions& options);

// The CPU worker with the threads that it runs on.
struct CpuWorker {
  CpuWorker(const BackendOptions& options, const KernelSet* kernels, std::unique_ptr<Executor> threads,
            const HeadGroups& head_groups)
      : executor(std::move(threads)),
        attention(executor.get(), kernels, options.dtype, options.head_size, options.num_kv_heads, CpuPacers(options),
                  head_groups) {}
  const std::unique_ptr<Executor> executor;
  AttentionWorker attention;
};

}  // namespace hybridgen

#endif  // BACKEND_CPU_WORKER_H_
