// From a dtype to the element type that kernels are instantiated with.
#ifndef KERNELS_CUDA_DISPATCH_ELEMENT_CUH_
#define KERNELS_CUDA_DISPATCH_ELEMENT_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/launch.h"

namespace hybridgen::cuda {

template <typename T>
struct Type {
  using type = T;
};

// f(Type<element>) for the element type of `dtype`; Check has refused others.
template <typename F>
LaunchStatus DispatchElement(DType dtype, F f) {
  return dtype == DType::kFloat16 ? f(Type<arch::Float16>()) : f(Type<arch::BFloat16>());
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_DISPATCH_ELEMENT_CUH_
