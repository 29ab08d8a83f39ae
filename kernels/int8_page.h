// 8-bit pages (kPackedInt8V1): tokens quantised into them and read back, and copies between them. Portable code, for
// all ISA levels.
#ifndef KERNELS_INT8_PAGE_H_
#define KERNELS_INT8_PAGE_H_

#include <cstdint>

#include "kernels/attention.h"

namespace hybridgen {

// The row[head_size] of one token and KV head becomes n * scale: scale = largest |x| / 127, n = x / scale to the
// nearest, so that |n * scale - x| <= scale / 2 beyond float32 rounding. Below kInt8LeastMagnitude all are 0, scale
// included. If an element is NaN or infinite, scale is NaN and n = 0: whoever reads the token sees NaN in all dims.
constexpr float kInt8LeastMagnitude = 127 * 0x1p-100f;

// The contracts are those of WriteKvFn and ConvertPageFn in attention.h, where the written pages or at least one of
// `from` and `to` are kPackedInt8V1. Between two of these values and scales are copied as they are.
void WriteInt8Kv(const WriteArgs& args);
void ConvertInt8Page(KvRole role, const PageGeometry& from, uint64_t from_page, const PageGeometry& to,
                     uint64_t to_page, int num_tokens);

}  // namespace hybridgen

#endif  // KERNELS_INT8_PAGE_H_
