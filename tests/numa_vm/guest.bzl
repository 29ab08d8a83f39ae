"""GoogleTest programs in emulated machines with several memory nodes."""

load("@numa_guests//:guests.bzl", "GUESTS")

def numa_guest_test(machine, kernel, tests, data = [], tags = [], **kwargs):
    """Boots a machine once and runs the programs in it; every test case counts.

    Args:
      machine: of machines.py; the test is named MACHINE-KERNEL.
      kernel: series of the kernel, such as "6.12".
      tests: cc_binary targets with gtest_main.
      data: files that they open, by their path from the repository root.
      tags: Bazel's tags.
      **kwargs: passed to sh_test.
    """
    native.sh_test(
        name = machine + "-" + kernel,
        size = "large",  # half a gigabyte of guest
        timeout = "long",  # seconds, but emulation gets far slower beside other work
        srcs = ["guest.py"],
        args = [
            "--machine=" + machine,
            "--kernel=" + kernel,
            "--guests=" + GUESTS,
        ] + ["--library=$(location %s)" % file for file in data] + ["$(location %s)" % test for test in tests],
        data = tests + data + [
            "init.sh",
            "machines.py",
            "use_cxl.sh",
            "//memory:testdata/record_tree.sh",
            "@numa_guests//:packages",
        ],
        tags = tags + ["numa_vm"],
        **kwargs
    )
