// Drives paged attention through the C ABI as an engine would, and checks every output against the oracle.
#ifndef TESTS_HARNESS_HARNESS_H_
#define TESTS_HARNESS_HARNESS_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "tests/harness/library.h"
#include "tests/harness/options.h"

namespace hybridgen {

struct Phase {
  int64_t steps = 0;
  int64_t tokens = 0;  // query tokens
  double seconds = 0;  // of planning and of forward calls
  std::string stats_before;
  std::string stats_after;
};

struct HarnessReport {
  Phase prefill;             // steps with a prompt's tokens
  Phase decode;              // the others
  int64_t checked_rows = 0;  // (token, query head) rows compared with the oracle
  double largest_error = 0;  // of any element, as a fraction of its tolerance
  std::string build_info;
  std::string stats;  // JSON at the end
};

// Errors: the library's own statuses; DataLoss when an output is wrong or memory outside was written, naming where.
absl::StatusOr<HarnessReport> RunHarness(const Library& library, const HarnessOptions& options);

}  // namespace hybridgen

#endif  // TESTS_HARNESS_HARNESS_H_
