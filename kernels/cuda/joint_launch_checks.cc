// What the joint's launchers refuse, without CUDA.
#include "kernels/cuda/joint_launch.h"

namespace hybridgen::cuda {

LaunchStatus Check(const PublishParams& p) {
  if (p.head_size <= 0 || p.head_size % 8 != 0 || p.head_size > kMaxHeadSize) return LaunchStatus::kUnsupportedHeadSize;
  for (const PublishPart& part : p.parts) {
    if (part.num_rows == 0) continue;
    if (reinterpret_cast<uintptr_t>(part.from.data) % 16 != 0 || part.from.token_stride % 8 != 0 ||
        part.from.head_stride % 8 != 0 || part.offset % 16 != 0) {
      return LaunchStatus::kMisaligned;
    }
  }
  return LaunchStatus::kOk;
}

}  // namespace hybridgen::cuda
