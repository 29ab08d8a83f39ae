#!/usr/bin/env python3
"""Counts test cases over several Bazel runs: summary.py NAME=EXIT_CODE=EVENTS.json...

Reads the build event files that `bazel test --build_event_json_file` wrote, and each test's test.xml, cached or not.
Prints the log of each failed test, skips with their reasons, failures by name, a line per run, and last
`N passed, N failed`.
"""
import collections
import json
import os
import sys
import urllib.parse
import xml.etree.ElementTree

# Of a failed test's log; the whole log's path is printed too.
_LOG_LINES = 200

# Exit codes of Bazel that the test results themselves explain: success, some test failed, no test matched.
_EXPLAINED = (0, 3, 4)


def test_results(events_path):
    """Yields (label, status, path of test.xml or "", path of test.log or "") of a run's tests."""
    with open(events_path) as events:
        for line in events:
            event = json.loads(line)
            if "testResult" not in event:
                continue
            result = event["testResult"]
            paths = {}
            for output in result.get("testActionOutput", []):
                path = urllib.parse.unquote(urllib.parse.urlparse(output.get("uri", "")).path)
                paths[output["name"]] = path if os.path.isfile(path) else ""
            yield event["id"]["testResult"]["label"], result["status"], paths.get("test.xml"), paths.get("test.log")


def print_log(name, label, path):
    """Prints the end of a failed test's log."""
    if not path:
        return
    with open(path, errors="replace") as log:
        lines = log.readlines()
    print(f"======== log of {label} ({name}): {path}")
    sys.stdout.writelines(lines[-_LOG_LINES:])
    print("\n========")


def test_cases(path):
    """Yields (name, outcome, reason) of a test.xml; outcome is passed, failed or skipped."""
    for case in xml.etree.ElementTree.parse(path).getroot().iter("testcase"):
        if case.get("status") == "notrun":
            continue
        name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
        outcome, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                outcome = "failed"
            elif child.tag == "skipped" and outcome == "passed":
                outcome = "skipped"
                reason = " ".join((child.get("message") or child.text or "no reason given").split())
        yield name, outcome, reason


def summarise(name, exit_code, events_path):
    """Prints one run's skips and failures; returns its counts by outcome."""
    counts = collections.Counter()
    failures, skips = [], collections.Counter()
    for label, status, path, log in test_results(events_path):
        failed_before = counts["failed"]
        try:
            cases = list(test_cases(path)) if path else []
        except xml.etree.ElementTree.ParseError:  # a test that was killed while it wrote
            cases = []
        for case, outcome, reason in cases:
            counts[outcome] += 1
            if outcome == "failed":
                failures.append(f"{label} {case}")
            elif outcome == "skipped":
                skips[f"{label}: {reason}"] += 1
        if status not in ("PASSED", "FLAKY"):
            print_log(name, label, log)
        if status not in ("PASSED", "FLAKY") and counts["failed"] == failed_before:
            counts["failed"] += 1
            failures.append(f"{label} {status}")
        elif status == "PASSED" and not cases:
            counts["failed"] += 1
            failures.append(f"{label} passed, but left no results to count")
    if exit_code not in _EXPLAINED:
        counts["failed"] += 1
        failures.append(f"the build failed (bazel exited with {exit_code})")
    for skip, times in skips.items():
        print(f"skipped in {name}: {skip}" + (f" ({times} times)" if times > 1 else ""))
    for failure in failures:
        print(f"FAILED in {name}: {failure}")
    return counts


def main(runs):
    total = collections.Counter()
    lines = []
    for run in runs:
        name, exit_code, events_path = run.split("=", 2)
        counts = summarise(name, int(exit_code), events_path)
        total += counts
        columns = (f"{counts[outcome]:6} {outcome}" for outcome in ("passed", "failed", "skipped"))
        lines.append(f"  {name:6}" + "".join(columns))
    print("\n".join(lines))
    print(f"{total['passed']} passed, {total['failed']} failed" +
          (f", {total['skipped']} skipped" if total["skipped"] else ""))
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
