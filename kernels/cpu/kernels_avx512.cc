// The avx512 rows of the kernel table: the shared kernels of this folder compiled for one ISA.
//
// One definition per ISA: everything compiled here has internal linkage, apart from the rows. An inline or
// template function with external linkage would be emitted into each of these objects, and the linker would keep one
// copy for the whole program: possibly one with instructions that the CPU lacks. Hence no library headers beyond
// fixed-width integers, and isolation_test.sh looks for weak symbols in the object.
#include "kernels/cpu/kernel_rows.h"
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
    {Isa::kAvx512, InitRows},     {Isa::kAvx512, PageClass(), Attend},
    {Isa::kAvx512, FinalizeRows}, {Isa::kAvx512, MergeRows},
    {Isa::kAvx512, WriteKv},      {Isa::kAvx512, ConvertPage},
    {Isa::kAvx512, kSelection},
};

}  // namespace

const KernelRows kAvx512Kernels = {kRows, sizeof(kRows) / sizeof(kRows[0])};

}  // namespace hybridgen
