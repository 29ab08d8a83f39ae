// What tests in a guest share: which nodes to use, and the kernel's own word on where pages lie.
#ifndef TESTS_NUMA_VM_GUEST_H_
#define TESTS_NUMA_VM_GUEST_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace hybridgen {

constexpr int kNoNode = -1;

// The Bazel target that booted this guest, for messages that say how to repeat a test.
std::string GuestTarget();

// The first node with CPUs.
int HomeNode();
// The last node with memory and no CPUs: CXL or what stands for it; kNoNode on a machine with one node.
int FarNode();

// Pages by node, every page of [data, data + bytes) asked for; a page that the kernel knows no node of counts under its
// negative error number. Apart from the code under test, which asks in its own way.
std::map<int, int64_t> PagesByNode(const void* data, int64_t bytes);
// The same of every mapping of this process that prefers or is bound to one node, by /proc/self/numa_maps:
// node asked for -> node that pages lie on -> pages.
std::map<int, std::map<int, int64_t>> PagesOfBoundMappings();
int64_t CountPages(int64_t bytes);
// Moves pages behind the back of the code under test, as memory tiering may.
void MovePages(void* data, int64_t bytes, int node);

int64_t FreeBytes(int node);
// Processes that the kernel has killed for want of memory since it started.
int64_t OutOfMemoryKills();

// Runs `body` in a child process and returns its text, or how the child ended ("killed by signal 9").
std::string InChild(const std::function<std::string()>& body);

// From now on the kernel answers this process's calls about nodes with EPERM, as in many containers.
void ForbidMemoryPolicy();

void WriteFile(const std::string& path, const std::string& text);

}  // namespace hybridgen

#endif  // TESTS_NUMA_VM_GUEST_H_
