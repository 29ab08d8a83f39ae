"""tests/bench/layer_call.py runs, and refuses to time a wrong result."""

import json
import pathlib
import sys

import pytest


@pytest.fixture
def layer_call(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[1] / "bench"))
    import layer_call

    return layer_call


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reports_both_calls(layer_call, tmp_path, monkeypatch, dtype):
    result = tmp_path / "result.json"
    arguments = ["--calls", "5", "--samples", "3", "--dtype", dtype, "--json", str(result)]
    monkeypatch.setattr(sys, "argv", ["layer_call.py", *arguments])
    layer_call.main()
    report = json.loads(result.read_text())
    assert 0 < report["module"]["least_us"] <= report["module"]["median_us"]
    assert 0 < report["impl"]["least_us"] <= report["impl"]["median_us"]


def test_a_wrong_result_is_not_timed(layer_call, monkeypatch):
    monkeypatch.setattr(layer_call, "_TOLERANCE", {"float32": 0.0})
    monkeypatch.setattr(sys, "argv", ["layer_call.py", "--calls", "1", "--samples", "1"])
    with pytest.raises(SystemExit, match="wrong result"):
        layer_call.main()
