"""`hybridgen demo`: one prompt, three engines (HybridGen with each device kind, and vLLM's own backend), same tokens?

Each engine runs in a process of its own, `python -m hybridgen.demonstration SPECIFICATION.json`, whose output goes to
a log file.
"""

import hashlib
import json
import os
import pathlib
import random
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from hybridgen import report
from hybridgen.config import format_size

# A Llama of random weights. 8 KV heads of 64 in 4 layers make 16 KiB of float32 KV per token.
MODEL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 4096,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
}
SEED = 1
BLOCK_SIZE = 32  # what vLLM's own backend takes too
_FLOAT_BYTES = 4
_ENGINE_TIMEOUT_SECONDS = 1800


def kv_bytes(tokens: int) -> int:
    """Bytes of the model's KV for so many tokens, all layers."""
    return tokens * 2 * MODEL["num_hidden_layers"] * MODEL["num_key_value_heads"] * MODEL["head_dim"] * _FLOAT_BYTES


def default_folder() -> pathlib.Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(cache) / "hybridgen" / "demo"


def make_model(console: Console, folder: pathlib.Path, max_tokens: int) -> pathlib.Path:
    """The model as a folder that vLLM loads; made once for a shape."""
    shape = MODEL | {"max_position_embeddings": max_tokens, "seed": SEED}
    path = folder / f"llama-{hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:12]}"
    if path.exists():
        return path
    console.print("making the model, a Llama of random weights")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(**MODEL, max_position_embeddings=max_tokens)).to(torch.float32)
    partial = path.with_suffix(f".{os.getpid()}")
    model.save_pretrained(partial)
    partial.rename(path)
    return path


def run(console: Console, folder: pathlib.Path | None, prompt_tokens: int, generate: int, device_share: int) -> bool:
    """Runs the engines and prints the comparison; whether all gave the same tokens."""
    folder = folder or default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    device = kv_bytes(prompt_tokens) // device_share
    host = 2 * kv_bytes(prompt_tokens + generate)
    model = make_model(console, folder, prompt_tokens + generate)
    console.print(
        f"prompt of {prompt_tokens} tokens with {format_size(kv_bytes(prompt_tokens))} of float32 KV; "
        f"device tier {format_size(device)}, DRAM tier {format_size(host)}",
        soft_wrap=True,
    )

    runs = {}
    for name, title, settings in (
        ("emulated", "HybridGen, emulated device", {"device_kind": "emulated", "dram": host}),
        ("cpu", "HybridGen, cpu kind", {"device_kind": "cpu", "dram": host}),
        ("vllm", "vLLM's own backend", None),
    ):
        log = folder / f"{name}.log"
        console.print(f"{title}: starting vLLM, then {generate} tokens; log: {log}", soft_wrap=True)
        began = time.monotonic()
        specification = {
            "model": str(model),
            "settings": settings,
            "statistics": str(folder / f"{name}-statistics.json"),
            "prompt_tokens": prompt_tokens,
            "generate": generate,
            # Our device tier. vLLM's own backend needs room for everything.
            "kv_cache_bytes": device if settings else host,
        }
        runs[title] = _run_engine(folder, name, log, specification)
        console.print(f"  done in {time.monotonic() - began:.0f} s")
    return _print_results(console, runs)


def _run_engine(folder: pathlib.Path, name: str, log: pathlib.Path, specification: dict) -> dict:
    specification_file = folder / f"{name}.json"
    result_file = folder / f"{name}-result.json"
    specification_file.write_text(json.dumps(specification | {"result": str(result_file)}))
    for stale in (result_file, pathlib.Path(specification["statistics"])):
        stale.unlink(missing_ok=True)
    # Settings of the caller's shell do not reach into the comparison.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HYBRIDGEN_")}
    # One process per engine starts in half the time of vLLM's usual three.
    environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if specification["settings"] is not None:
        environment["HYBRIDGEN_STATS"] = specification["statistics"]
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override the device tier's size
    with log.open("w") as output:
        code = subprocess.run(
            [sys.executable, "-m", "hybridgen.demonstration", str(specification_file)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=_ENGINE_TIMEOUT_SECONDS,
        ).returncode
    if code != 0 or not result_file.exists():
        last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"the engine ended with code {code}; the end of {log}:\n{last}")
    result = json.loads(result_file.read_text())
    if specification["settings"] is not None:
        result["statistics"] = report.read(pathlib.Path(specification["statistics"]))
    return result


def _print_results(console: Console, runs: dict[str, dict]) -> bool:
    for title, result in runs.items():
        if "statistics" in result:
            console.print(report.tier_table(result["statistics"], title))
    table = Table(title="Tokens per second", title_justify="left")
    table.add_column("backend")
    table.add_column("prompt", justify="right")
    table.add_column("generated", justify="right")
    for title, result in runs.items():
        table.add_row(title, f"{result['prompt_rate']:.1f}", f"{result['generated_rate']:.1f}")
    console.print(table)
    console.print("The emulated device is CPU threads that stand for an accelerator: its speed is no accelerator's.")
    tokens = [result["tokens"] for result in runs.values()]
    same = all(other == tokens[0] for other in tokens)
    console.print(f"{len(tokens[0])} tokens, {len(set(tokens[0]))} distinct")
    console.print("tokens equal" if same else "tokens differ")
    return same


def _generate(specification: dict) -> None:
    """In the engine's own process: generates, and writes tokens and rates to the result file."""
    from vllm import LLM, SamplingParams

    settings = specification["settings"]
    llm = LLM(
        model=specification["model"],
        skip_tokenizer_init=True,
        dtype="float32",
        block_size=BLOCK_SIZE,
        max_model_len=specification["prompt_tokens"] + specification["generate"],
        kv_cache_memory_bytes=specification["kv_cache_bytes"],
        enforce_eager=True,
        **(
            {"attention_backend": "CUSTOM", "additional_config": {"hybridgen": settings}}
            if settings is not None
            else {}
        ),
    )
    engine = llm.llm_engine
    rng = random.Random(SEED)
    engine.add_request(
        "demo",
        {"prompt_token_ids": [rng.randrange(MODEL["vocab_size"]) for _ in range(specification["prompt_tokens"])]},
        SamplingParams(temperature=0.0, max_tokens=specification["generate"], ignore_eos=True, detokenize=False),
    )
    began = time.perf_counter()
    first = last = began
    tokens: list[int] = []
    while engine.has_unfinished_requests():
        for output in engine.step():
            if not tokens:
                first = time.perf_counter()
            tokens = list(output.outputs[0].token_ids)
            last = time.perf_counter()
    llm.llm_engine.engine_core.shutdown()
    pathlib.Path(specification["result"]).write_text(
        json.dumps({
            "tokens": tokens,
            "prompt_rate": specification["prompt_tokens"] / (first - began),
            "generated_rate": (len(tokens) - 1) / (last - first),
        })
    )


if __name__ == "__main__":
    _generate(json.loads(pathlib.Path(sys.argv[1]).read_text()))
