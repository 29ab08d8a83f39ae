"""The wheel: package, native module, library and the shared libraries that they need, in one file for pip."""

load("@python_headers//:python.bzl", "EXT_SUFFIX", "PLATFORM_TAG", "PYTHON", "PYTHON_TAG")

HYBRIDGEN_VERSION = "0.1.0"

def hybridgen_wheel(name, module, library, sources, **kwargs):
    """Builds hybridgen-VERSION-PYTHON-PYTHON-PLATFORM.whl.

    Args:
      name: name of the target.
      module: the native module, imported as hybridgen._core.
      library: libhybridgen.so.
      sources: filegroup of the package's files below bindings/hybridgen/.
      **kwargs: passed to genrule.
    """
    native.genrule(
        name = name,
        srcs = [module, library, sources, "//:LICENSE", "//:README.md"],
        outs = ["hybridgen-%s-%s-%s-%s.whl" % (HYBRIDGEN_VERSION, PYTHON_TAG, PYTHON_TAG, PLATFORM_TAG)],
        tools = ["make_wheel.py"],
        cmd = " ".join([
            PYTHON,
            "$(location make_wheel.py)",
            "--output $@",
            "--module $(location %s) --module-suffix %s" % (module, EXT_SUFFIX),
            "--library $(location %s)" % library,
            "--license $(location //:LICENSE) --readme $(location //:README.md)",
            "$(locations %s)" % sources,
        ]),
        message = "Packing the wheel",
        **kwargs
    )
