"""KV caches of float8: as close to exact as vLLM's own backend with the same cache, in every configuration."""

import pytest
import scenarios

CONFIGURATIONS = scenarios.CONFIGURATIONS


@pytest.fixture(scope="module")
def reference(model_dir):
    """float32 values, and the root mean square error of vLLM's own backend against them by type of the cache."""
    values = {}
    for kind in ("auto", "fp8_e4m3", "fp8_e5m2"):
        dtype = "float32" if kind == "auto" else "bfloat16"
        with scenarios.engine(
            model_dir("llama"), "CPU_ATTN", dtype=dtype, kv_cache_dtype=kind, max_num_batched_tokens=512
        ) as llm:
            values[kind] = scenarios.prompt_logprobs(llm)
    exact = values.pop("auto")
    return exact, {kind: (value - exact).square().mean().sqrt() for kind, value in values.items()}


@pytest.mark.parametrize(
    ("configuration", "kind"),
    [
        ("identity-cpu", "fp8_e4m3"),
        ("identity-emulated", "fp8_e5m2"),
        ("tiered-cpu", "fp8_e5m2"),
        ("tiered-emulated", "fp8_e4m3"),
    ],
)
def test_error_is_that_of_vllms_own_backend(model_dir, reference, configuration, kind):
    exact, error_of_cpu_attn = reference
    settings, arguments = CONFIGURATIONS[configuration], {}
    if configuration.startswith("tiered"):
        settings = {**settings, "check": 1}
        # A quarter of what is enough for float32: a byte per element.
        arguments["kv_cache_memory_bytes"] = scenarios.DEVICE_BYTES["llama"] // 4
    with scenarios.engine(
        model_dir("llama"), "CUSTOM", settings, dtype="bfloat16", kv_cache_dtype=kind, max_num_batched_tokens=512,
        **arguments,
    ) as llm:  # fmt: skip
        error = (scenarios.prompt_logprobs(llm) - exact).square().mean().sqrt()
        if configuration.startswith("tiered"):
            assert scenarios.host_bytes_read(llm) > 0
        for layer in scenarios.layers(llm).values():
            assert layer.kv_cache.element_size() == 1
    print(f"{configuration} {kind}: {error} against {error_of_cpu_attn[kind]}")
    assert 0 < error <= 1.2 * error_of_cpu_attn[kind], f"{error} against {error_of_cpu_attn[kind]}"


def test_scales_of_the_layers_are_used(model_dir, monkeypatch):
    """K and V far beyond what float8 holds: with scales that bring them back the answer stays, without it saturates."""
    from vllm.model_executor.layers.attention.attention import Attention

    original = Attention.process_weights_after_loading
    scales = {}

    def with_scales(self, act_dtype):
        original(self, act_dtype)
        self._k_scale_float, self._v_scale_float = scales["k"], scales["v"]

    monkeypatch.setattr(Attention, "process_weights_after_loading", with_scales)
    values = {}
    for name, kind, k, v in (
        ("exact", "auto", 1.0, 1.0),
        ("scaled", "fp8_e4m3", 1 / 32, 1 / 32),
        ("saturated", "fp8_e4m3", 1 / 65536, 1 / 65536),
    ):
        scales.update(k=k, v=v)
        with scenarios.engine(
            model_dir("llama"), "CUSTOM", CONFIGURATIONS["identity-cpu"], dtype="bfloat16", kv_cache_dtype=kind,
            max_num_batched_tokens=512,
        ) as llm:  # fmt: skip
            values[name] = scenarios.prompt_logprobs(llm)
    errors = {name: float((values[name] - values["exact"]).square().mean().sqrt()) for name in values}
    print(errors)
    assert 0 < errors["scaled"] < errors["saturated"] / 4, errors
