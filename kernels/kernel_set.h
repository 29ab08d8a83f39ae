// Rows of the kernel table, and a set: one function for everything that a backend calls. Free of library headers,
// because the sources that are compiled with ISA flags include it (docs/kernels.md, "One definition per ISA").
#ifndef KERNELS_KERNEL_SET_H_
#define KERNELS_KERNEL_SET_H_

#include "kernels/attention.h"
#include "kernels/isa.h"

namespace hybridgen {

enum class Operation : uint8_t { kInitRows, kAttend, kFinalizeRows, kMergeRows, kWriteKv, kConvertPage };

// Head sizes that a row takes.
enum class HeadClass : uint8_t { kAny, kMultipleOf32 };

constexpr int kNumDTypes = 3;
constexpr int kNumPageFormats = 2;
constexpr int kNumHeadClasses = 2;

constexpr uint32_t BitOf(DType dtype) { return 1u << static_cast<int>(dtype); }
constexpr uint32_t BitOf(PageFormat format) { return 1u << static_cast<int>(format); }

// Pages that a row serves: of these element types, in these formats, of these head sizes.
struct PageClass {
  uint32_t dtypes = ~0u;   // BitOf(DType), or-ed
  uint32_t formats = ~0u;  // BitOf(PageFormat), or-ed
  HeadClass heads = HeadClass::kAny;
};

struct KernelRow {
  Isa isa;  // what the CPU must offer
  Operation operation;
  PageClass pages;  // any for operations that see no pages
  // That of the operation; the others are null.
  InitRowsFn init_rows = nullptr;
  AttendFn attend = nullptr;
  FinalizeRowsFn finalize_rows = nullptr;
  MergeRowsFn merge_rows = nullptr;
  WriteKvFn write_kv = nullptr;
  ConvertPageFn convert_page = nullptr;

  constexpr KernelRow(Isa level, InitRowsFn f) : isa(level), operation(Operation::kInitRows), init_rows(f) {}
  constexpr KernelRow(Isa level, PageClass served, AttendFn f)
      : isa(level), operation(Operation::kAttend), pages(served), attend(f) {}
  constexpr KernelRow(Isa level, FinalizeRowsFn f)
      : isa(level), operation(Operation::kFinalizeRows), finalize_rows(f) {}
  constexpr KernelRow(Isa level, MergeRowsFn f) : isa(level), operation(Operation::kMergeRows), merge_rows(f) {}
  constexpr KernelRow(Isa level, WriteKvFn f) : isa(level), operation(Operation::kWriteKv), write_kv(f) {}
  constexpr KernelRow(Isa level, ConvertPageFn f) : isa(level), operation(Operation::kConvertPage), convert_page(f) {}
};

// Rows of one ISA source. Static storage.
struct KernelRows {
  const KernelRow* rows;
  int count;
};

// The rows chosen for one CPU. Plain data, to be copied.
struct KernelSet {
  const char* name = nullptr;  // IsaName(isa)
  Isa isa = Isa::kPortable;    // the highest among the rows
  InitRowsFn init_rows = nullptr;
  FinalizeRowsFn finalize_rows = nullptr;
  MergeRowsFn merge_rows = nullptr;
  WriteKvFn write_kv = nullptr;
  ConvertPageFn convert_page = nullptr;
  AttendFn attend_by[kNumPageFormats][kNumDTypes][kNumHeadClasses] = {};

  AttendFn attend(const PageGeometry& pages) const {
    return attend_by[static_cast<int>(pages.format)][static_cast<int>(pages.dtype)][pages.head_size % 32 == 0 ? 1 : 0];
  }
};

}  // namespace hybridgen

#endif  // KERNELS_KERNEL_SET_H_
