// From dtypes to the element types that kernels are instantiated with.
#ifndef KERNELS_CUDA_DISPATCH_ELEMENT_CUH_
#define KERNELS_CUDA_DISPATCH_ELEMENT_CUH_

#include "kernels/cuda/arch.h"
#include "kernels/cuda/launch.h"

namespace hybridgen::cuda {

template <typename T>
struct Type {
  using type = T;
};

// f(Type<element of q>, Type<element of K and V>); Check has refused other dtypes.
template <typename F>
LaunchStatus DispatchElements(DType dtype, DType kv, F f) {
  const auto with = [&](auto element) {
    if (kv == DType::kFloat8E4M3) return f(element, Type<arch::Float8E4M3>());
    if (kv == DType::kFloat8E5M2) return f(element, Type<arch::Float8E5M2>());
    return f(element, element);
  };
  return dtype == DType::kFloat16 ? with(Type<arch::Float16>()) : with(Type<arch::BFloat16>());
}

// f(Type<element>) for what moves pages of the dtype between formats, which is the same for both of float8.
template <typename F>
LaunchStatus DispatchRepack(DType kv, F f) {
  static_assert(PackedLane(DType::kFloat8E4M3) == PackedLane(DType::kFloat8E5M2), "they are packed alike");
  if (IsFloat8(kv)) return f(Type<arch::Float8E4M3>());
  return kv == DType::kFloat16 ? f(Type<arch::Float16>()) : f(Type<arch::BFloat16>());
}

}  // namespace hybridgen::cuda

#endif  // KERNELS_CUDA_DISPATCH_ELEMENT_CUH_
