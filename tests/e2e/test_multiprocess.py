"""One run per device kind in vLLM's default multiprocess mode, configured by variables."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import scenarios

HERE = pathlib.Path(__file__).parent
DEVICE_KINDS = ("cpu", "emulated")


@pytest.fixture(scope="module")
def runs(model_dir, tmp_path_factory):
    """Both engines at once: most of a run is imports, one process after the other."""
    # vLLM sets its own OpenMP threads up in its worker process.
    ours = ("VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS", "LD_PRELOAD", "VLLM_DIST_IDENT")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(HERE), environment.get("PYTHONPATH", "")]),
        "VLLM_LOGGING_LEVEL": "INFO",
        "HYBRIDGEN_DRAM": "24M",
        "HYBRIDGEN_CXL": "4M",
    }
    started = {}
    for kind in DEVICE_KINDS:
        folder = tmp_path_factory.mktemp(kind)
        command = [sys.executable, str(HERE / "multiprocess_engine.py"), model_dir("llama"), str(folder / "result.json")]
        variables = {"HYBRIDGEN_DEVICE_KIND": kind, "HYBRIDGEN_STATS": str(folder / "stats.json")}
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment | variables, stdout=log, stderr=subprocess.STDOUT)
        started[kind] = folder, process
    try:
        for _, process in started.values():
            process.wait(timeout=1200)
    finally:
        for _, process in started.values():
            process.kill()
    return started


@pytest.mark.parametrize("device_kind", DEVICE_KINDS)
def test_default_multiprocess_engine(runs, reference, device_kind):
    folder, process = runs[device_kind]
    log = (folder / "log").read_text(errors="replace")
    assert process.returncode == 0, log[-8000:]
    result = json.loads((folder / "result.json").read_text())
    for name, answers in result["answers"].items():
        scenarios.assert_equal([scenarios.Answer(**answer) for answer in answers], reference("llama", name))
    assert "max_model_len" in result["refusal"] and "\n" not in result["refusal"]

    # Exactly one line says what is active, and the statistics prove that it worked.
    lines = [line for line in log.splitlines() if "HybridGen is active" in line]
    assert len(lines) == 1, log[-8000:]
    for part in ("HybridGenBackend", f"device kind {device_kind}", "binding tiered", "DRAM 24.0 MiB", "CXL 4.0 MiB"):
        assert part in lines[0]
    statistics = json.loads((folder / "stats.json").read_text())
    (backend,) = statistics["backends"]
    assert backend["device_kind"] == device_kind and backend["binding"] == "tiered"
    assert backend["forward_calls"] > 0
    assert backend["tiers"]["dram"]["read_bytes"] > 0
