// The case matrix: the full product, no parameter of it goes round.
#include <cstdio>
#include <vector>

#include "tests/gpu/problem.cuh"
#include "tests/gpu/sections.cuh"

namespace hybridgen::cuda {
namespace {

// Query tokens and the kernel that attends them.
struct Queries {
  int tokens;
  Case::Kernel kernel;
};
// Masks and caps.
struct Mask {
  int window;
  float soft_cap;
};

struct Matrix {
  // Tiles have 16 to 128 tokens: lengths around their edges.
  std::vector<int> head_sizes = {64, 96, 128, 256}, groups = {1, 4, 8, 16}, pages = {16, 32, 128},
                   lengths = {1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257}, splits = {1, 3};
  std::vector<Queries> queries = {{1, Case::Kernel::kDecode}, {3, Case::Kernel::kDecode}, {40, Case::Kernel::kPrefill}};
  std::vector<Mask> masks = {{0, 0.0f}, {33, 5.0f}};
};

Matrix Few() {
  Matrix m;
  m.head_sizes = {64, 256};
  m.groups = {1, 8};
  m.pages = {16};
  m.lengths = {1, 65, 129};
  m.masks = {{33, 5.0f}};
  return m;
}

}  // namespace

int CheckCorrectness(Cases cases) {
  const Matrix m = cases == Cases::kFew ? Few() : Matrix();
  int count = 0, wrong = 0;
  Case c;
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (int head_size : m.head_sizes) {
      for (int group : m.groups) {
        for (int page : m.pages) {
          for (int length : m.lengths) {
            bool repack = true;  // once per page geometry and length: attention does not change it
            for (const Queries& queries : m.queries) {
              for (int splits : m.splits) {
                for (const Mask& mask : m.masks) {
                  c.dtype = dtype;
                  c.head_size = head_size;
                  c.group = group;
                  c.kv_heads = 2;
                  c.page_tokens = page;
                  c.length = length;
                  c.tokens = std::min(queries.tokens, length);
                  c.kernel = queries.kernel;
                  c.splits = splits;
                  c.window = mask.window;
                  c.soft_cap = mask.soft_cap;
                  Problem problem(c, count++);
                  problem.Write();
                  problem.Attend();
                  const double worst = problem.WorstError();
                  const bool kept = !repack || problem.RepackKeepsBits();
                  repack = false;
                  if (worst <= 1 && kept) continue;
                  ++wrong;
                  std::printf("WRONG: case %d, %s: error %.3g of the tolerance%s\n", count - 1, c.ToString().c_str(),
                              worst, kept ? "" : ", repacking loses bits");
                }
              }
            }
          }
        }
      }
    }
  }
  if (!CheckJoint()) {
    ++wrong;
    std::printf("WRONG: a call of the joint\n");
  }
  Cuda(cudaDeviceSynchronize(), "kernels");
  std::printf("%d cases and the joint, %d wrong\n", count, wrong);
  return wrong;
}

}  // namespace hybridgen::cuda
