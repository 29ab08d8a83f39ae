"""`hybridgen topology` and its native functions over trees made here and this machine; the unknown is shown as such."""

import io
import json
import pathlib

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hybridgen import _core, cli, config, errors, topology

NODE = "sys/devices/system/node/"
FILES = {
    "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n",
    NODE + "online": "0-2\n",
    NODE + "has_memory": "0-2\n",
    NODE + "has_normal_memory": "0-1\n",
    NODE + "has_cpu": "0\n",
    NODE + "node0/cpulist": "0-3,8\n",
    NODE + "node0/meminfo": "Node 0 MemTotal: 4194304 kB\nNode 0 MemFree: 1048576 kB\n",
    NODE + "node0/access1/initiators/read_bandwidth": "204800\n",
    NODE + "node0/access1/initiators/read_latency": "100\n",
    NODE + "node1/cpulist": "\n",
    NODE + "node1/access1/initiators/read_bandwidth": "819200\n",
    NODE + "node2/cpulist": "\n",
    "sys/bus/dax/devices/dax3.0/target_node": "2\n",
    "sys/bus/pci/devices/0000:18:00.0/class": "0x030200\n",
    "sys/bus/pci/devices/0000:18:00.0/vendor": "0x10de\n",
    "sys/bus/pci/devices/0000:18:00.0/device": "0x2330\n",
    "sys/bus/pci/devices/0000:18:00.0/numa_node": "0\n",
}


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def invoke(*arguments: str, **environment: str):
    return CliRunner().invoke(cli.app, ["topology", *arguments], env={"COLUMNS": "200", **environment})


def test_json_tells_kinds_and_null_for_unknown(root):
    found = json.loads(_core.topology_json(root=str(root)))
    assert [node["kind"] for node in found["nodes"]] == ["dram", "hbm", "unknown"]
    assert found["nodes"][2]["total_bytes"] is None
    assert [node["movable_only"] for node in found["nodes"]] == [False, False, True]
    assert found["dax_devices"][0]["use"] == "unknown"
    assert found["gpus"] == [{"address": "0000:18:00.0", "vendor": "0x10de", "device": "0x2330", "node": 0}]
    assert json.loads(_core.topology_json(str(root), "2:cxl"))["nodes"][2]["kind"] == "cxl"


def test_wrong_arguments_are_exceptions_that_say_what_is_accepted(root):
    with pytest.raises(errors.InvalidArgument, match="'2:tape'.*accepted: NODE:KIND"):
        _core.topology_json(str(root), "2:tape")
    with pytest.raises(errors.InvalidArgument, match="node 7 is named but has no memory; accepted: nodes 0, 1, 2"):
        _core.topology_json(str(root), "7:cxl")
    with pytest.raises(errors.InvalidArgument, match="root is '/nonexistent'"):
        _core.topology_json("/nonexistent")


def test_command_prints_tables(root):
    result = invoke("--root", str(root))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("machine: 4.0 GiB available of 8.0 GiB")
    row = next(line for line in lines if "0-3,8" in line)
    for cell in ("dram", "similar", "1.0 GiB / 4.0 GiB", "204.8 GB/s, 100 ns"):
        assert cell in row
    assert any("hbm" in line and "faster" in line and "819.2 GB/s" in line for line in lines)
    assert any("unknown" in line and "? / ?" in line and "none" in line for line in lines)
    assert "movable only" in result.output
    assert any("/dev/dax3.0" in line for line in lines)
    assert any("0000:18:00.0" in line and "0x10de:0x2330" in line for line in lines)
    assert any(line.startswith("warning: node 2 is not used") and "HYBRIDGEN_TOPOLOGY=2:cxl" in line for line in lines)
    assert "HYBRIDGEN_TOPOLOGY" not in invoke("--root", str(root), "--override", "2:persistent").output


def test_command_prints_the_tiers_to_use(root):
    lines = invoke("--root", str(root)).output.splitlines()
    assert any("DRAM" in line and "node 0" in line and "204.8 GB/s, 100 ns" in line for line in lines)
    assert any("CXL" in line and "none" in line and "no memory is known to be CXL" in line for line in lines)
    assert "settings: HYBRIDGEN_DRAM_NODE=0" in lines
    assert not any("measured:" in line for line in lines), "a recorded tree is not measured"

    (root / NODE / "node2/meminfo").write_text("Node 2 MemTotal: 2097152 kB\nNode 2 MemFree: 1048576 kB\n")
    access = root / NODE / "node2/access1/initiators"
    access.mkdir(parents=True)
    (access / "read_bandwidth").write_text("20480\n")
    lines = invoke("--root", str(root), "--override", "2:cxl").output.splitlines()
    # 2c / (c + d) for 20.48 and 204.8 GB/s; free 1 GiB less a sixteenth of the node's size, halved.
    assert any(line.startswith("placement: proportional, 18 % of V on CXL") and "firmware" in line for line in lines)
    assert "settings: HYBRIDGEN_DRAM_NODE=0 HYBRIDGEN_CXL_NODE=2 HYBRIDGEN_CXL=448M" in lines
    assert any(line.startswith("warning: CXL node 2 has only movable memory") for line in lines)


def test_the_settings_it_advises_are_accepted(root):
    settings = json.loads(_core.topology_json(str(root), "2:cxl"))["advice"]["settings"]
    assert config.load(settings).cxl_node == 2
    assert config.load({"HYBRIDGEN_CXL_DEVICE": "/dev/dax0.0", "HYBRIDGEN_CXL": "128M"}).cxl_device == "/dev/dax0.0"


def test_tiers_that_are_devices_or_several_nodes():
    known = {"bytes": 1 << 30, "read_megabytes_per_second": 16000, "read_nanoseconds": None, "evidence": "because"}
    advice = {
        "dram": known | {"nodes": [0, 1], "device": None, "source": "measured"},
        "cxl": known | {"nodes": [], "device": "dax0.0", "source": "firmware", "bytes": None},
    }
    output = io.StringIO()
    Console(file=output, width=120).print(topology.tier_table(advice))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.getvalue().splitlines()]
    assert ["DRAM", "nodes 0-1", "1.0 GiB", "16.0 GB/s", "measured", "because"] in rows
    assert ["CXL", "/dev/dax0.0", "?", "16.0 GB/s", "firmware", "because"] in rows


def test_command_prints_json_and_takes_the_override_of_the_environment(root):
    result = invoke("--json", "--root", str(root), HYBRIDGEN_TOPOLOGY="2:cxl")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["nodes"][2]["kind_evidence"] == "set by the operator"
    assert invoke("--root", str(root), "--override", "x").exit_code == 2


def test_this_machine_is_measured_unless_told_otherwise(root):
    found = json.loads(_core.topology_measured_json())
    if not found["nodes"]:
        pytest.skip("the kernel lists no memory nodes here")
    told = " ".join(found["advice"]["warnings"])
    for node in found["nodes"]:
        assert node["measured"] is not None or f"node {node['id']} was not measured" in told
        if node["measured"] is not None:
            assert node["measured"]["read_megabytes_per_second"] > 0
            assert node["measured"]["read_nanoseconds"] > 0
            assert 0 < node["measured"]["clean_samples"] <= node["measured"]["samples"] or node["measured"]["disturbed"]
    assert (found["measurement"] is None) == all(node["measured"] is None for node in found["nodes"])
    assert json.loads(_core.topology_json())["measurement"] is None

    result = invoke()
    assert result.exit_code == 0, result.output
    assert ("measured:" in result.output) == (found["measurement"] is not None)
    result = invoke("--no-measure")
    assert result.exit_code == 0 and "measured:" not in result.output
    assert json.loads(invoke("--no-measure", "--json").output)["measurement"] is None

    result = invoke("--measure", "--root", str(root))
    assert result.exit_code == 2 and "leave out --root" in " ".join(result.output.split())
    with pytest.raises(errors.InvalidArgument, match="accepted: NODE:KIND"):
        _core.topology_measured_json("0:tape")


def test_the_engines_settings_ignore_the_variable():
    assert config.load({"HYBRIDGEN_TOPOLOGY": "2:cxl"}) == config.load({})


@pytest.mark.parametrize("ids, text", [(None, "?"), ([], "none"), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2,5,7-8")])
def test_cpu_lists_are_short(ids, text):
    assert topology._ranges(ids) == text
