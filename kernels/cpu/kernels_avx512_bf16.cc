// The avx512_bf16 row of the kernel table: the avx512 row, but logits of bfloat16 queries and packed bfloat16 keys come
// from the instruction that multiplies and adds pairs.
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
// clang-format on

namespace hybridgen {

const KernelSet kAvx512Bf16Kernels = {
    "avx512_bf16", Isa::kAvx512Bf16, InitRows, Attend, FinalizeRows, MergeRows, WriteKv, ConvertPage,
};

}  // namespace hybridgen
