// Giving a mapped range its physical pages, step by step under a budget.
#ifndef MEMORY_POPULATE_H_
#define MEMORY_POPULATE_H_

#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace hybridgen {

// Touches every page of the range for writing, so that later use cannot fail. Before each step of 2 MiB `admit`, given
// the bytes that are left to do, may refuse; its status is returned and the rest stays untouched.
// Error: ResourceExhausted (the kernel gives no page; with MADV_POPULATE_WRITE, from Linux 5.14 on, that is a status
// and no signal).
absl::Status PopulatePages(absl::Span<std::byte> range, const std::function<absl::Status(int64_t left)>& admit);

}  // namespace hybridgen

#endif  // MEMORY_POPULATE_H_
