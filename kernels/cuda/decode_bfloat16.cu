// Decode attention over bfloat16.
#include "kernels/cuda/decode_launch.cuh"

namespace hybridgen::cuda {

template LaunchStatus LaunchDecodeOf<arch::BFloat16>(const AttendParams&, CUstream_st*);
template LaunchStatus LoadDecodeOf<arch::BFloat16>();

}  // namespace hybridgen::cuda
