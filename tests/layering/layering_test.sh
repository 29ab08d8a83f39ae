#!/usr/bin/env bash
# The walls of the house, read from the sources: layering_test.sh ROOT-FILE. Bazel's visibility keeps targets apart; this
# keeps apart what no target declares, too: headers under /usr, torch, Python.
set -uo pipefail

cd "$(dirname "$(readlink -f "$1")")" || exit 1
failures=0

# refuse WHAT PATTERN FOLDER...: no include in the folders' C++ files matches the extended regular expression.
refuse() {
  local what="$1" pattern="$2" files found
  shift 2
  mapfile -t files < <(find "$@" -name '*.h' -o -name '*.cc' -o -name '*.cu')
  if [[ ${#files[@]} -eq 0 ]]; then
    echo "no C++ files under: $*"
    failures=$((failures + 1))
    return
  fi
  if found="$(grep -nE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($pattern)" "${files[@]}")"; then
    printf '%s:\n%s\n' "$what" "$found"
    failures=$((failures + 1))
  fi
}

refuse "kernels/ sees other parts" "(memory|scheduler|backend|bindings)/" kernels
refuse "memory/ sees other parts" "(kernels|scheduler|backend|bindings)/" memory
refuse "scheduler/ sees other parts" "(kernels|memory|backend|bindings)/" scheduler
refuse "backend/ sees bindings/" "bindings/" backend
refuse "torch or Python outside bindings/" "Python\.h|pybind11|torch/|ATen/|c10/" kernels memory scheduler backend tests
refuse "OpenMP is found at run time, never linked" "omp\.h" kernels memory scheduler backend bindings
exit "$((failures > 0))"
