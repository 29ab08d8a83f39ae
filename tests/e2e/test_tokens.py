"""Greedy tokens and log-probabilities equal to vLLM's own backend: model families x bindings x device kinds."""

from dataclasses import dataclass, field

import pytest
import scenarios

_EVERYWHERE = list(scenarios.CONFIGURATIONS)
CASES = [
    (model, configuration)
    for model, configurations in {
        "llama": _EVERYWHERE,
        "qwen2": _EVERYWHERE,
        "opt": _EVERYWHERE,
        "gemma2": _EVERYWHERE,  # window and full layers: one KV cache group with host tiers, two without
        "bloom": ["identity-cpu", "tiered-emulated"],  # ALiBi
    }.items()
    for configuration in configurations
]


@dataclass
class Run:
    """What one engine answered, and what its layers and tiers looked like."""

    model: str
    configuration: str
    tiered: bool
    impl_classes: set[str] = field(default_factory=set)
    calls: dict[str, list[int]] = field(default_factory=dict)  # of each layer, after each scenario
    host_bytes: dict[str, int] = field(default_factory=dict)  # read in each scenario
    answers: dict[str, list] = field(default_factory=dict)
    statistics: list[dict] = field(default_factory=list)  # of the end
    kv_cache_groups: int = 0
    device_bytes: int = 0


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def engine_run(request, model_dir):
    model, configuration = request.param
    settings = scenarios.CONFIGURATIONS[configuration]
    result = Run(model, configuration, tiered=settings["dram"] != "0")
    arguments = dict(kv_cache_memory_bytes=scenarios.DEVICE_BYTES[model]) if result.tiered else {}
    with scenarios.engine(model_dir(model), "CUSTOM", settings, **arguments) as llm:
        for name in scenarios.COMMON:
            before = scenarios.host_bytes_read(llm) if result.calls else 0
            result.answers[name] = scenarios.run(llm, name)
            result.calls[name] = [impl.num_calls for impl in scenarios.impls(llm).values()]
            result.host_bytes[name] = scenarios.host_bytes_read(llm) - before
        result.impl_classes = {type(impl).__name__ for impl in scenarios.impls(llm).values()}
        result.statistics = scenarios.statistics(llm)
        cache = scenarios.worker(llm).model_runner.kv_cache_config
        result.kv_cache_groups = len(cache.kv_cache_groups)
        result.device_bytes = cache.kv_cache_tensors[0].size
    return result


@pytest.mark.parametrize("scenario", scenarios.COMMON)
def test_equals_vllms_own_backend(engine_run, reference, scenario):
    scenarios.assert_equal(engine_run.answers[scenario], reference(engine_run.model, scenario))


def test_our_class_ran_in_every_layer(engine_run):
    assert engine_run.impl_classes == {"HybridGenImpl"}
    calls = [sum(step) for step in engine_run.calls.values()]
    assert all(later > earlier for earlier, later in zip(calls, calls[1:], strict=False)) and min(calls) > 0
    forward_calls = sum(backend["forward_calls"] for backend in engine_run.statistics)
    assert forward_calls == calls[-1], "every call of a layer reached the library"
    binding = "tiered" if engine_run.tiered else "identity"
    assert {backend["binding"] for backend in engine_run.statistics} == {binding}
    assert {backend["device_kind"] for backend in engine_run.statistics} == {engine_run.configuration.split("-")[1]}


def test_prompt_is_larger_than_the_device_tier_and_read_from_host_tiers(engine_run):
    if not engine_run.tiered:
        assert engine_run.host_bytes["long"] == 0
        return
    prompt_bytes = scenarios.LONG_PROMPT * scenarios.BYTES_PER_TOKEN[engine_run.model]
    assert engine_run.device_bytes <= scenarios.DEVICE_BYTES[engine_run.model]
    assert prompt_bytes >= 8 * engine_run.device_bytes
    # Each of the generated tokens attends the prompt, of which at most the device tier's share is not on the host. A
    # window layer attends less.
    share = 0.5 if engine_run.model == "gemma2" else 1.0
    least = (prompt_bytes - engine_run.device_bytes) * share * (scenarios.GENERATED - 1)
    assert engine_run.host_bytes["long"] >= least


def test_prefix_cache_hits_on_blocks_evicted_from_the_device_tier(engine_run):
    answer = engine_run.answers["cached"][0]
    assert answer.cached_tokens >= scenarios.LONG_PROMPT - scenarios.BLOCK_SIZE
    if engine_run.tiered:
        assert engine_run.host_bytes["cached"] > 0


def test_one_kv_cache_group_with_host_tiers(engine_run):
    if engine_run.tiered:
        assert engine_run.kv_cache_groups == 1
    elif engine_run.model == "gemma2":
        assert engine_run.kv_cache_groups == 2


def test_device_did_the_devices_share(engine_run):
    """cpu: CPU threads read everything; emulated: the device reads its tier, CPU threads the host tiers."""
    for backend in engine_run.statistics:
        tiers = backend["tiers"]
        if engine_run.configuration.endswith("cpu"):
            assert all(tier["device_read_bytes"] == 0 for tier in tiers.values())
        else:
            assert tiers["device"]["device_read_bytes"] > 0 and tiers["device"]["cpu_read_bytes"] == 0
