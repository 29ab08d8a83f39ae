"""What cannot be served is refused by LLM() itself, in one sentence that names it; sizes are checked at start."""

import pytest
import scenarios
import transformers

from hybridgen.errors import ResourceExhausted, Unimplemented

TIERED = {"device_kind": "emulated", "dram": "12M"}
IDENTITY = {"device_kind": "cpu", "dram": "0"}


def refused(folder, hybridgen, error, **arguments) -> str:
    """The one sentence with which LLM() fails."""
    arguments.setdefault("max_model_len", 128)
    with pytest.raises(error) as caught:
        with scenarios.engine(folder, "CUSTOM", hybridgen, **arguments):
            pass
    message = str(caught.value)
    assert "\n" not in message.strip() or "validation error" in message  # vLLM's own frame round a ValueError
    return message


def save_config(config, folder, architecture: str) -> str:
    config.architectures = [architecture]
    config.save_pretrained(folder)
    return str(folder)


# Name in the sentence -> arguments of LLM(): features that host tiers do not serve.
TIERED_ONLY = {
    "KV connectors": dict(kv_transfer_config={"kv_connector": "ExampleConnector", "kv_role": "kv_both"}),
    "KV offloading": dict(kv_offloading_size=0.01),
    "layers of their own": dict(
        speculative_config={"method": "draft_model", "model": "LLAMA", "num_speculative_tokens": 2}
    ),
    "microbatches": dict(ubatch_size=2),
    "chunked local attention": dict(hf_overrides={"attention_chunk_size": 64}),
    "static attention sinks": dict(hf_overrides={"param_sink_number": 4}),
    "backend_per_kind": dict(
        attention_backend=None,
        attention_config={"backend": "CUSTOM", "backend_per_kind": {"full_attention": "CPU_ATTN"}},
    ),
    "worker_cls": dict(worker_cls="vllm.v1.worker.gpu_worker.Worker"),
    "fast prefill": dict(kv_sharing_fast_prefill=True),
}

# Refused in either binding.
ALWAYS = {
    "head_size not supported (20": dict(hf_overrides={"head_dim": 20}),
    "kv_cache_dtype not supported (int8_per_token_head": dict(kv_cache_dtype="int8_per_token_head"),
    "mixed precision": dict(kv_cache_dtype_skip_layers=["0"]),
    "block_size not supported (24": dict(block_size=24),
    "DCP": dict(tensor_parallel_size=4, decode_context_parallel_size=2),
    "PCP": dict(prefill_context_parallel_size=2),
    "HYBRIDGEN_DEVICE_KIND=cuda": dict(hybridgen={"device_kind": "cuda"}),
}


@pytest.mark.parametrize("name", TIERED_ONLY)
def test_host_tiers_refuse_by_name(model_dir, name):
    folder = model_dir("llama")
    arguments = dict(TIERED_ONLY[name])
    if "speculative_config" in arguments:
        arguments["speculative_config"] = {**arguments["speculative_config"], "model": folder}
    assert name in refused(folder, TIERED, Unimplemented, **arguments)


@pytest.mark.parametrize("binding", [TIERED, IDENTITY], ids=["tiered", "identity"])
@pytest.mark.parametrize("name", ALWAYS)
def test_both_bindings_refuse_by_name(model_dir, binding, name):
    arguments = dict(ALWAYS[name])
    settings = {**binding, **arguments.pop("hybridgen", {})}
    assert name in refused(model_dir("llama"), settings, Unimplemented, **arguments)


def test_models_with_mamba_layers(tmp_path):
    config = transformers.FalconH1Config(
        vocab_size=512, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, mamba_d_ssm=128, mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16,
    )  # fmt: skip
    folder = save_config(config, tmp_path, "FalconH1ForCausalLM")
    assert "Mamba" in refused(folder, TIERED, Unimplemented)


def test_models_with_latent_attention(tmp_path):
    config = transformers.DeepseekV2Config(
        vocab_size=512, hidden_size=128, intermediate_size=128, moe_intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    folder = save_config(config, tmp_path, "DeepseekV2ForCausalLM")
    assert "MLA not supported" in refused(folder, TIERED, Unimplemented)


def test_models_with_cross_attention(tmp_path):
    config = transformers.WhisperConfig(
        vocab_size=512, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    folder = save_config(config, tmp_path, "WhisperForConditionalGeneration")
    assert "encoder_decoder" in refused(folder, TIERED, Unimplemented)


def test_v2_model_runner(model_dir, monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert "V2 model runner" in refused(model_dir("llama"), TIERED, Unimplemented)


def test_unknown_variable_names_the_nearest(model_dir, monkeypatch):
    monkeypatch.setenv("HYBRIDGEN_DRAMM", "1G")
    message = refused(model_dir("llama"), {}, ValueError)
    assert "HYBRIDGEN_DRAMM" in message and "nearest known one is HYBRIDGEN_DRAM" in message


def test_bad_value_names_the_accepted_ones(model_dir):
    message = refused(model_dir("llama"), {"device_kind": "tpu"}, ValueError)
    assert "device_kind" in message and "auto, cpu, emulated, cuda" in message


def test_max_model_len_beyond_the_device_tier_is_accepted(model_dir):
    """vLLM's own backend refuses the same sizes."""
    arguments = dict(kv_cache_memory_bytes=512 << 10, max_model_len=4096)  # 512 tokens of device tier
    with pytest.raises((ValueError, RuntimeError), match="max seq len"):
        with scenarios.engine(model_dir("llama"), "CPU_ATTN", **arguments):
            pass
    with scenarios.engine(model_dir("llama"), "CUSTOM", TIERED, **arguments) as llm:
        assert llm.llm_engine.vllm_config.cache_config.num_gpu_blocks > 4096 // scenarios.BLOCK_SIZE


def test_max_model_len_beyond_all_tiers_is_refused(model_dir):
    message = refused(
        model_dir("llama"),
        {"device_kind": "emulated", "dram": "1M", "cxl": "512K"},
        ResourceExhausted,
        kv_cache_memory_bytes=512 << 10,
        max_model_len=4096,
    )
    for part in ("max_model_len=4096", "512.0 KiB (kv_cache_memory_bytes)", "1.0 MiB (HYBRIDGEN_DRAM)"):
        assert part in message
    assert "512.0 KiB (HYBRIDGEN_CXL)" in message and "\n" not in message


@pytest.mark.parametrize("tier", ["dram", "cxl"])
def test_tier_larger_than_the_machine_is_refused(model_dir, tier):
    message = refused(model_dir("llama"), {"device_kind": "emulated", tier: "64T"}, ResourceExhausted)
    assert f"HYBRIDGEN_{tier.upper()}=64.0 TiB" in message and "\n" not in message


def test_sleep_is_refused(model_dir):
    with scenarios.engine(model_dir("llama"), "CUSTOM", TIERED, max_model_len=128) as llm:
        with pytest.raises(Unimplemented, match="sleep"):
            llm.sleep()
