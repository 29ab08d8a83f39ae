#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: ./test.sh [--slow] [Bazel target patterns, default //...]
# C++ tests run plain and under the address, undefined-behaviour and thread sanitizers, Python ones plain. What has
# not changed since its last success is not run again. The last line is `N passed, N failed`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1

plain_filter=()
patterns=()
for argument in "$@"; do
  case "$argument" in
    --slow) plain_filter=(--test_tag_filters=-manual) ;;
    -*) echo "test.sh: unknown option $argument; usage: ./test.sh [--slow] [//target/patterns...]" >&2; exit 2 ;;
    *) patterns+=("$argument") ;;
  esac
done
[[ ${#patterns[@]} -gt 0 ]] || patterns=(//...)

echo "[test] checking what is installed"
python="$(third_party/install.sh --tests)" || exit 1

events="$(mktemp -d)"
trap 'rm -rf "$events"' EXIT
runs=()

# run_tests NAME DESCRIPTION BAZEL_OPTIONS...
run_tests() {
  local name="$1" started=$SECONDS status=0
  echo "[test] $name: $2"
  shift 2
  bazel test --keep_going --ui_event_filters=-info --noshow_loading_progress --show_progress_rate_limit=5 \
    --show_result=0 --test_output=summary --test_summary=none --build_event_json_file="$events/$name.json" \
    "$@" -- "${patterns[@]}" || status=$?
  runs+=("$name=$status=$events/$name.json")
  echo "[test] $name: done in $((SECONDS - started)) s"
}

run_tests opt "building everything, then all tests" "${plain_filter[@]}"
for sanitizer in asan ubsan tsan; do
  run_tests "$sanitizer" "C++ tests under this sanitizer" --config="$sanitizer" --build_tests_only \
    --experimental_convenience_symlinks=ignore
done

"$python" tests/summary.py "${runs[@]}"
