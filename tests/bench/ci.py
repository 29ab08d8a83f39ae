"""The benchmark that CI runs: a small set, compared with a stored baseline; under five minutes.

    bazel build -c opt //tests/bench:attend_bench
    ~/.cache/hybridgen/venv-vllm0.32/bin/python tests/bench/ci.py --json result.json     # exit status 1: a regression
    ... tests/bench/ci.py --update                                                       # adds this run to the baseline

Compared are fractions of the read ceiling, ratios to exact attention and to the peers of the same run, never a time or
a rate: those move from machine to machine. Even fractions differ between kinds of CPU, so the baseline holds a set per CPU model and
thread count; and a virtual machine's read ceiling may double when its CPUs are moved, so a metric has one entry for each
ceiling that it was measured beside, and is judged by the entry of its own. A metric has regressed when three quarters of its samples are worse than three quarters of the
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

# Ceilings that differ by more than this factor are two.
_SAME_CEILING = 1.25

# attend_bench flags of each part of the set.
_KERNELS = [
    ["--dtypes=float32,float16,bfloat16", "--groups=4", "--page_tokens=128"],
    ["--dtypes=bfloat16", "--groups=1,8", "--page_tokens=128"],
    ["--dtypes=bfloat16", "--groups=4", "--page_tokens=16"],
    ["--dtypes=bfloat16", "--groups=4", "--page_tokens=16", "--formats=strided"],
    ["--dtypes=bfloat16", "--groups=4", "--kinds=stored,summary,digests"],
    ["--dtypes=bfloat16", "--groups=4", "--formats=int8"],
    ["--dtypes=float8_e4m3", "--groups=4"],
]
_PEER_CASES = "bfloat16:4,float16:4"


def machine_key(cpuinfo: str, threads: int) -> str:
    """What a baseline is valid for: the CPU's vendor, family, model and name, from /proc/cpuinfo, and the threads."""
    fields = dict(map(str.strip, line.split(":", 1)) for line in cpuinfo.split("\n\n")[0].splitlines() if ":" in line)
    names = ("vendor_id", "cpu family", "model", "model name")
    return " ".join(fields.get(name, "?") for name in names) + f", {threads} threads"


def kernel_metrics(report: dict) -> dict:
    """Metric -> spread with `seq1`, the ceiling in GB/s (None: machine not quiet), of attend_bench's JSON."""
    metrics = {}
    for case in report["cases"]:
        name = case["name"]
        metrics[f"of seq1: {name}"] = None
        if case["quiet"]:
            ceiling = {"seq1": case["seq1"]["median"] / 1e9}
            metrics[f"of seq1: {name}"] = sampling.spread(case["of_seq1_samples"]) | ceiling
            if "of_exact_samples" in case:
                metrics[f"over exact: {name}"] = sampling.spread(case["of_exact_samples"]) | ceiling
    return metrics


def peer_metrics(report: dict) -> dict:
    """The same, of compare_peers.py's JSON; only what vLLM would run instead."""
    metrics = {}
    for case in report["cases"]:
        for name in ("packed/vllm", "strided/vllm"):
            metrics[f"{name}: {case['case']}"] = (
                case["ratios"][name] | {"seq1": case["gb_per_second"]["seq1"]["median"]} if case["quiet"] else None
            )
    return metrics


def same_ceiling(entries: list[dict], seq1: float) -> dict | None:
    """The entry whose ceiling is nearest to this one, if that is the same ceiling."""

    def distance(entry: dict) -> float:
        return max(entry["seq1"] / seq1, seq1 / entry["seq1"])

    nearest = min(entries, key=distance, default=None)
    return nearest if nearest and distance(nearest) <= _SAME_CEILING else None


def judge(now: dict, baseline: dict) -> list[tuple[str, str, dict | None]]:
    """(metric, verdict, entry judged by); the verdict is ok, regression, better, not quiet or no baseline."""
    verdicts = []
    for name, spread in now.items():
        stored = same_ceiling(baseline.get(name, []), spread["seq1"]) if spread else None
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
        verdicts.append((name, verdict, stored))
    return verdicts


def merged(baseline: dict, now: dict) -> dict:
    """The baseline with a run added: quartiles widen to what both runs saw, the medians are the means of both."""
    result = {name: list(entries) for name, entries in baseline.items()}
    for name, spread in now.items():
        if spread is None:
            continue
        entries = result.setdefault(name, [])
        stored = same_ceiling(entries, spread["seq1"])
        if stored is None:
            entries.append({key: spread[key] for key in ("seq1", "low", "median", "high")})
            continue
        entries[entries.index(stored)] = {
            "seq1": (stored["seq1"] + spread["seq1"]) / 2,
            "low": min(stored["low"], spread["low"]),
            "median": (stored["median"] + spread["median"]) / 2,
            "high": max(stored["high"], spread["high"]),
        }
    return result


def table(now: dict, verdicts: list[tuple[str, str, dict | None]]) -> str:
    lines = [f"{'':70} {'min':>6} {'median':>6} {'max':>6} {'stored':>7} {'seq1':>5}"]
    for name, verdict, stored in verdicts:
        spread = now[name]
        numbers = " ".join(f"{spread[x]:6.2f}" for x in ("min", "median", "max")) if spread else " " * 20
        median = format(stored["median"], "7.2f") if stored else "      -"
        lines.append(f"{name:70} {numbers} {median} {format(spread['seq1'], '5.1f') if spread else '    -'}  {verdict}")
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
    print(table(now, verdicts))
    if arguments.json:
        report = {"machine": key, "metrics": now, "verdicts": {name: verdict for name, verdict, _ in verdicts}}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.update:
        machines[key] = merged(baseline, now)
        arguments.baseline.write_text(json.dumps(machines, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    regressions = [name for name, verdict, _ in verdicts if verdict == "regression"]
    quiet = sum(spread is not None for spread in now.values())
    print(f"{len(regressions)} regressions; {quiet} of {len(now)} metrics judged"
          + ("" if quiet else ": machine not quiet"))  # fmt: skip
    return 1 if regressions else 0


if __name__ == "__main__":
    sys.exit(main())
