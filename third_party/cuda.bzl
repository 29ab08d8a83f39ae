"""CUDA sources compiled by nvcc, where it is installed; nowhere else does anything of this exist."""

load("@cuda//:cuda.bzl", "CUDA_PRESENT", "CUDA_ROOT", "NVCC")

# Machine code for these, and PTX of the last for what comes after.
CUDA_ARCHITECTURES = ["80", "90", "100", "120"]

_FLAGS = [
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",  # constexpr functions of the plain headers are called on the device
    "-Werror=all-warnings",
    "-Xptxas=-v",
    "-Xcompiler=-fPIC,-Wall,-Wextra,-Werror,-Wno-unused-parameter",
]

def _gencode():
    flags = ["-gencode=arch=compute_%s,code=sm_%s" % (a, a) for a in CUDA_ARCHITECTURES]
    newest = CUDA_ARCHITECTURES[-1]
    return flags + ["-gencode=arch=compute_%s,code=compute_%s" % (newest, newest)]

def _cuda_objects_impl(ctx):
    headers = depset(transitive = [dep[CcInfo].compilation_context.headers for dep in ctx.attr.deps])
    objects, logs = [], []
    for source in ctx.files.srcs:
        stem = source.basename[:-len(".cu")]
        object = ctx.actions.declare_file("%s/%s.pic.o" % (ctx.label.name, stem))
        log = ctx.actions.declare_file("%s/%s.ptxas.txt" % (ctx.label.name, stem))
        ctx.actions.run_shell(
            outputs = [object, log],
            inputs = depset([source], transitive = [headers, depset(ctx.files.hdrs)]),
            # ptxas reports to standard error, as errors do.
            command = '"$1" "${@:4}" -c -o "$2" 2>"$3" || { cat "$3" >&2; exit 1; }',
            arguments = [NVCC, object.path, log.path] + _FLAGS + _gencode() + ["-I.", source.path],
            mnemonic = "Nvcc",
            progress_message = "Compiling %s for sm_%s" % (source.short_path, ", ".join(CUDA_ARCHITECTURES)),
            use_default_shell_env = True,
        )
        objects.append(object)
        logs.append(log)
    return [
        DefaultInfo(files = depset(objects)),
        OutputGroupInfo(ptxas = depset(logs)),
    ]

_cuda_objects = rule(
    implementation = _cuda_objects_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu"]),
        "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
        "deps": attr.label_list(providers = [CcInfo]),
    },
)

# What nvcc makes is the same under every configuration, and takes minutes: it is made in the one for tools, once.
def _built_once_impl(ctx):
    made = ctx.attr.objects
    return [made[DefaultInfo], made[OutputGroupInfo]]

_built_once = rule(
    implementation = _built_once_impl,
    attrs = {"objects": attr.label(cfg = "exec")},
)

def cuda_library(name, srcs, hdrs = [], deps = [], **kwargs):
    """A cc_library of .cu files; NAME_ptxas are the reports of ptxas on every kernel and architecture.

    Declares nothing where nvcc is missing: a target that depends on it stands under `if CUDA_PRESENT` too.

    Args:
      name: of the cc_library.
      srcs: .cu files.
      hdrs: headers that the sources include and that no dep has.
      deps: cc_library targets whose headers the sources include.
      **kwargs: of the cc_library.
    """
    if not CUDA_PRESENT:
        return
    testonly = kwargs.get("testonly", False)
    _cuda_objects(name = name + "_nvcc", srcs = srcs, hdrs = hdrs, deps = deps, testonly = testonly)
    _built_once(name = name + "_objects", objects = name + "_nvcc", testonly = testonly)
    native.filegroup(name = name + "_ptxas", srcs = [name + "_objects"], output_group = "ptxas", testonly = testonly)
    native.cc_library(
        name = name,
        srcs = [name + "_objects"],
        linkstatic = 1,  # a binary has one copy of the static runtime, and with it one state
        linkopts = ["-L%s/lib64" % CUDA_ROOT, "-lcudart_static", "-ldl", "-lrt", "-lpthread"],
        deps = deps,
        **kwargs
    )
