// Rows of elements to float8: what writing into float8 pages does to K and V.
#ifndef KERNELS_FLOAT8_H_
#define KERNELS_FLOAT8_H_

#include <cstdint>

#include "kernels/dtype.h"

namespace hybridgen {

// out[i] = float8(source[offset + i] / scale) for i in [0, count): the quotient rounded to float32, then as
// FloatToFloat8 of dtype.h. `from` is no float8, `to` is one; count is a multiple of 4; source at any alignment.
void NarrowToFloat8(DType from, const void* source, int64_t offset, int count, float scale, DType to, uint8_t* out);

}  // namespace hybridgen

#endif  // KERNELS_FLOAT8_H_
