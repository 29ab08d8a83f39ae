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

_ASK_PYTHON = """
import os, platform, sys, sysconfig
print(sysconfig.get_paths()["include"])
print(sysconfig.get_config_var("EXT_SUFFIX"))
print("cp%d%d" % sys.version_info[:2])
print("manylinux_%s_%s" % (platform.libc_ver()[1].replace(".", "_"), platform.machine()))
print(os.path.join(sys.prefix, "hybridgen-requirements"))
"""

def _host_python_impl(ctx):
    env = ctx.os.environ
    cache = env.get("XDG_CACHE_HOME") or env.get("HOME", "") + "/.cache"
    venv = env.get("HYBRIDGEN_VENV") or cache + "/hybridgen/venv-vllm0.32"
    python = venv + "/bin/python"
    if not ctx.path(python).exists:
        python = str(ctx.which("python3"))
    result = ctx.execute([python, "-c", _ASK_PYTHON])
    if result.return_code != 0:
        fail("asking %s for its headers failed: %s" % (python, result.stderr))
    include, suffix, tag, platform, stamp = result.stdout.strip().split("\n")
    if not ctx.path(include + "/Python.h").exists:
        fail("%s has no Python.h under %s; install its development headers" % (python, include))
    ctx.symlink(include, "include")
    if ctx.path(stamp).exists:
        ctx.symlink(stamp, "requirements")
    else:
        ctx.file("requirements", "")
    ctx.file("BUILD.bazel", """
cc_library(
    name = "headers",
    hdrs = glob(["include/**/*.h"]),
    includes = ["include"],
    visibility = ["//visibility:public"],
)

# Changes when third_party/install.sh changed the environment, so that tests in it run again.
exports_files(["requirements"])
""")
    ctx.file("python.bzl", "\n".join([
        "PYTHON = %r" % python,
        "PYTHON_TAG = %r" % tag,
        "PLATFORM_TAG = %r" % platform,
        "EXT_SUFFIX = %r" % suffix,
        "",
    ]))

host_python = repository_rule(
    implementation = _host_python_impl,
    environ = ["HOME", "HYBRIDGEN_VENV", "PATH", "XDG_CACHE_HOME"],
    local = True,
)

def _numa_guests_impl(ctx):
    env = ctx.os.environ
    cache = env.get("XDG_CACHE_HOME") or env.get("HOME", "") + "/.cache"
    guests = env.get("HYBRIDGEN_GUESTS") or cache + "/hybridgen/guests"
    packages = guests + "/packages.txt"
    if ctx.path(packages).exists:
        ctx.symlink(packages, "packages")
    else:
        ctx.file("packages", "")
    ctx.file("BUILD.bazel", """
# Changes when third_party/install_guests.sh fetched something, so that the guests run again.
exports_files(["packages"])
""")
    ctx.file("guests.bzl", "GUESTS = %r\n" % guests)

numa_guests = repository_rule(
    implementation = _numa_guests_impl,
    environ = ["HOME", "HYBRIDGEN_GUESTS", "XDG_CACHE_HOME"],
    local = True,
)

def _system_cuda_impl(ctx):
    nvcc = ctx.which("nvcc") or ctx.path("/usr/local/cuda/bin/nvcc")
    present = nvcc.exists
    build = ""
    if present:
        ctx.symlink(nvcc.dirname.dirname.get_child("include"), "include")
        build = """
# The CUDA runtime's headers, for sources that the C++ compiler takes.
cc_library(
    name = "runtime_headers",
    hdrs = glob(["include/**"]),
    includes = ["include"],
    visibility = ["//visibility:public"],
)
"""
    ctx.file("BUILD.bazel", build)
    ctx.file("cuda.bzl", "\n".join([
        "CUDA_PRESENT = %s" % present,
        "NVCC = %r" % (str(nvcc) if present else ""),
        "CUDA_ROOT = %r" % (str(nvcc.dirname.dirname) if present else ""),
        "",
    ]))

system_cuda = repository_rule(
    implementation = _system_cuda_impl,
    environ = ["PATH"],
    local = True,
)
