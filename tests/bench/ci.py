"""The benchmark that CI runs: a small set, compared with a stored baseline; under five minutes.

    bazel build -c opt //tests/bench:attend_bench
    ~/.cache/hybridgen/venv-vllm0.32/bin/python tests/bench/ci.py --json result.json     # exit status 1: a regression
    ... tests/bench/ci.py --update                                                       # adds this run to the baseline

Compared are fractions of the read ceiling and ratios to the peers of the same run, never a time or a rate: those move
from machine to machine. Even fractions differ between kinds of CPU, so the baseline holds a set per CPU model and
thread count. A metric has regressed when three quarters of its samples are worse than three quarters of the
baseline's, by more than what memory placement alone moves from run to run. `machine not quiet` is no failure: nothing
is judged.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import sampling

_HERE = pathlib.Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]

# Where the physical pages of a run happen to lie moves a fraction by this much, within a run's samples alike.
_PLACEMENT = 0.05

# attend_bench flags of each part of the set.
_KERNELS = [
    ["--dtypes=float32,float16,bfloat16", "--groups=4", "--page_tokens=128"],
    ["--dtypes=bfloat16", "--groups=1,8", "--page_tokens=128"],
    ["--dtypes=bfloat16", "--groups=4", "--page_tokens=16"],
    ["--dtypes=bfloat16", "--groups=4", "--page_tokens=16", "--formats=strided"],
]
_PEER_CASES = "bfloat16:4,float16:4"


def machine_key(cpuinfo: str, threads: int) -> str:
    """What a baseline is valid for: the CPU's vendor, family, model and name, from /proc/cpuinfo, and the threads."""
    fields = dict(map(str.strip, line.split(":", 1)) for line in cpuinfo.split("\n\n")[0].splitlines() if ":" in line)
    names = ("vendor_id", "cpu family", "model", "model name")
    return " ".join(fields.get(name, "?") for name in names) + f", {threads} threads"


def kernel_metrics(report: dict) -> dict:
    """Metric -> spread (None: machine not quiet), of attend_bench's JSON."""
    return {
        f"of seq1: {case['name']}": sampling.spread(case["of_seq1_samples"]) if case["quiet"] else None
        for case in report["cases"]
    }


def peer_metrics(report: dict) -> dict:
    """Metric -> spread (None: machine not quiet), of compare_peers.py's JSON; only what vLLM would run instead."""
    metrics = {}
    for case in report["cases"]:
        for name in ("packed/vllm", "strided/vllm"):
            metrics[f"{name}: {case['case']}"] = case["ratios"][name] if case["quiet"] else None
    return metrics


def judge(now: dict, baseline: dict) -> list[tuple[str, str]]:
    """(metric, verdict) for every metric; the verdict is ok, regression, better, not quiet or no baseline."""
    verdicts = []
    for name, spread in now.items():
        stored = baseline.get(name)
        if spread is None:
            verdict = "not quiet"
        elif stored is None:
            verdict = "no baseline"
        elif spread["high"] < stored["low"] * (1 - _PLACEMENT):
            verdict = "regression"
        elif spread["low"] > stored["high"] * (1 + _PLACEMENT):
            verdict = "better"
        else:
            verdict = "ok"
        verdicts.append((name, verdict))
    return verdicts


def merged(baseline: dict, now: dict) -> dict:
    """The baseline with a run added: quartiles widen to what both runs saw, the median is the mean of both."""
    result = dict(baseline)
    for name, spread in now.items():
        if spread is None:
            continue
        stored = result.get(name, spread)
        result[name] = {
            "low": min(stored["low"], spread["low"]),
            "median": (stored["median"] + spread["median"]) / 2,
            "high": max(stored["high"], spread["high"]),
        }
    return result


def table(now: dict, baseline: dict, verdicts: list[tuple[str, str]]) -> str:
    lines = [f"{'':64} {'min':>6} {'median':>6} {'max':>6} {'stored':>7}"]
    for name, verdict in verdicts:
        spread, stored = now[name], baseline.get(name)
        numbers = " ".join(f"{spread[x]:6.2f}" for x in ("min", "median", "max")) if spread else " " * 20
        lines.append(f"{name:64} {numbers} {format(stored['median'], '7.2f') if stored else '      -'}  {verdict}")
    return "\n".join(lines)


def measure(arguments) -> dict:
    """All metrics of the set."""
    metrics = {}
    limits = ["--max_foreign=1"] if arguments.disturbed else []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "report.json")
        for flags in _KERNELS:
            subprocess.run(
                [arguments.binary, *flags, *limits, f"--threads={arguments.threads}", f"--gib={arguments.gib}",
                 f"--sample_ms={arguments.sample_ms}", f"--case_seconds={arguments.case_seconds}", f"--json={path}"],
                check=True,
            )  # fmt: skip
            metrics |= kernel_metrics(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
        if not arguments.no_peers:
            subprocess.run(
                [sys.executable, str(_HERE / "compare_peers.py"), "--binary", arguments.binary, "--cases", _PEER_CASES,
                 "--threads", str(arguments.threads), "--gib", str(arguments.gib), "--json", path,
                 "--case-seconds", str(2 * arguments.case_seconds), *(["--disturbed"] if arguments.disturbed else [])],
                check=True,
            )  # fmt: skip
            metrics |= peer_metrics(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
    return metrics


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--binary", default=str(_ROOT / "bazel-bin/tests/bench/attend_bench"))
    parser.add_argument("--baseline", type=pathlib.Path, default=_HERE / "baseline.json")
    parser.add_argument("--json", type=pathlib.Path, help="also write the metrics and verdicts to this file")
    parser.add_argument("--update", action="store_true", help="add this run to the baseline instead of judging it")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--sample-ms", type=float, default=20)
    parser.add_argument("--case-seconds", type=float, default=15, help="a case gives up after this time")
    parser.add_argument("--no-peers", action="store_true", help="fractions of the ceiling only, without vLLM and torch")
    parser.add_argument("--disturbed", action="store_true", help="accept other processes on the other CPUs")
    arguments = parser.parse_args()

    now = measure(arguments)
    key = machine_key(pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8"), arguments.threads)
    machines = json.loads(arguments.baseline.read_text(encoding="utf-8")) if arguments.baseline.exists() else {}
    baseline = machines.get(key, {})
    verdicts = judge(now, baseline)
    print(f"\n{key}" + ("" if baseline else ": no baseline for this CPU; --update makes one"))
    print(table(now, baseline, verdicts))
    if arguments.json:
        report = {"machine": key, "metrics": now, "verdicts": dict(verdicts)}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.update:
        machines[key] = merged(baseline, now)
        arguments.baseline.write_text(json.dumps(machines, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    regressions = [name for name, verdict in verdicts if verdict == "regression"]
    quiet = sum(spread is not None for spread in now.values())
    print(f"{len(regressions)} regressions; {quiet} of {len(now)} metrics judged"
          + ("" if quiet else ": machine not quiet"))  # fmt: skip
    return 1 if regressions else 0


if __name__ == "__main__":
    sys.exit(main())
