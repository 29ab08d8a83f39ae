"""Repository rules that expose what the distribution installed under /usr to Bazel."""

def _system_library_impl(ctx):
    include = ctx.path("/usr/include")
    for root in ctx.attr.header_roots:
        source = include.get_child(root)
        if not source.exists:
            fail("%s: /usr/include/%s is missing; run third_party/install.sh" % (ctx.name, root))
        ctx.symlink(source, "include/" + root)
    ctx.symlink(ctx.attr.build_file, "BUILD.bazel")

system_library = repository_rule(
    implementation = _system_library_impl,
    attrs = {
        "header_roots": attr.string_list(mandatory = True),
        "build_file": attr.label(mandatory = True, allow_single_file = True),
    },
    local = True,
)

def _host_python_impl(ctx):
    python = ctx.os.environ.get("HYBRIDGEN_PYTHON") or str(ctx.which("python3"))
    query = "import sysconfig as s; print(s.get_paths()['include']); print(s.get_config_var('EXT_SUFFIX')); " + \
            "import sys; print('cp%d%d' % sys.version_info[:2])"
    result = ctx.execute([python, "-c", query])
    if result.return_code != 0:
        fail("asking %s for its headers failed: %s" % (python, result.stderr))
    include, suffix, tag = result.stdout.strip().split("\n")
    if not ctx.path(include + "/Python.h").exists:
        fail("%s has no Python.h under %s; install its development headers" % (python, include))
    ctx.symlink(include, "include")
    ctx.file("BUILD.bazel", """
cc_library(
    name = "headers",
    hdrs = glob(["include/**/*.h"]),
    includes = ["include"],
    visibility = ["//visibility:public"],
)
""")
    ctx.file("python.bzl", "EXT_SUFFIX = %r\nPYTHON_TAG = %r\nPYTHON = %r\n" % (suffix, tag, python))

host_python = repository_rule(
    implementation = _host_python_impl,
    environ = ["HYBRIDGEN_PYTHON", "PATH"],
    local = True,
)

def _system_cuda_impl(ctx):
    nvcc = ctx.which("nvcc") or ctx.path("/usr/local/cuda/bin/nvcc")
    present = nvcc.exists
    ctx.file("BUILD.bazel", "")
    ctx.file("cuda.bzl", "CUDA_PRESENT = %s\nNVCC = %r\n" % (present, str(nvcc) if present else ""))

system_cuda = repository_rule(
    implementation = _system_cuda_impl,
    environ = ["PATH"],
    local = True,
)
