"""The command `hybridgen` and the tables it prints; the engines of the demonstration are replaced by their results."""

import io
import json

import pytest
from hybridgen import cli, demonstration, report
from rich.console import Console
from typer.testing import CliRunner

_MIB = 1 << 20


def tier(capacity, keys, values, cpu, device, emulated=False):
    return {
        "emulated": emulated,
        "node": -1,
        "capacity_bytes": capacity,
        "resident_key_bytes": keys,
        "resident_value_bytes": values,
        "read_bytes": cpu + device,
        "cpu_read_bytes": cpu,
        "device_read_bytes": device,
    }


def arena(name, role, node, misplaced):
    return {
        "tier": name, "role": role, "node": node, "capacity_bytes": 8 * _MIB, "resident_bytes": 3 * _MIB,
        "sampled_pages_on_node": {"0": 500, "1": 10}, "sampled_pages_unknown": 2, "misplaced_pages": misplaced,
        "repaired_pages": 5, "unmovable_pages": 6, "no_room_pages": 0, "registered_bytes": 0, "pin_failures": 7,
    }  # fmt: skip


def placement():
    return {
        "policy": "proportional", "reason": "DRAM 8.0 GB/s paced, CXL 2.0 GB/s paced", "key_share_on_cxl": 0.0,
        "value_share_on_cxl": 0.4, "notes": ["no NUMA control"],
        "arenas": [arena("dram", "key", -1, 0), arena("cxl", "value", 1, 10)],
    }  # fmt: skip


def statistics(backends=1):
    tiers = {
        "device": tier(4 * _MIB, _MIB, 2 * _MIB, 0, 10 * _MIB, emulated=True),
        "dram": tier(64 * _MIB, 16 * _MIB, 15 * _MIB, 90 * _MIB, 0),
    }
    process = {"pid": 7, "rank": 0, "device_kind": "emulated", "binding": "tiered"}
    return process | {"backends": [{"tiers": tiers}] * backends}


@pytest.fixture
def statistics_file(tmp_path):
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps(statistics()))
    return path


def rows(text):
    """Cells of a printed table by the name in its first column."""
    cells = [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells if row}


def invoke(*arguments):
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "120"})


def test_stats_prints_every_tier(statistics_file):
    result = invoke("stats", str(statistics_file))
    assert result.exit_code == 0, result.output
    assert "emulated device kind, tiered binding, process 7" in result.output
    table = rows(result.output)
    assert table["device (emulated)"] == ["4.0 MiB", "1.0 MiB", "2.0 MiB", "10.0 MiB", "0%"]
    assert table["DRAM"] == ["64.0 MiB", "16.0 MiB", "15.0 MiB", "90.0 MiB", "100%"]
    assert table["all"] == ["", "", "", "100.0 MiB", "90%"]


def test_stats_prints_where_the_memory_lies(tmp_path):
    written = statistics()
    written["backends"][0]["placement"] = placement()
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps(written))
    result = invoke("stats", str(path))
    assert result.exit_code == 0, result.output
    assert "placement proportional (DRAM 8.0 GB/s paced, CXL 2.0 GB/s paced)" in result.output
    assert "no NUMA control" in result.output
    lines = [line for line in result.output.splitlines() if "8.0 MiB" in line]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert cells == [
        ["DRAM", "K", "any", "8.0 MiB", "3.0 MiB", "0 of 512", "5", "6", "7"],
        ["CXL", "V", "1", "8.0 MiB", "3.0 MiB", "10 of 512", "5", "6", "7"],
    ]


def test_the_log_says_how_pages_were_placed():
    backend = statistics()["backends"][0] | {"placement": placement()}
    assert report.placement_line(backend) == (
        "placement proportional (DRAM 8.0 GB/s paced, CXL 2.0 GB/s paced), 0% of K and 40% of V wanted on CXL; "
        "DRAM K 8.0 MiB on any node, CXL V 8.0 MiB on node 1; emulated: device; "
        "CXL V: 10 of 512 sampled pages lie on other nodes; no NUMA control"
    )


def test_the_log_says_what_page_digests_take():
    backend = statistics()["backends"][0] | {"placement": placement()}
    digests = {"reserved_bytes": 2 * _MIB, "blocks": 0, "seconds": 0.0}
    assert "; page digests 2.0 MiB; emulated" in report.placement_line(backend | {"page_digests": digests})


def test_backends_of_a_process_are_summed():
    assert report.sum_tiers(statistics(backends=3))["dram"]["read_bytes"] == 270 * _MIB


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"backends": []}', '{"backends": [{}]}', "7"])
def test_stats_refuses_other_files(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    result = invoke("stats", str(path))
    assert result.exit_code == 2
    assert "not a statistics file" in " ".join(result.output.split())


def test_stats_names_a_missing_file(tmp_path):
    result = invoke("stats", str(tmp_path / "absent.json"))
    assert result.exit_code == 2
    assert "cannot read" in result.output


def test_info_prints_versions_kernels_and_settings():
    result = invoke("info")
    assert result.exit_code == 0, result.output
    for word in ("0.32", "portable", "HYBRIDGEN_DRAM", "HYBRIDGEN_DEVICE_KIND"):
        assert word in result.output


def results(own_tokens):
    ours = {"tokens": [1, 2, 3], "prompt_rate": 1000.0, "generated_rate": 50.0, "statistics": statistics()}
    return {"emulated": ours, "vllm": ours | {"tokens": own_tokens}}


@pytest.mark.parametrize(("own_tokens", "same"), [([1, 2, 3], True), ([1, 2, 4], False), ([1, 2], False)])
def test_demonstration_says_whether_tokens_are_equal(monkeypatch, tmp_path, own_tokens, same):
    output = io.StringIO()
    specifications = {}

    def run_engine(folder, name, log, specification):
        specifications[name] = specification
        return results(own_tokens)["vllm" if name == "vllm" else "emulated"]

    monkeypatch.setattr(demonstration, "_run_engine", run_engine)
    monkeypatch.setattr(demonstration, "make_model", lambda console, folder, max_tokens: tmp_path)
    console = Console(file=output, width=100)
    assert demonstration.run(console, tmp_path, prompt_tokens=1024, generate=8, device_share=8) is same
    assert ("tokens equal" in output.getvalue()) is same
    assert ("tokens differ" in output.getvalue()) is not same
    # Both device kinds and vLLM's own backend ran, ours with a device tier of an eighth of the prompt's KV.
    kinds = [given["settings"] and given["settings"]["device_kind"] for given in specifications.values()]
    assert kinds == ["emulated", "cpu", None]
    assert specifications["cpu"]["kv_cache_bytes"] * 8 == demonstration.kv_bytes(1024)
    assert specifications["vllm"]["kv_cache_bytes"] > demonstration.kv_bytes(1024 + 8)
