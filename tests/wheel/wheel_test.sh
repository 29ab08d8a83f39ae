#!/usr/bin/env bash
# Installs the wheel into a fresh environment that holds a vLLM, as a user would, and tests it there, away from the
# source tree: wheel_test.sh PYTHON WHEEL TEST.py
set -euo pipefail

python="$1"
wheel="$(readlink -f "$2")"
test="$(readlink -f "$3")"
venv="$TEST_TMPDIR/venv"

"$python" -m venv --without-pip "$venv"
# The fresh environment's vLLM is the one of third_party/install.sh, seen through a path file: another copy takes 6 GB.
"$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
  >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/vllm.pth"

cd "$TEST_TMPDIR"
export HOME="$TEST_TMPDIR" XDG_CACHE_HOME="$TEST_TMPDIR/cache" VLLM_NO_USAGE_STATS=1 PYTHONDONTWRITEBYTECODE=1
"$(dirname "$python")/uv" pip install --quiet --offline --no-deps --python "$venv/bin/python" "$wheel"
exec "$venv/bin/python" -m pytest -p no:cacheprovider -rs --rootdir "$TEST_TMPDIR" --junitxml="$XML_OUTPUT_FILE" "$test"
