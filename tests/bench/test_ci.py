"""ci.py's judgement and sampling.py's arithmetic, on made-up numbers."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import ci
import sampling


def spread(*values, seq1=30.0):
    return sampling.spread(values) | {"seq1": seq1}


def verdicts(now, baseline):
    return [(name, verdict) for name, verdict, _ in ci.judge(now, baseline)]


def test_spread():
    result = sampling.spread([5, 1, 2, 3, 4])
    assert result == {"min": 1, "low": 2, "median": 3, "high": 4, "max": 5, "clean": 5}
    assert sampling.spread([7])["low"] == sampling.spread([7])["high"] == 7


def test_busy_seconds_counts_stolen_time_and_no_waiting():
    text = "cpu  100 20 30 1000 500 4 6 40 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 5\n"
    assert sampling.busy_seconds(text, 100) == (2.0, 2)


def test_an_unchanged_run_passes():
    now = {"a": spread(0.80, 0.82, 0.84)}
    assert verdicts(now, ci.merged({}, now)) == [("a", "ok")]


@pytest.mark.parametrize(
    ("samples", "verdict"),
    [
        ((0.70, 0.72, 0.74), "regression"),
        ((0.70, 0.72, 0.90), "ok"),  # a quarter of the samples still reach the baseline
        ((0.77, 0.78, 0.79), "ok"),  # within what placement moves
        ((0.95, 0.96, 0.97), "better"),
    ],
)
def test_verdicts(samples, verdict):
    baseline = ci.merged({}, {"a": spread(0.80, 0.82, 0.84)})
    assert verdicts({"a": spread(*samples)}, baseline) == [("a", verdict)]


def test_noise_of_the_baseline_counts():
    noisy = ci.merged({}, {"a": spread(0.40, 0.82, 1.24)})
    assert verdicts({"a": spread(0.70, 0.72, 0.74)}, noisy) == [("a", "ok")]


def test_not_quiet_and_unknown_metrics_are_not_judged():
    baseline = ci.merged({}, {"a": spread(0.8)})
    assert verdicts({"a": None, "b": spread(0.1)}, baseline) == [("a", "not quiet"), ("b", "no baseline")]


def test_every_ceiling_has_its_own_entry():
    fast = ci.merged({}, {"a": spread(0.44, 0.45, 0.46, seq1=67.0)})
    both = ci.merged(fast, {"a": spread(0.76, 0.77, 0.78, seq1=37.0)})
    assert [entry["seq1"] for entry in both["a"]] == [67.0, 37.0]
    assert verdicts({"a": spread(0.60, seq1=38.0)}, both) == [("a", "regression")]
    assert verdicts({"a": spread(0.60, seq1=64.0)}, both) == [("a", "better")]
    assert verdicts({"a": spread(0.60, seq1=50.0)}, both) == [("a", "no baseline")]


def test_updates_widen_the_baseline_and_keep_what_was_not_measured():
    first = ci.merged({}, {"a": spread(0.8, 0.8, 0.8), "b": spread(0.5)})
    second = ci.merged(first, {"a": spread(0.6, 0.6, 0.6), "b": None})
    low, median, high = (pytest.approx(value) for value in (0.6, 0.7, 0.8))
    assert second["a"] == [{"seq1": 30.0, "low": low, "median": median, "high": high}]
    assert second["b"] == first["b"]


def test_metrics_of_reports():
    quiet = {"quiet": True, "seq1": {"median": 30e9}, "of_seq1_samples": [0.5, 0.6], "of_exact_samples": [1.5]}
    metrics = ci.kernel_metrics({"cases": [quiet | {"name": "x"}, {"name": "y", "quiet": False}]})
    assert metrics["of seq1: x"]["median"] == pytest.approx(0.55)
    assert metrics["over exact: x"]["median"] == 1.5
    assert metrics["over exact: x"]["seq1"] == metrics["of seq1: x"]["seq1"] == 30.0
    assert metrics["of seq1: y"] is None
    ratios = {name: sampling.spread([2.0]) for name in ("packed/vllm", "strided/vllm", "packed/sdpa")}
    rates = {"seq1": sampling.spread([30.0])}
    peers = {"case": "float16:4", "quiet": True, "ratios": ratios, "gb_per_second": rates}
    metrics = ci.peer_metrics({"cases": [peers, {"case": "z", "quiet": False}]})
    assert metrics["packed/vllm: float16:4"]["median"] == 2.0
    assert metrics["packed/vllm: float16:4"]["seq1"] == 30.0
    assert metrics["strided/vllm: z"] is None
    assert len(metrics) == 4


def test_machine_key():
    cpuinfo = "vendor_id : V\ncpu family : 25\nmodel : 17\nmodel name : M N\n\nprocessor : 1\nmodel : 9\n"
    assert ci.machine_key(cpuinfo, 2) == "V 25 17 M N, 2 threads"


@pytest.mark.parametrize(("now", "status"), [(0.8, 0), (0.5, 1), (None, 0)])
def test_exit_status(tmp_path, monkeypatch, capsys, now, status):
    baseline = tmp_path / "baseline.json"
    result = tmp_path / "result.json"
    arguments = ["ci.py", "--baseline", str(baseline), "--json", str(result)]
    monkeypatch.setattr(ci, "measure", lambda _: {"a": spread(0.8)})
    monkeypatch.setattr(sys, "argv", [*arguments, "--update"])
    assert ci.main() == 0
    monkeypatch.setattr(ci, "measure", lambda _: {"a": now and spread(now)})
    monkeypatch.setattr(sys, "argv", arguments)
    assert ci.main() == status
    printed = capsys.readouterr().out
    assert ("machine not quiet" in printed) == (now is None)
    assert json.loads(result.read_text())["verdicts"]["a"] == {0.8: "ok", 0.5: "regression", None: "not quiet"}[now]
