// The avx512_vnni row of the kernel table: attend over 8-bit pages with the instruction that multiplies and adds pairs
// of int16.
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
// clang-format on

namespace hybridgen {
namespace {

constexpr KernelRow kRows[] = {
    {Isa::kAvx512Vnni, {~0u, BitOf(PageFormat::kPackedInt8V1)}, Attend},
};

}  // namespace

const KernelRows kAvx512VnniKernels = {kRows, sizeof(kRows) / sizeof(kRows[0])};

}  // namespace hybridgen
