// Writing tokens into KV pages and converting pages between formats: data movement, the same on every ISA.
#ifndef KERNELS_PAGE_COPY_H_
#define KERNELS_PAGE_COPY_H_

#include "kernels/attention.h"

namespace hybridgen {

// The contracts are those of WriteKvFn and ConvertPageFn in attention.h.
void WriteKv(const WriteArgs& args);
void ConvertPage(KvRole role, const PageGeometry& from, uint64_t from_page, const PageGeometry& to, uint64_t to_page,
                 int num_tokens);

}  // namespace hybridgen

#endif  // KERNELS_PAGE_COPY_H_
