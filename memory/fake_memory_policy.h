// A pretended machine of several NUMA nodes: real addresses, made-up nodes.
#ifndef MEMORY_FAKE_MEMORY_POLICY_H_
#define MEMORY_FAKE_MEMORY_POLICY_H_

#include <cerrno>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "memory/memory_policy.h"

namespace hybridgen {

// A page gets its node when it is first asked for: the preferred one while that has room, else node 0, which has room
// without end. Set the fields before use.
class FakeMemoryPolicy : public MemoryPolicyCalls {
 public:
  std::vector<int> allowed = {0, 1};
  std::map<int, int64_t> free_pages;  // of nodes that are short; others have room without end
  // What the calls return instead of doing anything; 0: they work.
  int allowed_error = 0, prefer_error = 0, query_error = 0, move_error = 0;

  // Acts as if the page had been moved behind the process's back.
  void Place(const void* page, int node) {
    const std::lock_guard<std::mutex> lock(mutex_);
    node_of_[page] = node;
  }
  // A pinned page refuses to move.
  void Pin(const void* page) {
    const std::lock_guard<std::mutex> lock(mutex_);
    pinned_.insert(page);
  }
  // The page has no memory, and no node then.
  void Drop(const void* page) { Place(page, -ENOENT); }

  int AllowedNodes(std::vector<int>* nodes) const override {
    *nodes = allowed;
    return allowed_error;
  }

  int PreferNode(void* begin, int64_t bytes, int node) const override {
    if (prefer_error != 0) return prefer_error;
    const std::lock_guard<std::mutex> lock(mutex_);
    preferred_[static_cast<const char*>(begin) + bytes] = {begin, node};
    return 0;
  }

  int QueryPages(const std::vector<void*>& pages, std::vector<int>* nodes) const override {
    if (query_error != 0) return query_error;
    const std::lock_guard<std::mutex> lock(mutex_);
    nodes->clear();
    for (const void* page : pages) nodes->push_back(NodeOf(page));
    return 0;
  }

  // As the kernel at its worst: the rest of a call is given up at a page that does not move.
  int MovePages(const std::vector<void*>& pages, int node) const override {
    if (move_error != 0) return move_error;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const void* page : pages) {
      if (pinned_.count(page) > 0 || !Take(node)) return 0;
      node_of_[page] = node;
    }
    return 0;
  }

 private:
  bool Take(int node) const {
    const auto room = free_pages_left_.emplace(node, free_pages.count(node) > 0 ? free_pages.at(node) : -1).first;
    if (room->second == 0) return false;
    if (room->second > 0) --room->second;
    return true;
  }

  int NodeOf(const void* page) const {
    const auto known = node_of_.find(page);
    if (known != node_of_.end()) return known->second;
    const auto range = preferred_.upper_bound(page);  // by end
    int node = range != preferred_.end() && range->second.first <= page ? range->second.second : 0;
    if (!Take(node)) node = 0;
    return node_of_[page] = node;
  }

  mutable std::mutex mutex_;
  mutable std::map<int, int64_t> free_pages_left_;
  mutable std::map<const void*, std::pair<const void*, int>> preferred_;  // end -> (begin, node)
  mutable std::map<const void*, int> node_of_;
  std::set<const void*> pinned_;
};

}  // namespace hybridgen

#endif  // MEMORY_FAKE_MEMORY_POLICY_H_
