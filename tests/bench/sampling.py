"""Samples on a machine that may not be quiet: statistics, and what disturbed a sample. Standard library only."""

import json
import os
import statistics
import time

LIMIT = 0.02  # share of time that others may have taken in a clean sample
FEWEST = 5  # clean samples below which nothing is judged

_PROBE_SECONDS = 0.0005
_GAP_SECONDS = 2e-5  # two readings of the clock further apart were interrupted


def spread(values) -> dict:
    """Least, quartiles and greatest of at least one value."""
    values = sorted(values)
    if len(values) == 1:
        low = median = high = values[0]
    else:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"min": values[0], "low": low, "median": median, "high": high, "max": values[-1], "clean": len(values)}


def busy_seconds(proc_stat: str, ticks_per_second: int) -> tuple[float, int]:
    """Processor time of all CPUs, stolen time included, and their number, from the text of /proc/stat."""
    busy, cpus = 0.0, 0
    for line in proc_stat.splitlines():
        name, *fields = line.split()
        if name == "cpu":
            user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
            busy = (user + nice + system + irq + softirq + steal) / ticks_per_second
        elif name.startswith("cpu"):
            cpus += 1
    return busy, cpus


def _read_busy() -> tuple[float, int]:
    with open("/proc/stat", encoding="ascii") as file:
        return busy_seconds(file.read(), os.sysconf("SC_CLK_TCK"))


def _gap_share() -> float:
    """Share of a short busy loop that this thread did not run."""
    begin = last = time.perf_counter()
    lost = 0.0
    while last < begin + _PROBE_SECONDS:
        now = time.perf_counter()
        if now - last > _GAP_SECONDS:
            lost += now - last
        last = now
    return lost / (last - begin)


class Quiet:
    """`with Quiet() as quiet: ...`, then `quiet.clean()`: whether nobody else ran beside the body."""

    def __enter__(self):
        self._gaps = _gap_share()
        self._busy, _ = _read_busy()
        self._own = time.process_time()
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_):
        wall = time.perf_counter() - self._begin
        own = time.process_time() - self._own
        busy, cpus = _read_busy()
        # The system counts in ticks: one of them is granted.
        foreign = busy - self._busy - own - 1 / os.sysconf("SC_CLK_TCK")
        self.foreign = max(0.0, foreign / (wall * cpus))
        self.lost = max(self._gaps, _gap_share())

    def clean(self, limit: float = LIMIT) -> bool:
        return self.foreign <= limit and self.lost <= limit


def write_results(arguments, cases: list[dict]) -> None:
    """The cases with what they were asked for, to the file that `--json` named, if it did."""
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"arguments": vars(arguments), "cases": cases}, file, indent=1)
