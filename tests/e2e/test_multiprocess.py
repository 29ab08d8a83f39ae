"""One run per device kind in vLLM's default multiprocess mode, configured by variables."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import scenarios

HERE = pathlib.Path(__file__).parent


@pytest.mark.parametrize("device_kind", ["cpu", "emulated"])
def test_default_multiprocess_engine(model_dir, reference, device_kind, tmp_path):
    # vLLM sets its own OpenMP threads up in its worker process.
    ours = ("VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS", "LD_PRELOAD", "VLLM_DIST_IDENT")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(HERE), environment.get("PYTHONPATH", "")]),
        "VLLM_LOGGING_LEVEL": "INFO",
        "HYBRIDGEN_DEVICE_KIND": device_kind,
        "HYBRIDGEN_DRAM": "24M",
        "HYBRIDGEN_CXL": "4M",
        "HYBRIDGEN_STATS": str(tmp_path / "stats.json"),
    }
    run = subprocess.run(
        [sys.executable, str(HERE / "multiprocess_engine.py"), model_dir("llama"), device_kind, tmp_path / "result.json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stdout[-8000:]
    result = json.loads((tmp_path / "result.json").read_text())
    for name, answers in result["answers"].items():
        scenarios.assert_equal([scenarios.Answer(**answer) for answer in answers], reference("llama", name))
    assert "max_model_len" in result["refusal"] and "\n" not in result["refusal"]

    # Exactly one line says what is active, and the statistics prove that it worked.
    lines = [line for line in run.stdout.splitlines() if "HybridGen is active" in line]
    assert len(lines) == 1, run.stdout[-8000:]
    for part in ("HybridGenBackend", f"device kind {device_kind}", "binding tiered", "DRAM 24.0 MiB", "CXL 4.0 MiB"):
        assert part in lines[0]
    statistics = json.loads((tmp_path / "stats.json").read_text())
    (backend,) = statistics["backends"]
    assert backend["device_kind"] == device_kind and backend["binding"] == "tiered"
    assert backend["forward_calls"] > 0
    assert backend["tiers"]["dram"]["read_bytes"] > 0
