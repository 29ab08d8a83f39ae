// Tests of the table's rows and of selection with invented CPUs.
#include "kernels/kernel_table.h"

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

TEST(KernelTableTest, RowsAreCompleteAndInOrder) {
  const absl::Span<const KernelSet> rows = AllKernelSets();
  ASSERT_EQ(rows.size(), 5u);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].isa, static_cast<Isa>(i));
    EXPECT_STREQ(rows[i].name, IsaName(rows[i].isa));
    EXPECT_NE(rows[i].init_rows, nullptr);
    EXPECT_NE(rows[i].attend, nullptr);
    EXPECT_NE(rows[i].finalize_rows, nullptr);
    EXPECT_NE(rows[i].merge_rows, nullptr);
    EXPECT_NE(rows[i].write_kv, nullptr);
    EXPECT_NE(rows[i].convert_page, nullptr);
    for (size_t j = 0; j < i; ++j) EXPECT_NE(rows[i].attend, rows[j].attend) << "two rows share one compilation";
  }
}

TEST(KernelTableTest, SelectsTheBestRowThatTheCpuRuns) {
  EXPECT_EQ(SelectKernelSet(CpuFeatures()).isa, Isa::kPortable);
  EXPECT_EQ(SelectKernelSet(Haswell()).isa, Isa::kAvx2);
  EXPECT_EQ(SelectKernelSet(Skylake()).isa, Isa::kAvx512);
  EXPECT_EQ(SelectKernelSet(CooperLake()).isa, Isa::kAvx512) << "its dot products are slower than multiply-adds";
  EXPECT_EQ(SelectKernelSet(Zen4()).isa, Isa::kAvx512Bf16);
  EXPECT_EQ(SelectKernelSet(SapphireRapids()).isa, Isa::kAmxBf16);
  CpuFeatures refused = SapphireRapids();
  refused.amx_refused = "no permission";
  EXPECT_EQ(SelectKernelSet(refused).isa, Isa::kAvx512);
  CpuFeatures no_f16c = Haswell();
  no_f16c.f16c = false;
  EXPECT_EQ(SelectKernelSet(no_f16c).isa, Isa::kPortable);
  CpuFeatures knights_landing = Haswell();
  knights_landing.avx512f = true;  // without BW, DQ and VL
  EXPECT_EQ(SelectKernelSet(knights_landing).isa, Isa::kAvx2);
}

TEST(KernelTableTest, FindsExactlyTheRowAskedFor) {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    const absl::StatusOr<const KernelSet*> row = FindKernelSet(CooperLake(), isa);
    ASSERT_TRUE(row.ok()) << row.status();
    EXPECT_EQ((*row)->isa, isa);
  }
}

TEST(KernelTableTest, RefusesWithWhatIsMissingAndWhatToUse) {
  const absl::Status status = FindKernelSet(Haswell(), Isa::kAvx512).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("avx512f avx512bw avx512dq avx512vl"), std::string::npos) << status;
  EXPECT_NE(status.message().find("use 'avx2'"), std::string::npos) << status;
  const absl::Status no_bf16 = FindKernelSet(Skylake(), Isa::kAvx512Bf16).status();
  EXPECT_NE(no_bf16.message().find("need avx512_bf16"), std::string::npos) << no_bf16;
  const absl::Status no_tiles = FindKernelSet(Zen4(), Isa::kAmxBf16).status();
  EXPECT_NE(no_tiles.message().find("need amx_tile amx_bf16"), std::string::npos) << no_tiles;
  const absl::Status unknown = FindKernelSet(Skylake(), static_cast<Isa>(9)).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hybridgen
