#!/usr/bin/env bash
# Runs pytest as a Bazel test: run_pytest.sh PYTHON WHEEL PYTEST_ARGUMENTS...
set -euo pipefail

python="$1"
wheel="$2"
shift 2

# An unpacked wheel on PYTHONPATH is an installed one: package, libraries and entry points.
site="$TEST_TMPDIR/site"
"$python" -m zipfile -e "$wheel" "$site"
export PYTHONPATH="$site:$PWD"
export PYTHONDONTWRITEBYTECODE=1
# Everything that vLLM and its libraries write stays in the test's own folder, and nothing asks the network.
export HOME="$TEST_TMPDIR" XDG_CACHE_HOME="$TEST_TMPDIR/cache"
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
# Also holds vLLM's own tests, fetched by third_party/install.sh --tests: $HYBRIDGEN_VENV/vllm-tests/tests.
HYBRIDGEN_VENV="$(dirname "$(dirname "$python")")"
export HYBRIDGEN_VENV

exec "$python" -m pytest -p no:cacheprovider -rs --junitxml="$XML_OUTPUT_FILE" "$@"
