// Loads and stores of 16 elements of a run-time dtype. Textually included once per ISA, after a vec_*.h.
#ifndef KERNELS_CPU_ELEMENTS_INL_H_
#define KERNELS_CPU_ELEMENTS_INL_H_

namespace hybridgen {
namespace {

// How elements lie in memory. kBF16Pairs: 16 pairs of bfloat16, see kPackedV1 in page_format.h; kBF16Dots: the same,
// for PairDot.
enum class Elements : uint8_t { kF32, kF16, kBF16, kBF16Pairs, kBF16Dots, kF8E4M3, kF8E5M2 };

// What 1 stands for in loaded elements of K and V. float8_e4m3 goes through float16, whose exponents it has with a bias
// that is 8 less: a multiplication per element that the scores and weights take over, once for all dims.
HG_INLINE float UnitOf(DType dtype) { return dtype == DType::kFloat8E4M3 ? 0x1p8f : 1.0f; }

// Part of a vector that exists: a head size that is an odd multiple of 8 ends in a half.
enum class Extent : uint8_t { kFull, kHalf };

template <Elements kElements, Extent kExtent = Extent::kFull>
HG_INLINE Vec LoadElements(const char* p) {
  static_assert(kElements != Elements::kBF16Pairs, "pairs are loaded two vectors at a time");
  if constexpr (kElements == Elements::kF32) {
    const float* f = reinterpret_cast<const float*>(p);
    if constexpr (kExtent == Extent::kFull) {
      return Load(f);
    } else {
      return LoadHalf(f);
    }
  } else if constexpr (kElements == Elements::kF16) {
    if constexpr (kExtent == Extent::kFull) {
      return LoadF16(p);
    } else {
      return LoadHalfF16(p);
    }
  } else if constexpr (kElements == Elements::kF8E4M3) {
    if constexpr (kExtent == Extent::kFull) {
      return LoadE4M3(p);
    } else {
      return LoadHalfE4M3(p);
    }
  } else if constexpr (kElements == Elements::kF8E5M2) {
    if constexpr (kExtent == Extent::kFull) {
      return LoadE5M2(p);
    } else {
      return LoadHalfE5M2(p);
    }
  } else {
    if constexpr (kExtent == Extent::kFull) {
      return LoadBF16(p);
    } else {
      return LoadHalfBF16(p);
    }
  }
}

// Elements [dim, dim + 16) of a row of `head_size` elements, in units of UnitOf; zeros beyond its end.
HG_INLINE Vec LoadRow(const char* row, DType dtype, int dim, int head_size) {
  const bool full = dim + 16 <= head_size;
  switch (dtype) {
    case DType::kFloat32:
      row += static_cast<size_t>(dim) * 4;
      return full ? LoadElements<Elements::kF32>(row) : LoadElements<Elements::kF32, Extent::kHalf>(row);
    case DType::kFloat16:
      row += static_cast<size_t>(dim) * 2;
      return full ? LoadElements<Elements::kF16>(row) : LoadElements<Elements::kF16, Extent::kHalf>(row);
    case DType::kBFloat16:
      row += static_cast<size_t>(dim) * 2;
      return full ? LoadElements<Elements::kBF16>(row) : LoadElements<Elements::kBF16, Extent::kHalf>(row);
    case DType::kFloat8E4M3:
      row += dim;
      return full ? LoadElements<Elements::kF8E4M3>(row) : LoadElements<Elements::kF8E4M3, Extent::kHalf>(row);
    case DType::kFloat8E5M2:
      row += dim;
      return full ? LoadElements<Elements::kF8E5M2>(row) : LoadElements<Elements::kF8E5M2, Extent::kHalf>(row);
  }
  return Zero();
}

// Stores to elements [dim, dim + 16) of a row, or to the half that exists.
HG_INLINE void StoreRow(char* row, DType dtype, int dim, int head_size, Vec x) {
  const bool full = dim + 16 <= head_size;
  switch (dtype) {
    case DType::kFloat32: {
      float* f = reinterpret_cast<float*>(row) + dim;
      return full ? Store(f, x) : StoreHalf(f, x);
    }
    case DType::kFloat16:
      row += static_cast<size_t>(dim) * 2;
      return full ? StoreF16(row, x) : StoreHalfF16(row, x);
    case DType::kBFloat16:
      row += static_cast<size_t>(dim) * 2;
      return full ? StoreBF16(row, x) : StoreHalfBF16(row, x);
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2:
      break;  // no row that is stored is float8
  }
}

HG_INLINE size_t BytesOf(DType dtype) {
  if (dtype == DType::kFloat32) return 4;
  return dtype == DType::kFloat16 || dtype == DType::kBFloat16 ? 2 : 1;
}

}  // namespace
}  // namespace hybridgen

#endif  // KERNELS_CPU_ELEMENTS_INL_H_
