"""Engines under test and the request batches that every backend answers; results are compared with vLLM's own."""

import gc
import json
import random
from contextlib import contextmanager
from dataclasses import dataclass

import models

BLOCK_SIZE = 32
GENERATED = 64
LOGPROB_TOLERANCE = 1e-3

# Host tiers that hold the rest of the longest prompt. The device tier is DEVICE_BYTES; the longest prompt's KV is more
# than 8 times that in every model here (the smallest, qwen2: 3 layers, 1 head of 32: 768 bytes a token).
LONG_PROMPT = 4608
DEVICE_BYTES = {"llama": 512 << 10, "qwen2": 384 << 10, "opt": 1 << 20, "gemma2": 512 << 10, "bloom": 1 << 20}
BYTES_PER_TOKEN = {"llama": 1024, "qwen2": 768, "opt": 2048, "gemma2": 1024, "bloom": 2048}

CONFIGURATIONS = {
    "identity-cpu": dict(device_kind="cpu", dram="0"),
    "identity-emulated": dict(device_kind="emulated", dram="0"),
    "tiered-cpu": dict(device_kind="cpu", dram="24M", cxl="4M"),
    "tiered-emulated": dict(device_kind="emulated", dram="24M", cxl="4M"),
}


@dataclass
class Answer:
    tokens: list[int]
    logprobs: list[float]  # of the generated tokens
    cached_tokens: int


def _prompt(seed: int, length: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(5, models.VOCABULARY) for _ in range(length)]


def _repetitive_prompt(seed: int, length: int) -> list[int]:
    period = _prompt(seed, 23)
    return (period * (length // len(period) + 1))[:length]


# Those that every model and configuration answers, in this order; the others are for one feature each.
COMMON = ("long", "batch", "equal", "cached")

# Name -> list of generate() calls, each a list of (prompt, tokens to generate).
SCENARIOS = {
    # More KV than 8 device tiers; the first step has vLLM's default 4096 tokens.
    "long": [[(_prompt(1, LONG_PROMPT), GENERATED)]],
    # Unequal lengths; with 4 running at most, later ones join as earlier ones finish.
    "batch": [[(_prompt(10 + i, n), 40 + 3 * i) for i, n in enumerate((3, 700, 31, 32, 33, 250, 64, 129))]],
    # Equal prompts in one step: one reads the prefix blocks that another writes in the same step.
    "equal": [[(_prompt(30, 400), GENERATED)] * 3],
    # The same long prompt again: its prefix blocks are cached, and those in the device tier were overwritten.
    "cached": [[(_prompt(1, LONG_PROMPT), GENERATED)]],
    # What n-gram drafts are good at.
    "repetitive": [[(_repetitive_prompt(40 + i, n), GENERATED) for i, n in enumerate((97, 300))]],
    # More than fits when blocks are few: vLLM preempts, and block ids are reused.
    "crowd": [[(_prompt(50 + i, 200 + 30 * i), GENERATED) for i in range(6)]],
}


@contextmanager
def engine(folder: str, backend: str, hybridgen: dict | None = None, **arguments):
    """An in-process vLLM engine, gone when the block ends."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    if hybridgen is not None:
        arguments["additional_config"] = {"hybridgen": hybridgen}
    defaults = dict(
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        block_size=BLOCK_SIZE,
        max_model_len=LONG_PROMPT + 2 * GENERATED,
        max_num_seqs=4,
        attention_backend=backend,
        kv_cache_memory_bytes=24 << 20,
        disable_log_stats=False,  # preemptions are counted there
    )
    llm = LLM(folder, **{**defaults, **arguments})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def generate(llm, requests) -> list[Answer]:
    from vllm import SamplingParams

    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt, _ in requests],
        [
            SamplingParams(temperature=0, max_tokens=count, logprobs=1, ignore_eos=True, detokenize=False)
            for _, count in requests
        ],
        use_tqdm=False,
    )
    return [
        Answer(
            tokens=list(output.outputs[0].token_ids),
            logprobs=[
                step[token].logprob
                for token, step in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
            ],
            cached_tokens=output.num_cached_tokens or 0,
        )
        for output in outputs
    ]


def prompt_logprobs(llm):
    """Log-probability of each token of one long prompt: no decision, so no divergence."""
    import torch
    from vllm import SamplingParams

    prompt = SCENARIOS["long"][0][0][0][:2000]
    output = llm.generate(
        [{"prompt_token_ids": prompt}],
        SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False),
        use_tqdm=False,
    )[0]
    values = [step[token].logprob for token, step in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def run(llm, scenario: str) -> list[Answer]:
    return [answer for requests in SCENARIOS[scenario] for answer in generate(llm, requests)]


def assert_equal(ours: list[Answer], theirs: list[Answer]) -> None:
    """Equal greedy tokens, log-probabilities within the tolerance, and a model that says something."""
    assert len(ours) == len(theirs)
    for index, (mine, reference) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.tokens == reference.tokens, f"request {index}"
        assert len(set(mine.tokens)) >= min(16, len(mine.tokens)), f"request {index} repeats itself"
        worst = max(abs(a - b) for a, b in zip(mine.logprobs, reference.logprobs, strict=True))
        assert worst <= LOGPROB_TOLERANCE, f"request {index}: log-probabilities differ by {worst}"


def worker(llm):
    return llm.llm_engine.model_executor.driver_worker.worker


def layers(llm) -> dict:
    """Every attention layer by name."""
    return dict(llm.llm_engine.vllm_config.compilation_config.static_forward_context)


def impls(llm) -> dict:
    return {name: layer.impl for name, layer in layers(llm).items()}


def statistics(llm) -> list[dict]:
    """Statistics of every library backend of the engine's worker."""
    return [json.loads(core.stats()) for core in worker(llm)._cores()]


def host_bytes_read(llm) -> int:
    """KV bytes of host tiers that either worker attended."""
    return sum(
        tier["cpu_read_bytes"] + tier["device_read_bytes"]
        for backend in statistics(llm)
        for name, tier in backend["tiers"].items()
        if name != "device"
    )


def preemptions(llm) -> int:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
