// Arenas where a seccomp filter denies the NUMA calls, as container runtimes do: a real filter in a child process.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory/arena.h"

namespace hybridgen {
namespace {

// From here on the NUMA calls of this process return EPERM. Returns 0 or an errno value.
int DenyNumaCalls() {
  const std::vector<int> denied = {SYS_mbind, SYS_move_pages, SYS_set_mempolicy, SYS_get_mempolicy, SYS_migrate_pages};
  std::vector<sock_filter> program = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
  for (const int call : denied) {
    program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(call), 0, 1));
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
  }
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  const sock_fprog filter = {static_cast<unsigned short>(program.size()), program.data()};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return errno;
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) != 0) return errno;
  return 0;
}

// What is wrong with arenas in this process; empty: nothing.
std::string Complaints() {
  std::string complaints;
  const auto expect = [&complaints](bool held, const std::string& what) {
    if (!held) absl::StrAppend(&complaints, what, "\n");
  };
  ArenaOptions options;
  options.name = "denied";
  options.node = 0;
  const absl::StatusOr<std::unique_ptr<Arena>> arena = Arena::Create(4 << 20, options);
  if (!arena.ok()) return absl::StrCat("advisory: ", arena.status().ToString());
  expect((*arena)->binding() == NodeBinding::kNone, "a binding is claimed");
  expect((*arena)->node() == -1, "a node is claimed");
  expect((*arena)->note() ==
             "Arena denied: no NUMA control, pages lie where the kernel puts them: mbind to node 0 "
             "failed: Operation not permitted (errno 1)",
         absl::StrCat("note: ", (*arena)->note()));
  for (int64_t at = 0; at < (*arena)->bytes(); at += 4096) (*arena)->data()[at] = std::byte{1};
  const absl::Status verified = (*arena)->VerifyPlacement(0).status();
  expect(verified.code() == absl::StatusCode::kFailedPrecondition, absl::StrCat("verified: ", verified.ToString()));
  const absl::Status repaired = (*arena)->Repair().status();
  expect(repaired.code() == absl::StatusCode::kFailedPrecondition, absl::StrCat("repaired: ", repaired.ToString()));

  options.binding = NodeBinding::kStrict;
  const absl::Status strict = Arena::Create(1, options).status();
  expect(strict.code() == absl::StatusCode::kFailedPrecondition && absl::StrContains(strict.message(), "mbind"),
         absl::StrCat("strict: ", strict.ToString()));
  options.binding = NodeBinding::kNone;
  const absl::StatusOr<std::unique_ptr<Arena>> unbound = Arena::Create(1, options);
  expect(unbound.ok() && (*unbound)->note().empty(), "an arena that asks for no node has nothing to note");
  return complaints;
}

TEST(ArenaSeccompTest, DeniedNumaCallsAreANoteAndNoFailure) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const int error = DenyNumaCalls();
    const std::string text =
        error != 0 ? absl::StrCat("no filter: ", ErrorText(error)) : absl::StrCat("denied\n", Complaints());
    _exit(write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 1);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t count; (count = read(ends[0], buffer, sizeof(buffer))) > 0;) text.append(buffer, count);
  close(ends[0]);
  int result = -1;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  EXPECT_TRUE(WIFEXITED(result) && WEXITSTATUS(result) == 0) << result;
  if (absl::StartsWith(text, "no filter: ")) GTEST_SKIP() << "this kernel takes no seccomp filter: " << text;
  EXPECT_EQ(text, "denied\n");
}

}  // namespace
}  // namespace hybridgen
