// The amx_bf16 row with emulated tiles, for tests on CPUs without AMX.
#include "kernels/cpu/kernels_amx_emulated.h"

#include "kernels/scratch.h"

// The order is part of the meaning: the vector type first, then what is written in its terms.
// clang-format off
#include "kernels/cpu/vec_avx512.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/elements-inl.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/cpu/softmax-inl.h"
#include "kernels/cpu/int8-inl.h"
#include "kernels/cpu/walk-inl.h"
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/tile_emulated.h"
#include "kernels/cpu/attend_tiles-inl.h"
// clang-format on

namespace hybridgen {

const KernelRows kAmxEmulatedKernels = {kTileKernelRows, sizeof(kTileKernelRows) / sizeof(kTileKernelRows[0])};

int64_t EmulatedTileDots() { return tile_machine.dots; }

bool EmulatedTilesConfigured() { return tile_machine.configured; }

}  // namespace hybridgen
