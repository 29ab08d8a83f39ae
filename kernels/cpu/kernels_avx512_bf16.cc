// The avx512_bf16 rows of the kernel table: logits of bfloat16 queries and packed bfloat16 keys come from the
// instruction that multiplies and adds pairs; all else is as in the avx512 rows.
//
// One definition per ISA: see kernels_avx512.cc.
#include "kernels/cpu/kernel_rows.h"
#include "kernels/page_copy.h"
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
#include "kernels/cpu/logits-inl.h"
#include "kernels/cpu/selected-inl.h"
#include "kernels/cpu/digest-inl.h"
// clang-format on

namespace hybridgen {
namespace {

constexpr SelectionKernels kSelection = {StoreLogits, SummariseLogits, AttendSelected, BuildDigest, BoundLogits};

constexpr KernelRow kRows[] = {
    {Isa::kAvx512Bf16, {BitOf(DType::kBFloat16)}, Attend},
    {Isa::kAvx512Bf16, kSelection},
};

}  // namespace

const KernelRows kAvx512Bf16Kernels = {kRows, sizeof(kRows) / sizeof(kRows[0])};

}  // namespace hybridgen
