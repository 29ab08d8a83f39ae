// Decode attention over float16.
#include "kernels/cuda/decode_launch.cuh"

namespace hybridgen::cuda {

template LaunchStatus LaunchDecodeOf<arch::Float16>(const AttendParams&, CUstream_st*);
template LaunchStatus LoadDecodeOf<arch::Float16>();

}  // namespace hybridgen::cuda
