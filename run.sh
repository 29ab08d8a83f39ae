#!/usr/bin/env bash
# Installs what is missing, builds the wheel, and shows HybridGen at work in real vLLM.
# ./run.sh [options of `hybridgen demo`]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

echo "[run] checking what is installed"
python="$(third_party/install.sh)"

echo "[run] building the wheel (minutes the first time, seconds later)"
bazel build --ui_event_filters=-info --noshow_loading_progress --show_progress_rate_limit=5 --show_result=0 \
  //bindings:wheel

# Installed into a folder of the project, so that the environment stays as third_party/install.sh made it.
tag="$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')"
wheel="$(ls -t "$(bazel info bazel-bin 2>/dev/null)"/bindings/hybridgen-*-"$tag"-*.whl | head -n 1)"
if ! cmp -s "$wheel" build/installed.whl; then
  echo "[run] installing $(basename "$wheel") into build/site"
  rm -rf build/site
  mkdir -p build
  "$(dirname "$python")/uv" pip install --quiet --no-deps --python "$python" --target build/site "$wheel"
  cp -f "$wheel" build/installed.whl
fi

export PYTHONPATH="$PWD/build/site"
exec "$python" -m hybridgen.cli demo "$@"
