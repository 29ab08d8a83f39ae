// Questions to the guest's kernel.
#include "tests/numa_vm/guest.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <numa.h>
#include <numaif.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

#include "gtest/gtest.h"

namespace hybridgen {

std::string GuestTarget() {
  const char* const machine = getenv("GUEST_MACHINE");
  return std::string("//tests/numa_vm:") + (machine != nullptr ? machine : "guest");
}

int HomeNode() {
  for (int node = 0; node <= numa_max_node(); ++node) {
    if (numa_node_size64(node, nullptr) > 0 && numa_node_of_cpu(0) == node) return node;
  }
  return kNoNode;
}

int FarNode() {
  bitmask* const cpus = numa_allocate_cpumask();
  int far = kNoNode;
  for (int node = 0; node <= numa_max_node(); ++node) {
    if (numa_node_size64(node, nullptr) <= 0) continue;
    if (numa_node_to_cpus(node, cpus) == 0 && numa_bitmask_weight(cpus) == 0) far = node;
  }
  numa_free_cpumask(cpus);
  return far;
}

namespace {

std::vector<void*> Pages(const void* data, int64_t bytes) {
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  std::vector<void*> pages;
  for (int64_t at = 0; at < bytes; at += page_bytes) {
    pages.push_back(const_cast<char*>(static_cast<const char*>(data)) + at);
  }
  return pages;
}

}  // namespace

std::map<int, int64_t> PagesByNode(const void* data, int64_t bytes) {
  std::vector<void*> pages = Pages(data, bytes);
  std::vector<int> nodes(pages.size(), -EIO);
  EXPECT_EQ(move_pages(0, pages.size(), pages.data(), nullptr, nodes.data(), 0), 0) << strerror(errno);
  std::map<int, int64_t> count;
  for (const int node : nodes) ++count[node];
  return count;
}

std::map<int, std::map<int, int64_t>> PagesOfBoundMappings() {
  std::map<int, std::map<int, int64_t>> pages;
  std::ifstream file("/proc/self/numa_maps");
  // "7f0000000000 prefer:1 anon=512 dirty=512 N0=2 N1=510 kernelpagesize_kB=4"
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string start, policy;
    words >> start >> policy;
    int asked = kNoNode;
    if (sscanf(policy.c_str(), "prefer:%d", &asked) != 1 && sscanf(policy.c_str(), "bind:%d", &asked) != 1) continue;
    for (std::string word; words >> word;) {
      int node = kNoNode;
      long count = 0;
      if (sscanf(word.c_str(), "N%d=%ld", &node, &count) == 2) pages[asked][node] += count;
    }
  }
  return pages;
}

void MovePages(void* data, int64_t bytes, int node) {
  std::vector<void*> pages = Pages(data, bytes);
  const std::vector<int> targets(pages.size(), node);
  std::vector<int> nodes(pages.size(), -EIO);
  EXPECT_EQ(move_pages(0, pages.size(), pages.data(), targets.data(), nodes.data(), MPOL_MF_MOVE), 0);
  EXPECT_EQ(PagesByNode(data, bytes), (std::map<int, int64_t>{{node, static_cast<int64_t>(pages.size())}}));
}

int64_t CountPages(int64_t bytes) { return bytes / sysconf(_SC_PAGESIZE); }

int64_t FreeBytes(int node) {
  long long free = 0;
  numa_node_size64(node, &free);
  return free;
}

int64_t OutOfMemoryKills() {
  std::ifstream file("/proc/vmstat");
  std::string name;
  for (int64_t count = 0; file >> name >> count;) {
    if (name == "oom_kill") return count;
  }
  ADD_FAILURE() << "/proc/vmstat has no oom_kill";
  return -1;
}

std::string InChild(const std::function<std::string()>& body) {
  int ends[2];
  if (pipe(ends) != 0) return strerror(errno);
  const pid_t child = fork();
  if (child == 0) {
    const std::string text = body();
    const bool written = write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    _exit(written ? 0 : 1);
  }
  close(ends[1]);
  std::string text;
  char buffer[1024];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof(buffer))) > 0;) text.append(buffer, got);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) return "killed by signal " + std::to_string(WTERMSIG(status));
  return text;
}

void ForbidMemoryPolicy() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mbind, 5, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_set_mempolicy, 4, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_get_mempolicy, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_move_pages, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_migrate_pages, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
  };
  const sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};
  EXPECT_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  EXPECT_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0) << strerror(errno);
}

void WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text << std::flush;
  EXPECT_TRUE(file.good()) << path << ": " << strerror(errno);
}

}  // namespace hybridgen
