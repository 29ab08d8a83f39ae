"""vLLM's own attention backend test on the identity binding.

Its files are fetched by `third_party/install.sh --tests` and are not part of this repository. It fills a paged cache,
writes the context straight into the tensor, runs the backend's builder and impl, and compares with flex attention.
"""

import os
import pathlib
import sys

import pytest
import torch
import transformers

TESTS = pathlib.Path(os.environ["HYBRIDGEN_VENV"]) / "vllm-tests"

CAUSAL = (
    "small_decode", "small_prefill", "mixed_small", "medium_decode", "medium_prefill", "mixed_medium", "large_decode",
    "large_prefill", "single_decode", "single_prefill",
)  # fmt: skip
WINDOW = ("small_decode", "small_prefill", "mixed_medium", "large_decode", "large_prefill", "mixed_large")
NON_CAUSAL = ("small_decode", "small_prefill", "mixed_small")
LAYOUTS = ("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")

_HEADS = dict(hidden_size=512, intermediate_size=64, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=4)


@pytest.fixture(scope="module")
def upstream():
    """vLLM's test module, with CUSTOM registered by our entry point."""
    assert (TESTS / "tests").is_dir(), f"{TESTS} is missing; run third_party/install.sh --tests"
    sys.path.insert(0, str(TESTS))
    try:
        import tests.v1.attention.test_attention_backends as module
    finally:
        sys.path.remove(str(TESTS))
    from hybridgen import plugin

    plugin.register()
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model folders: only their configurations are read."""
    root = tmp_path_factory.mktemp("vllm-backend")
    llama = transformers.LlamaConfig(**_HEADS, max_position_embeddings=8192, dtype="bfloat16")
    llama.architectures = ["LlamaForCausalLM"]
    llama.save_pretrained(root / "llama")
    window = transformers.MistralConfig(**_HEADS, max_position_embeddings=8192, sliding_window=300, dtype="bfloat16")
    window.architectures = ["MistralForCausalLM"]
    window.save_pretrained(root / "window")
    return {name: str(root / name) for name in ("llama", "window")}


def causal_mask(b, h, q_idx, kv_idx, *, context_len):
    return q_idx + context_len >= kv_idx


def window_mask(b, h, q_idx, kv_idx, *, context_len):
    return (q_idx + context_len >= kv_idx) & (q_idx + context_len - kv_idx < 300)


def full_mask(b, h, q_idx, kv_idx, *, context_len):
    return q_idx >= 0


@pytest.fixture
def check(upstream, folders, monkeypatch):
    """Runs one case; fails unless our class answered it."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from hybridgen.backend import HybridGenImpl

    forward = HybridGenImpl.forward
    calls = []

    def counted(self, *args, **kwargs):
        calls.append(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(HybridGenImpl, "forward", counted)

    def run(batch: str, model: str, mask, **arguments) -> None:
        with set_current_vllm_config(VllmConfig()):
            upstream._test_backend_correctness(
                upstream.BATCH_SPECS[batch], folders[model], [AttentionBackendEnum.CUSTOM], mask, **arguments
            )
        assert len(calls) == 1 and calls[0].num_calls == 1

    return run


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("batch", CAUSAL)
def test_causal(check, batch, shards):
    check(batch, "llama", causal_mask, block_size=16, tensor_parallel_size=shards)


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("batch", WINDOW)
def test_sliding_window(check, batch, shards):
    check(batch, "window", window_mask, block_size=16, tensor_parallel_size=shards)


@pytest.mark.parametrize("batch", NON_CAUSAL)
def test_non_causal(check, batch):
    check(batch, "llama", full_mask, block_size=16, causal=False)


def test_attention_sinks(check):
    check("mixed_medium", "llama", causal_mask, block_size=16, use_sinks=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(check, upstream, layout):
    check("mixed_small", "llama", causal_mask, block_size=16, layout=upstream.KVCacheLayout[layout])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_dtype(check, dtype):
    check("mixed_medium", "llama", causal_mask, block_size=16, model_dtype=dtype)
