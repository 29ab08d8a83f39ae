// The amx_bf16 row of the kernel table: packed bfloat16 and float16 pages are attended by matrix tiles where there are
// query rows enough, else by vectors.
//
// One definition per ISA: see kernels_avx512.cc.
#include "kernels/cpu/kernel_rows.h"
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
#include "kernels/cpu/tile_amx.h"
#include "kernels/cpu/attend_tiles-inl.h"
// clang-format on

namespace hybridgen {

const KernelRows kAmxBf16Kernels = {kTileKernelRows, sizeof(kTileKernelRows) / sizeof(kTileKernelRows[0])};

}  // namespace hybridgen
