// Tests of the table's rows and of selection with invented CPUs.
#include "kernels/kernel_table.h"

#include <set>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

CpuFeatures Haswell() {
  CpuFeatures f;
  f.avx2 = f.fma = f.f16c = true;
  return f;
}

CpuFeatures Skylake() {
  CpuFeatures f = Haswell();
  f.avx512f = f.avx512bw = f.avx512dq = f.avx512vl = true;
  return f;
}

CpuFeatures CooperLake() {
  CpuFeatures f = Skylake();
  f.avx512_bf16 = true;
  return f;
}

CpuFeatures Zen4() {
  CpuFeatures f = CooperLake();
  f.fast_bf16_dot = true;
  return f;
}

CpuFeatures SapphireRapids() {
  CpuFeatures f = CooperLake();
  f.amx_tile = f.amx_bf16 = true;
  return f;
}

// Attend of these pages in a set.
AttendFn Attend(const KernelSet& set, PageFormat format, DType dtype, int head_size) {
  PageGeometry pages;
  pages.format = format;
  pages.dtype = dtype;
  pages.head_size = head_size;
  return set.attend(pages);
}

TEST(KernelTableTest, RowsAreInTheOrderOfTheirIsaAndHaveTheirFunction) {
  size_t level = 0;
  for (const KernelRow& row : AllKernelRows()) {
    if (row.isa != AllIsas()[level]) ++level;
    ASSERT_LT(level, AllIsas().size()) << "rows of one level lie apart";
    ASSERT_EQ(row.isa, AllIsas()[level]);
    const bool has[] = {row.init_rows != nullptr,
                        row.attend != nullptr,
                        row.finalize_rows != nullptr,
                        row.merge_rows != nullptr,
                        row.write_kv != nullptr,
                        row.convert_page != nullptr,
                        row.selection.store_logits != nullptr};
    const Operation operations[] = {Operation::kInitRows,  Operation::kAttend,  Operation::kFinalizeRows,
                                    Operation::kMergeRows, Operation::kWriteKv, Operation::kConvertPage,
                                    Operation::kSelection};
    for (int i = 0; i < 7; ++i) {
      EXPECT_EQ(has[i], row.operation == operations[i]) << IsaName(row.isa) << " " << static_cast<int>(row.operation);
    }
  }
  const std::set<Isa> distinct(AllIsas().begin(), AllIsas().end());
  EXPECT_EQ(distinct.size(), AllIsas().size());
}

TEST(KernelTableTest, EverySetIsComplete) {
  for (const CpuFeatures& features : {CpuFeatures(), Haswell(), Skylake(), CooperLake(), Zen4(), SapphireRapids()}) {
    const KernelSet set = SelectKernels(features);
    EXPECT_STREQ(set.name, IsaName(set.isa));
    EXPECT_NE(set.init_rows, nullptr);
    EXPECT_NE(set.finalize_rows, nullptr);
    EXPECT_NE(set.merge_rows, nullptr);
    EXPECT_NE(set.write_kv, nullptr);
    EXPECT_NE(set.convert_page, nullptr);
    EXPECT_NE(set.selection.store_logits, nullptr);
    EXPECT_NE(set.selection.summarise_logits, nullptr);
    EXPECT_NE(set.selection.attend_selected, nullptr);
    EXPECT_NE(set.selection.build_digest, nullptr);
    EXPECT_NE(set.selection.bound_logits, nullptr);
    for (const auto& by_dtype : set.attend_by) {
      for (const auto& by_heads : by_dtype) {
        for (const AttendFn attend : by_heads) EXPECT_NE(attend, nullptr) << set.name;
      }
    }
  }
}

TEST(KernelTableTest, SelectsTheBestRowsThatTheCpuRuns) {
  EXPECT_EQ(SelectKernels(CpuFeatures()).isa, Isa::kPortable);
  EXPECT_EQ(SelectKernels(Haswell()).isa, Isa::kAvx2);
  EXPECT_EQ(SelectKernels(Skylake()).isa, Isa::kAvx512);
  EXPECT_EQ(SelectKernels(CooperLake()).isa, Isa::kAvx512) << "its dot products are slower than multiply-adds";
  EXPECT_EQ(SelectKernels(Zen4()).isa, Isa::kAvx512Bf16);
  EXPECT_EQ(SelectKernels(SapphireRapids()).isa, Isa::kAmxBf16);
  CpuFeatures refused = SapphireRapids();
  refused.amx_refused = "no permission";
  EXPECT_EQ(SelectKernels(refused).isa, Isa::kAvx512);
  CpuFeatures no_f16c = Haswell();
  no_f16c.f16c = false;
  EXPECT_EQ(SelectKernels(no_f16c).isa, Isa::kPortable);
  CpuFeatures knights_landing = Haswell();
  knights_landing.avx512f = true;  // without BW, DQ and VL
  EXPECT_EQ(SelectKernels(knights_landing).isa, Isa::kAvx2);
}

TEST(KernelTableTest, ARowReplacesOthersOnlyForThePagesItServes) {
  const KernelSet below = SelectKernels(Skylake());
  const KernelSet set = SelectKernels(Zen4());
  for (const int head_size : {72, 128}) {
    for (const PageFormat format : {PageFormat::kStrided, PageFormat::kPackedV1}) {
      EXPECT_NE(Attend(set, format, DType::kBFloat16, head_size), Attend(below, format, DType::kBFloat16, head_size));
      for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
        EXPECT_EQ(Attend(set, format, dtype, head_size), Attend(below, format, dtype, head_size));
      }
    }
  }
  EXPECT_EQ(set.merge_rows, below.merge_rows);
  CpuFeatures cascade_lake = Skylake();
  cascade_lake.avx512_vnni = true;
  const KernelSet vnni = SelectKernels(cascade_lake);
  EXPECT_EQ(vnni.isa, Isa::kAvx512Vnni);
  EXPECT_NE(Attend(vnni, PageFormat::kPackedInt8V1, DType::kFloat16, 72),
            Attend(below, PageFormat::kPackedInt8V1, DType::kFloat16, 72));
  EXPECT_EQ(Attend(vnni, PageFormat::kPackedV1, DType::kFloat16, 72),
            Attend(below, PageFormat::kPackedV1, DType::kFloat16, 72));
  const KernelSet tiles = SelectKernels(SapphireRapids());
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    EXPECT_EQ(Attend(tiles, PageFormat::kPackedV1, dtype, 128) == Attend(below, PageFormat::kPackedV1, dtype, 128),
              dtype == DType::kFloat32);
    EXPECT_EQ(Attend(tiles, PageFormat::kPackedV1, dtype, 72), Attend(below, PageFormat::kPackedV1, dtype, 72));
    EXPECT_EQ(Attend(tiles, PageFormat::kStrided, dtype, 128), Attend(below, PageFormat::kStrided, dtype, 128));
  }
}

TEST(KernelTableTest, FindsTheRowsUpToTheIsaAskedFor) {
  for (const Isa isa : AllIsas()) {
    if (!Supports(CooperLake(), isa)) continue;
    const absl::StatusOr<KernelSet> set = FindKernels(CooperLake(), isa);
    ASSERT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(set->isa, isa);
  }
}

TEST(KernelTableTest, RefusesWithWhatIsMissingAndWhatToUse) {
  const absl::Status status = FindKernels(Haswell(), Isa::kAvx512).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("avx512f avx512bw avx512dq avx512vl"), std::string::npos) << status;
  EXPECT_NE(status.message().find("use 'avx2'"), std::string::npos) << status;
  const absl::Status no_bf16 = FindKernels(Skylake(), Isa::kAvx512Bf16).status();
  EXPECT_NE(no_bf16.message().find("need avx512_bf16"), std::string::npos) << no_bf16;
  const absl::Status no_tiles = FindKernels(Zen4(), Isa::kAmxBf16).status();
  EXPECT_NE(no_tiles.message().find("need amx_tile amx_bf16"), std::string::npos) << no_tiles;
  const absl::Status unknown = FindKernels(Skylake(), static_cast<Isa>(99)).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(unknown.message().find("portable (0), avx2 (1)"), std::string::npos) << unknown;
}

}  // namespace
}  // namespace hybridgen
