// Attention of float16 queries over float8 K and V.
#include "kernels/cuda/attend_launch.cuh"

namespace hybridgen::cuda {

template struct AttendLauncher<arch::Float16, arch::Float8E4M3>;
template struct AttendLauncher<arch::Float16, arch::Float8E5M2>;

}  // namespace hybridgen::cuda
