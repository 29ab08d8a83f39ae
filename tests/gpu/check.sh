#!/usr/bin/env bash
# Checks and measures the CUDA kernels on this machine's GPU, with nvcc alone: no Bazel, no network. Python with torch
# and compute-sanitizer are used where they are.
#   tests/gpu/check.sh [OUT_DIRECTORY]   default: ./gpu_check
# Writes gpu_check.json and gpu_check.md there. Exit status: 0 all right, 1 a wrong answer or a failed build, 77 no CUDA
# device, 78 no nvcc. HYBRIDGEN_GPU_ARCH (such as 90, or "80 90 100 120") names the architectures to build for.
set -euo pipefail

root="$(cd "$(dirname "$0")/../.." && pwd)"
out="${1:-gpu_check}"
nvcc="$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)"
if [[ ! -x "$nvcc" ]]; then
  echo "check.sh: no nvcc; install the CUDA toolkit or put nvcc into PATH" >&2
  exit 78
fi

# ---- Build. Objects are kept by architecture; those older than their source or than any header are compiled again. ----
built_for="${HYBRIDGEN_GPU_ARCH:-native}"
folder="$out/objects_${built_for// /_}"
mkdir -p "$folder"
architectures=()
if [[ -n "${HYBRIDGEN_GPU_ARCH:-}" ]]; then
  for arch in $HYBRIDGEN_GPU_ARCH; do architectures+=("-gencode=arch=compute_$arch,code=sm_$arch"); done
elif command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  architectures=("-arch=native")
else
  architectures=("-gencode=arch=compute_90,code=sm_90")
fi
common=(-std=c++17 -I "$root" -Werror=all-warnings)
warnings="-Wall,-Wextra,-Werror,-Wno-unused-parameter"
avx512="-mavx512f,-mavx512bw,-mavx512dq,-mavx512vl,-mavx2,-mfma,-mf16c,-mprefer-vector-width=512"
objects=()

# compile SOURCE FLAGS...
compile() {
  local source="$root/$1" object="$folder/${1//\//_}.o"
  shift
  objects+=("$object")
  if [[ -e "$object" && -z "$(find "$root/kernels" "$root/tests/gpu" "$root/tests/bench" -newer "$object" \
      \( -name '*.h' -o -name '*.cuh' -o -path "$source" \) -print -quit)" ]]; then
    return
  fi
  echo "compiling ${source#"$root/"}"
  "$nvcc" "${common[@]}" "$@" -c "$source" -o "$object"
}

for source in "$root"/kernels/cuda/{attend_*,joint,launch}.cu "$root"/tests/gpu/*.cu; do
  compile "${source#"$root/"}" -O3 --expt-relaxed-constexpr "${architectures[@]}" "-Xcompiler=$warnings"
done
for source in kernels/cuda/{launch,joint_launch}_checks.cc kernels/{attention,cpu_features,float8,int8_page,page_copy}.cc \
    kernels/cpu/tiles_usable.cc tests/gpu/{report,host_part}.cc; do
  compile "$source" -O2 "-Xcompiler=$warnings"
done
compile tests/bench/read_ceiling.cc -O2 "-Xcompiler=$warnings,-Wno-psabi"
# One definition per ISA, with the flags of third_party/copts.bzl.
isa_warnings="$warnings,-Wno-uninitialized,-Wno-maybe-uninitialized"
compile kernels/cpu/kernels_portable.cc -O2 "-Xcompiler=$isa_warnings"
compile kernels/cpu/kernels_avx2.cc -O2 "-Xcompiler=$isa_warnings,-mavx2,-mfma,-mf16c"
compile kernels/cpu/kernels_avx512.cc -O2 "-Xcompiler=$isa_warnings,$avx512"
compile kernels/cpu/kernels_avx512_bf16.cc -O2 "-Xcompiler=$isa_warnings,$avx512,-mavx512bf16"
compile kernels/cpu/kernels_amx_bf16.cc -O2 "-Xcompiler=$isa_warnings,$avx512,-mavx512bf16"
"$nvcc" "${architectures[@]}" -cudart static "${objects[@]}" -o "$out/check" -lpthread

# ---- Few cases first: they say whether there is a device, and under the sanitizer that the rest may be trusted. ----
status=0
"$out/check" --few || status=$?
if [[ $status -ne 0 ]]; then exit "$status"; fi
arguments=()
if sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)"; then
  for tool in memcheck racecheck synccheck; do
    echo "compute-sanitizer, $tool"
    if ! "$sanitizer" --tool "$tool" --error-exitcode 1 "$out/check" --few >"$out/$tool.txt" 2>&1; then
      tail -n 40 "$out/$tool.txt" >&2
      echo "check.sh: $tool found errors: $out/$tool.txt" >&2
      exit 1
    fi
    arguments+=("--fact=$tool=no errors in few cases")
  done
else
  arguments+=("--fact=compute-sanitizer=not installed, left out")
fi
if torch="$(python3 -c 'import torch; assert torch.cuda.is_available(); print(torch.__version__)' 2>/dev/null)"; then
  python3 "$root/tests/gpu/sdpa.py" >"$out/sdpa.txt"
  arguments+=("--fact=torch=$torch" "--sdpa=$out/sdpa.txt")
else
  arguments+=("--fact=torch=not installed with CUDA, its SDPA is left out")
fi
if command -v nvidia-smi >/dev/null; then
  arguments+=("--fact=driver and clocks=$(nvidia-smi -i 0 --format=csv,noheader \
    --query-gpu=driver_version,clocks.sm,clocks.mem,power.limit,pcie.link.gen.current,pcie.link.width.current |
    tr '\n' ' ')(driver, clocks of multiprocessors and memory, power limit, PCIe generation and lanes; idle)")
fi

"$out/check" "${arguments[@]}" "$out"
