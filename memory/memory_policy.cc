// The system calls by libnuma's thin wrappers, which turn nothing into an exit as its larger functions do.
#include "memory/memory_policy.h"

#include <numaif.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace hybridgen {
namespace {

constexpr int kBitsPerWord = 8 * sizeof(unsigned long);

struct NodeMask {
  unsigned long words[kMaxNodes / kBitsPerWord] = {};
  bool Has(int node) const { return (words[node / kBitsPerWord] >> (node % kBitsPerWord)) & 1; }
  void Add(int node) { words[node / kBitsPerWord] |= 1ul << (node % kBitsPerWord); }
};

class KernelCalls : public MemoryPolicyCalls {
 public:
  int AllowedNodes(std::vector<int>* nodes) const override {
    NodeMask allowed;
    if (get_mempolicy(nullptr, allowed.words, kMaxNodes, nullptr, MPOL_F_MEMS_ALLOWED) != 0) return errno;
    nodes->clear();
    for (int node = 0; node < kMaxNodes; ++node) {
      if (allowed.Has(node)) nodes->push_back(node);
    }
    return 0;
  }

  int PreferNode(void* begin, int64_t bytes, int node) const override {
    if (node < 0 || node >= kMaxNodes) return EINVAL;
    NodeMask wanted;
    wanted.Add(node);
    // The extra bit: the kernel reads one bit less than it is told.
    return mbind(begin, bytes, MPOL_PREFERRED, wanted.words, kMaxNodes + 1, 0) == 0 ? 0 : errno;
  }

  int QueryPages(const std::vector<void*>& pages, std::vector<int>* nodes) const override {
    nodes->assign(pages.size(), -EIO);
    // Without target nodes the call moves nothing and reports each page's node.
    return move_pages(0, pages.size(), const_cast<void**>(pages.data()), nullptr, nodes->data(), 0) < 0 ? errno : 0;
  }

  int MovePages(const std::vector<void*>& pages, int node) const override {
    const std::vector<int> targets(pages.size(), node);
    std::vector<int> ignored(pages.size());
    const long result =
        move_pages(0, pages.size(), const_cast<void**>(pages.data()), targets.data(), ignored.data(), MPOL_MF_MOVE);
    return result < 0 ? errno : 0;  // positive: so many did not move
  }
};

}  // namespace

const MemoryPolicyCalls& KernelMemoryPolicy() {
  static const KernelCalls calls;
  return calls;
}

bool NotPermitted(int error) { return error == EPERM || error == ENOSYS || error == EACCES; }

std::string ErrorText(int error) { return absl::StrCat(strerror(error), " (errno ", error, ")"); }

}  // namespace hybridgen
