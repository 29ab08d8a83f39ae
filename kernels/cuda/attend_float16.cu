// Attention over float16.
#include "kernels/cuda/attend_launch.cuh"

namespace hybridgen::cuda {

template struct AttendLauncher<arch::Float16, arch::Float16>;

}  // namespace hybridgen::cuda
