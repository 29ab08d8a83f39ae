"""Compiler flags of the project, in one place."""

# -Wno-sign-compare is not set on purpose: counts are int64_t or size_t and a mix is a defect.
HG_COPTS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-parameter",  # interfaces have parameters that some implementations ignore
]

_AVX512_COPTS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512"]

# Flags of one ISA level. They go only on the .cc files of kernels/cpu that are compiled per ISA; the
# choice between them is made at run time, so no flag of the build machine leaks into the library.
HG_ISA_COPTS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": _AVX512_COPTS,
    "avx512_bf16": _AVX512_COPTS + ["-mavx512bf16"],
    "avx512_vnni": _AVX512_COPTS + ["-mavx512vnni"],
    "amx_bf16": _AVX512_COPTS + ["-mavx512bf16"],  # matrix tiles are used by assembly, which takes no flag
}
