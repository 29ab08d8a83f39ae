// The amx_bf16 row with emulated tiles (tile_emulated.h), for tests on any CPU that has the rest of what it needs.
#ifndef KERNELS_CPU_KERNELS_AMX_EMULATED_H_
#define KERNELS_CPU_KERNELS_AMX_EMULATED_H_

#include <cstdint>

#include "kernels/kernel_set.h"

namespace hybridgen {

extern const KernelRows kAmxEmulatedKernels;

// Products of tiles that this thread has computed.
int64_t EmulatedTileDots();

// Whether tiles of this thread are configured.
bool EmulatedTilesConfigured();

}  // namespace hybridgen

#endif  // KERNELS_CPU_KERNELS_AMX_EMULATED_H_
