// The parts of the check; main.cu runs them one after the other.
#ifndef TESTS_GPU_SECTIONS_CUH_
#define TESTS_GPU_SECTIONS_CUH_

#include <utility>
#include <vector>

#include "tests/gpu/report.h"

namespace hybridgen::cuda {

// Every kernel against double precision. kFew: few cases, for compute-sanitizer, and three calls of the joint. Prints
// the number of cases and each wrong one; returns how many are wrong.
enum class Cases { kFull, kFew };
int CheckCorrectness(Cases cases);

// Decode of 32K tokens against the device's copy bandwidth, and torch's SDPA (group -> seconds). Returns whether all
// outputs were right.
bool MeasureDecode(const std::vector<std::pair<int, double>>& sdpa, Report& report);

// Calls shared by device and CPU against their parts, against streaming the host's tokens, and their fixed cost.
// Returns whether all outputs were right.
bool MeasureHybrid(Report& report);

// Three calls of the joint with a small CPU part; whether the output is right.
bool CheckJoint();

}  // namespace hybridgen::cuda

#endif  // TESTS_GPU_SECTIONS_CUH_
