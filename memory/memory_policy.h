// The kernel's calls about the NUMA node of pages, behind an interface so that tests can play other machines.
#ifndef MEMORY_MEMORY_POLICY_H_
#define MEMORY_MEMORY_POLICY_H_

#include <cstdint>
#include <string>
#include <vector>

namespace hybridgen {

constexpr int kMaxNodes = 1024;  // the kernel's limit; ids are below it

// Each call returns 0 or an errno value. Implementations may be called from several threads at once.
class MemoryPolicyCalls {
 public:
  virtual ~MemoryPolicyCalls() = default;

  // The nodes that the calling thread's cpuset allows, ascending.
  virtual int AllowedNodes(std::vector<int>* nodes) const = 0;
  // Pages of [begin, begin + bytes) that get memory from now on lie on `node` while it has free memory. EINVAL: the
  // node is absent or outside the cpuset.
  virtual int PreferNode(void* begin, int64_t bytes, int node) const = 0;
  // nodes[i]: the node of pages[i], or a negative errno value (-ENOENT: it has no memory yet).
  virtual int QueryPages(const std::vector<void*>& pages, std::vector<int>* nodes) const = 0;
  // Tries to move pages to `node`. 0 does not mean that they moved, and the kernel's own account is not reliable (it
  // stays silent about pinned pages): ask QueryPages afterwards.
  virtual int MovePages(const std::vector<void*>& pages, int node) const = 0;
};

// The kernel itself: get_mempolicy, mbind, move_pages.
const MemoryPolicyCalls& KernelMemoryPolicy();

// The call is forbidden (a seccomp filter) or unknown (a kernel without NUMA): no defect of the request.
bool NotPermitted(int error);

// "Operation not permitted (errno 1)".
std::string ErrorText(int error);

}  // namespace hybridgen

#endif  // MEMORY_MEMORY_POLICY_H_
