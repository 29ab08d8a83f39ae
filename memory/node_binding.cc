// MPOL_PREFERRED, and the reasons why a node cannot be had.
#include "memory/node_binding.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hybridgen {

absl::Status CheckNode(int node, const MemoryPolicyCalls& calls, const SystemRoots& roots) {
  if (node < 0 || node >= kMaxNodes) {
    return absl::InvalidArgumentError(absl::StrCat("node ", node, " is not in [0, ", kMaxNodes, ")"));
  }
  // mbind answers EINVAL to both of these.
  const std::optional<std::vector<int>> present = ReadIdList(roots.sysfs + "/devices/system/node/has_memory");
  if (present && std::find(present->begin(), present->end(), node) == present->end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("node ", node, " is absent or has no memory; nodes with memory: ", absl::StrJoin(*present, ", ")));
  }
  std::vector<int> allowed;
  if (calls.AllowedNodes(&allowed) == 0 && std::find(allowed.begin(), allowed.end(), node) == allowed.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("node ", node, present ? " is" : " is absent or",
                     " outside this process's cpuset (cpuset.mems); allowed nodes: ", absl::StrJoin(allowed, ", ")));
  }
  return absl::OkStatus();
}

absl::StatusOr<BindOutcome> BindToNode(absl::Span<std::byte> range, int node, NodeBinding binding,
                                       const MemoryPolicyCalls& calls) {
  const int error = calls.PreferNode(range.data(), static_cast<int64_t>(range.size()), node);
  if (error == 0) return BindOutcome{binding, ""};
  const std::string reason = absl::StrCat("mbind to node ", node, " failed: ", ErrorText(error));
  if (!NotPermitted(error)) return absl::InvalidArgumentError(reason);
  if (binding == NodeBinding::kStrict) {
    return absl::FailedPreconditionError(absl::StrCat(reason, "; use an advisory binding or permit mbind"));
  }
  return BindOutcome{NodeBinding::kNone,
                     absl::StrCat("no NUMA control, pages lie where the kernel puts them: ", reason)};
}

}  // namespace hybridgen
