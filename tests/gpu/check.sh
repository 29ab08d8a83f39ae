#!/usr/bin/env bash
# Checks and measures the CUDA kernels on this machine's GPU, with nvcc alone: no Bazel, no network.
#   tests/gpu/check.sh [OUT_DIRECTORY]   default: ./gpu_check
# Writes gpu_check.json and gpu_check.md there. Exit status: 0 all right, 1 a wrong answer, 77 no CUDA device,
# 78 no nvcc. HYBRIDGEN_GPU_ARCH (such as 90) limits the build to one architecture.
set -euo pipefail

root="$(cd "$(dirname "$0")/../.." && pwd)"
out="${1:-gpu_check}"
nvcc="$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)"
if [[ ! -x "$nvcc" ]]; then
  echo "check.sh: no nvcc; install the CUDA toolkit or put nvcc into PATH" >&2
  exit 78
fi
mkdir -p "$out"
if [[ -n "${HYBRIDGEN_GPU_ARCH:-}" ]]; then
  architectures="-gencode=arch=compute_$HYBRIDGEN_GPU_ARCH,code=sm_$HYBRIDGEN_GPU_ARCH"
else
  architectures="-arch=native"
  if ! command -v nvidia-smi >/dev/null; then architectures="-gencode=arch=compute_90,code=sm_90"; fi
fi

sources=("$root"/tests/gpu/check.cu "$root"/kernels/cuda/*.cu "$root"/kernels/cuda/*_checks.cc)
objects=()
for source in "${sources[@]}"; do
  object="$out/$(basename "$source").o"
  objects+=("$object")
  # Plain headers are all that a kernel includes, so a newer header means a full build.
  newest="$(find "$root/kernels" "$source" -name '*.h' -newer "$object" -o -name '*.cu*' -newer "$object" 2>/dev/null |
    head -n 1 || true)"
  if [[ -e "$object" && -z "$newest" ]]; then continue; fi
  echo "compiling $(basename "$source")"
  "$nvcc" -std=c++17 -O3 --expt-relaxed-constexpr -Werror=all-warnings -x cu "$architectures" -I "$root" -c "$source" \
    -o "$object"
done
"$nvcc" "$architectures" -cudart static "${objects[@]}" -o "$out/check"

status=0
"$out/check" "$out/gpu_check.json" | tee "$out/gpu_check.md" || status=${PIPESTATUS[0]}
if [[ $status -ne 0 ]]; then exit "$status"; fi

if sanitizer="$(command -v compute-sanitizer)"; then
  "$sanitizer" --error-exitcode 1 "$out/check" --correctness | tail -n 5 | tee -a "$out/gpu_check.md"
else
  echo "compute-sanitizer is not installed: left out" | tee -a "$out/gpu_check.md"
fi
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  python3 "$root/tests/gpu/sdpa.py" | tee -a "$out/gpu_check.md"
else
  echo "torch with CUDA is not installed: its SDPA is left out" | tee -a "$out/gpu_check.md"
fi
