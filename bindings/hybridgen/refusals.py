"""What is refused by name, decided from vLLM's configuration. docs/vllm.md has this list as a table."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hybridgen import compat
from hybridgen.backend import HybridGenBackend

# Drafts that are proposed without layers of their own.
_LAYERLESS_DRAFTS = ("ngram", "ngram_gpu", "suffix")


@dataclass(frozen=True)
class Refusal:
    """A feature that host tiers do not serve: `present` looks for it in a VllmConfig."""

    name: str
    present: Callable[[compat.VllmConfig], bool]
    remedy: str


def _draft(vllm_config) -> str | None:
    return None if vllm_config.speculative_config is None else vllm_config.speculative_config.method


# Refused with the tiered binding only; the identity binding serves what vLLM's own tensor layout serves.
TIERED = (
    Refusal(
        "models with Mamba or other state layers",
        lambda c: c.model_config.is_hybrid or c.model_config.has_inner_state,
        "set HYBRIDGEN_DRAM=0 and HYBRIDGEN_CXL=0",
    ),
    Refusal(
        "KV caches of mixed precision (kv_cache_dtype_skip_layers)",
        lambda c: bool(c.cache_config.kv_cache_dtype_skip_layers),
        "leave kv_cache_dtype_skip_layers empty",
    ),
    Refusal(
        "microbatches (ubatch_size, enable_dbo)",
        lambda c: c.parallel_config.use_ubatching,
        "set ubatch_size=0 and enable_dbo=False",
    ),
    Refusal(
        "chunked local attention",
        lambda c: c.model_config.attention_chunk_size is not None,
        "set HYBRIDGEN_DRAM=0 and HYBRIDGEN_CXL=0",
    ),
    Refusal(
        "static attention sinks",
        lambda c: bool(getattr(c.model_config.hf_text_config, "param_sink_number", 0)),
        "set HYBRIDGEN_DRAM=0 and HYBRIDGEN_CXL=0",
    ),
    Refusal(
        "KV connectors and KV offloading",
        lambda c: c.kv_transfer_config is not None or bool(c.cache_config.kv_offloading_size),
        "remove kv_transfer_config and kv_offloading_size",
    ),
    Refusal(
        "draft models with layers of their own",
        lambda c: _draft(c) not in (None, *_LAYERLESS_DRAFTS),
        "use the speculative method ngram or suffix",
    ),
    Refusal(
        "attention backends per layer kind (backend_per_kind)",
        lambda c: bool(c.attention_config.backend_per_kind),
        "leave backend_per_kind empty",
    ),
    Refusal(
        "fast prefill of KV sharing layers",
        lambda c: c.cache_config.kv_sharing_fast_prefill,
        "set kv_sharing_fast_prefill=False",
    ),
    Refusal(
        "vLLM's V2 model runner",
        lambda c: c.use_v2_model_runner,
        "set VLLM_USE_V2_MODEL_RUNNER=0",
    ),
)


def backend_reasons(vllm_config) -> list[str]:
    """Why the backend cannot serve the model in either binding; the CPU platform itself never asks."""
    model, parallel, cache = vllm_config.model_config, vllm_config.parallel_config, vllm_config.cache_config
    attn_type = model.attn_type
    if attn_type in ("hybrid", "attention_free"):
        attn_type = compat.AttentionType.DECODER  # its attention layers, if any
    reasons = HybridGenBackend.validate_configuration(
        head_size=model.get_head_size() if not model.use_mla else HybridGenBackend.get_supported_head_sizes()[0],
        dtype=model.dtype,
        kv_cache_dtype=cache.cache_dtype,
        block_size=cache.block_size if cache.user_specified_block_size else None,
        use_mla=model.use_mla,
        has_sink=False,
        use_sparse=False,
        use_mm_prefix=model.is_mm_prefix_lm,
        use_per_head_quant_scales=False,
        device_capability=None,
        attn_type=attn_type,
        use_pcp=parallel.prefill_context_parallel_size > 1,
        use_dcp=parallel.decode_context_parallel_size > 1,
        use_rswa=model.rswa_window is not None,
    )
    return reasons


def tiered_reasons(vllm_config) -> Iterator[str]:
    """What of the configuration host tiers do not serve, with the remedy."""
    for refusal in TIERED:
        if refusal.present(vllm_config):
            yield f"{refusal.name} ({refusal.remedy})"
