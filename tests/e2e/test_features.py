"""Chunked prefill, drafts, preemption, half precision, and who touches the pool: Llama with GQA, every configuration."""

import json
import math

import pytest
import scenarios
import torch

CONFIGURATIONS = scenarios.CONFIGURATIONS
TIERED = [name for name in CONFIGURATIONS if name.startswith("tiered")]
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 3}


def open_engine(model_dir, configuration: str, hybridgen: dict | None = None, **arguments):
    settings = CONFIGURATIONS[configuration]
    if configuration in TIERED:
        arguments.setdefault("kv_cache_memory_bytes", scenarios.DEVICE_BYTES["llama"])
        settings = {**settings, "check": 1}
    return scenarios.engine(model_dir("llama"), "CUSTOM", {**settings, **(hybridgen or {})}, **arguments)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_chunked_prefill(model_dir, reference, configuration):
    """Steps of 96 tokens mix chunks of some requests with tokens of others."""
    with open_engine(model_dir, configuration, max_num_batched_tokens=96) as llm:
        scenarios.assert_equal(scenarios.run(llm, "batch"), reference("llama", "batch"))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_ngram_drafts(model_dir, reference, configuration):
    """Rejected drafts rewrite slots of live blocks; each step has several query tokens per request."""
    with open_engine(model_dir, configuration, speculative_config=NGRAM) as llm:
        answers = scenarios.run(llm, "repetitive")
        metrics = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    assert metrics["vllm:spec_decode_num_draft_tokens"] > metrics["vllm:spec_decode_num_accepted_tokens"]
    scenarios.assert_equal(answers, reference("llama", "repetitive"))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_preemption(model_dir, reference, configuration):
    """More requests than fit: vLLM preempts, block ids are reused, preempted requests come back."""
    # 30 blocks of 32 tokens: a device tier of about 15 pages and as many on the host.
    settings = {"dram": "640K", "cxl": "0"} if configuration in TIERED else {}
    with open_engine(
        model_dir, configuration, settings, num_gpu_blocks_override=30, max_model_len=640, enable_prefix_caching=False
    ) as llm:
        answers = scenarios.run(llm, "crowd")
        assert scenarios.preemptions(llm) > 0
        if configuration in TIERED:
            assert scenarios.host_bytes_read(llm) > 0
    scenarios.assert_equal(answers, reference("llama", "crowd"))


@pytest.fixture(scope="module")
def half_precision_reference(model_dir):
    """float32 values, and the error of vLLM's own backend against them by dtype."""
    values = {}
    for dtype in ("float32", "bfloat16", "float16"):
        with scenarios.engine(model_dir("llama"), "CPU_ATTN", dtype=dtype, max_num_batched_tokens=512) as llm:
            values[dtype] = scenarios.prompt_logprobs(llm)
    exact = values.pop("float32")
    return exact, {dtype: (value - exact).square().mean().sqrt() for dtype, value in values.items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_half_precision_error(model_dir, half_precision_reference, configuration, dtype):
    """Root mean square error against float32 at most 1.2 times that of vLLM's own backend."""
    exact, error_of_cpu_attn = half_precision_reference
    with open_engine(model_dir, configuration, dtype=dtype, max_num_batched_tokens=512) as llm:
        error = (scenarios.prompt_logprobs(llm) - exact).square().mean().sqrt()
        if configuration in TIERED:
            assert scenarios.host_bytes_read(llm) > 0
    assert 0 < error <= 1.2 * error_of_cpu_attn[dtype], f"{error} against {error_of_cpu_attn[dtype]}"


@pytest.mark.parametrize("configuration", TIERED)
def test_plans_from_the_host_mirror_alone(model_dir, reference, configuration, monkeypatch):
    """With nonsense in the engine's tensors nothing changes, and building twice gives the same plan."""
    from hybridgen.backend import HybridGenMetadataBuilder

    build = HybridGenMetadataBuilder.build
    steps = []

    def poisoned_build(self, common_prefix_len, batch, fast_build=False):
        batch = batch.replace(
            block_table_tensor=torch.full_like(batch.block_table_tensor, -7),
            slot_mapping=torch.full_like(batch.slot_mapping, 1 << 40),
            seq_lens=torch.full_like(batch.seq_lens, -1),
            query_start_loc=torch.full_like(batch.query_start_loc, -1),
        )
        first = build(self, common_prefix_len, batch, fast_build)
        assert build(self, common_prefix_len, batch, fast_build) is first
        steps.append(first)
        return first

    monkeypatch.setattr(HybridGenMetadataBuilder, "build", poisoned_build)
    with open_engine(model_dir, configuration, {"check": 0}) as llm:
        answers = scenarios.run(llm, "batch")
        planned = scenarios.statistics(llm)[0]["steps"]
    scenarios.assert_equal(answers, reference("llama", "batch"))
    assert planned == len(steps) > 0


def _pool(kv_cache: torch.Tensor) -> torch.Tensor:
    """All bytes of the engine's tensor that `kv_cache` is a view of."""
    return torch.tensor([], dtype=torch.int8).set_(kv_cache.untyped_storage())


def test_nothing_outside_the_library_writes_the_pool(model_dir, reference, monkeypatch):
    """The engine's tensor, carved into device pages, changes only inside calls of the library.

    Only in the `cpu` kind can that be seen between any two calls: the emulated device moves pages at any time. What is
    outside the library is the same code in both kinds.
    """
    from hybridgen import backend, engine

    snapshots: dict[int, torch.Tensor] = {}
    calls = []

    def guarded(kv_cache, call):
        memory = _pool(kv_cache)
        known = snapshots.get(memory.data_ptr())
        if known is not None:
            assert torch.equal(known, memory), "the pool changed between two calls of the library"
        result = call()
        snapshots[memory.data_ptr()] = memory.clone()
        calls.append(1)
        return result

    forward, plan = backend.HybridGenImpl.forward, engine.TieredEngine.plan

    def guarded_forward(self, layer, query, key, value, kv_cache, *args, **kwargs):
        return guarded(kv_cache, lambda: forward(self, layer, query, key, value, kv_cache, *args, **kwargs))

    def guarded_plan(self, batch):
        return guarded(self._views[0], lambda: plan(self, batch))

    monkeypatch.setattr(backend.HybridGenImpl, "forward", guarded_forward)
    monkeypatch.setattr(engine.TieredEngine, "plan", guarded_plan)
    with open_engine(model_dir, "tiered-cpu") as llm:
        answers = scenarios.run(llm, "batch")
        for layer in scenarios.layers(llm).values():
            assert torch.equal(snapshots[_pool(layer.kv_cache).data_ptr()], _pool(layer.kv_cache))
    scenarios.assert_equal(answers, reference("llama", "batch"))
    assert len(calls) > 100


@pytest.mark.parametrize("configuration", TIERED)
def test_only_whole_device_pages_are_written(model_dir, reference, configuration):
    """Bytes of a layer's region after its last whole device page keep their pattern."""
    page = scenarios.BLOCK_SIZE * scenarios.BYTES_PER_TOKEN["llama"] // 2  # of one of the two layers
    with open_engine(model_dir, configuration, kv_cache_memory_bytes=2 * (10 * page + page // 2)) as llm:
        tails = []
        for layer in scenarios.layers(llm).values():
            region = layer.kv_cache.shape[0] * layer.kv_cache.stride(0) * layer.kv_cache.element_size()
            first = layer.kv_cache.data_ptr() - _pool(layer.kv_cache).data_ptr()
            tails.append(_pool(layer.kv_cache)[first + region // page * page : first + region])
            tails[-1].fill_(0x5A)
        assert sum(tail.numel() for tail in tails) > 0
        scenarios.assert_equal(scenarios.run(llm, "long"), reference("llama", "long"))
        assert all((tail == 0x5A).all() for tail in tails)


def test_two_engines_at_once(model_dir, reference):
    """Two engines of one process, steps interleaved: each with its own layers, pools and statistics."""
    with (
        open_engine(model_dir, "tiered-emulated") as first,
        open_engine(model_dir, "identity-cpu") as second,
    ):
        for scenario in ("equal", "repetitive"):
            for llm in (first, second):
                scenarios.assert_equal(scenarios.run(llm, scenario), reference("llama", scenario))
        assert [s["binding"] for s in scenarios.statistics(first)] == ["tiered"]
        assert [s["binding"] for s in scenarios.statistics(second)] == ["identity"]
        calls = [sum(s["forward_calls"] for s in scenarios.statistics(llm)) for llm in (first, second)]
        assert calls == [sum(impl.num_calls for impl in scenarios.impls(llm).values()) for llm in (first, second)]


@pytest.mark.parametrize("configuration", ["identity-cpu", "tiered-cpu"])
def test_statistics_file(model_dir, configuration, tmp_path):
    """Written while running, whole at any time, complete at the end."""
    path = tmp_path / "stats.json"
    with open_engine(model_dir, configuration, {"stats": str(path)}) as llm:
        scenarios.run(llm, "equal")
        running = json.loads(path.read_text())
        calls = sum(impl.num_calls for impl in scenarios.impls(llm).values())
    final = json.loads(path.read_text())
    for content in (running, final):
        assert content["binding"] == configuration.split("-")[0]
        assert content["device_kind"] == configuration.split("-")[1]
    assert sum(backend["forward_calls"] for backend in final["backends"]) == calls
    assert sum(backend["forward_calls"] for backend in running["backends"]) <= calls
    assert [entry.name for entry in tmp_path.iterdir()] == ["stats.json"], "temporary files stay behind"


def test_streaming_share_moves_reads_to_the_device(model_dir, reference):
    """With f = 1 the emulated device attends the host-resident tokens too."""
    with open_engine(model_dir, "tiered-emulated", {"streaming_share": 1.0}) as llm:
        scenarios.assert_equal(scenarios.run(llm, "long"), reference("llama", "long"))
        dram = scenarios.statistics(llm)[0]["tiers"]["dram"]
    assert dram["device_read_bytes"] > 0 and dram["cpu_read_bytes"] == 0
    assert math.isclose(dram["read_bytes"], dram["device_read_bytes"])
