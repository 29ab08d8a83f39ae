// The amx_bf16 row of the kernel table: the avx512_bf16 row, but packed bfloat16 and float16 pages are attended by
// matrix tiles where there are rows enough.
//
// One definition per ISA: see kernels_avx512.cc.
#include "kernels/cpu/kernel_sets.h"
#include "kernels/page_copy.h"
#include "kernels/scratch.h"

// The order is part of the meaning: the vector type first, then what is written in its terms.
// clang-format off
#include "kernels/cpu/vec_avx512.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/elements-inl.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/cpu/softmax-inl.h"
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/tile_amx.h"
#include "kernels/cpu/attend_tiles-inl.h"
// clang-format on

namespace hybridgen {

const KernelSet kAmxBf16Kernels = {
    "amx_bf16", Isa::kAmxBf16, InitRows, AttendWithTiles, FinalizeRows, MergeRows, WriteKv, ConvertPage,
};

}  // namespace hybridgen
