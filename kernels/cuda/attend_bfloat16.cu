// Attention over bfloat16.
#include "kernels/cuda/attend_launch.cuh"

namespace hybridgen::cuda {

template struct AttendLauncher<arch::BFloat16, arch::BFloat16>;

}  // namespace hybridgen::cuda
