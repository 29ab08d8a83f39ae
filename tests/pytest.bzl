"""Python suites as Bazel tests: pytest in the environment of third_party/install.sh, on the built wheel."""

load("@python_headers//:python.bzl", "PYTHON")

def hybridgen_pytest(name, srcs, data = [], args = [], size = "large", tags = [], timeout = "eternal", **kwargs):
    """One pytest run over `srcs`, with the wheel unpacked on PYTHONPATH and the repository root importable.

    Args:
      name: name of the test.
      srcs: the test_*.py files.
      data: other files needed: conftest.py, helper modules, fixtures.
      args: further pytest options.
      size: Bazel's size.
      timeout: Bazel's timeout; minutes on an idle machine, but vLLM's spinning threads get far slower beside other work.
      tags: Bazel's tags.
      **kwargs: passed to sh_test.
    """
    native.sh_test(
        name = name,
        srcs = ["//tests:run_pytest.sh"],
        size = size,
        timeout = timeout,
        args = [PYTHON, "$(location //bindings:wheel)"] + ["$(location %s)" % src for src in srcs] + args,
        data = srcs + data + ["//bindings:wheel", "@python_headers//:requirements"],
        # vLLM takes all cores and much memory: such a test runs alone.
        tags = tags + ["exclusive"],
        **kwargs
    )
