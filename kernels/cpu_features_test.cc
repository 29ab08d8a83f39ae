// Tests of feature detection (against the kernel's own list) and of what each ISA level needs.
#include "kernels/cpu_features.h"

#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "gtest/gtest.h"

namespace hybridgen {
namespace {

TEST(CpuFeaturesTest, AgreesWithTheOperatingSystem) {
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> flags;
  for (std::string line; std::getline(file, line) && flags.empty();) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) flags.insert(word);
  }
  if (flags.empty()) GTEST_SKIP() << "/proc/cpuinfo has no flags line";
  const CpuFeatures f = DetectCpuFeatures();
  EXPECT_EQ(f.avx2, flags.count("avx2") > 0);
  EXPECT_EQ(f.fma, flags.count("fma") > 0);
  EXPECT_EQ(f.f16c, flags.count("f16c") > 0);
  EXPECT_EQ(f.avx512f, flags.count("avx512f") > 0);
  EXPECT_EQ(f.avx512bw, flags.count("avx512bw") > 0);
  EXPECT_EQ(f.avx512dq, flags.count("avx512dq") > 0);
  EXPECT_EQ(f.avx512vl, flags.count("avx512vl") > 0);
  EXPECT_EQ(f.avx512_vnni, flags.count("avx512_vnni") > 0);
  EXPECT_EQ(f.avx512_bf16, flags.count("avx512_bf16") > 0);
  EXPECT_EQ(f.avx512_fp16, flags.count("avx512_fp16") > 0);
  EXPECT_EQ(f.amx_tile, flags.count("amx_tile") > 0);
  EXPECT_EQ(f.amx_bf16, flags.count("amx_bf16") > 0);
}

TEST(CpuFeaturesTest, NamesWhatIsThereAndWhatIsMissing) {
  CpuFeatures f;
  EXPECT_EQ(f.ToString(), "none");
  EXPECT_EQ(MissingFeatures(f, Isa::kPortable), "");
  EXPECT_EQ(MissingFeatures(f, Isa::kAvx2), "avx2 fma f16c");
  f.avx2 = f.fma = true;
  EXPECT_EQ(f.ToString(), "avx2 fma");
  EXPECT_EQ(MissingFeatures(f, Isa::kAvx2), "f16c");
  EXPECT_FALSE(Supports(f, Isa::kAvx2));
  f.f16c = true;
  EXPECT_TRUE(Supports(f, Isa::kAvx2));
  EXPECT_EQ(MissingFeatures(f, Isa::kAvx512), "avx512f avx512bw avx512dq avx512vl");
  f.avx512f = f.avx512bw = f.avx512dq = f.avx512vl = f.avx512_bf16 = true;
  EXPECT_EQ(MissingFeatures(f, Isa::kAvx512Vnni), "avx512_vnni");
  f.avx512_vnni = true;
  f.avx512_bf16 = false;
  EXPECT_TRUE(Supports(f, Isa::kAvx512Vnni));
  EXPECT_EQ(MissingFeatures(f, Isa::kAvx512Bf16), "avx512_bf16");
}

TEST(CpuFeaturesTest, TilesThatTheSystemRefusesAreMissing) {
  CpuFeatures f;
  f.avx2 = f.fma = f.f16c = f.avx512f = f.avx512bw = f.avx512dq = f.avx512vl = f.avx512_bf16 = true;
  EXPECT_EQ(MissingFeatures(f, Isa::kAmxBf16), "amx_tile amx_bf16");
  f.amx_tile = f.amx_bf16 = true;
  EXPECT_TRUE(Supports(f, Isa::kAmxBf16));
  f.amx_refused = "no permission";
  EXPECT_EQ(MissingFeatures(f, Isa::kAmxBf16), "amx_tile (no permission)");
  EXPECT_TRUE(Supports(f, Isa::kAvx512Bf16));
  EXPECT_NE(f.ToString().find("amx_bf16 (amx unusable: no permission)"), std::string::npos) << f.ToString();
}

}  // namespace
}  // namespace hybridgen
