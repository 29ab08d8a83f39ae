"""What is refused by name, decided from vLLM's configuration. docs/vllm.md has this list as a table."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hybridgen import compat

# Drafts that are proposed without layers of their own.
_LAYERLESS_DRAFTS = ("ngram", "ngram_gpu", "suffix")


@dataclass(frozen=True)
class Refusal:
    """A feature that is not served: `present` looks for it in a VllmConfig."""

    name: str
    present: Callable[[compat.VllmConfig], bool]
    remedy: str


def _draft(vllm_config) -> str | None:
    return None if vllm_config.speculative_config is None else vllm_config.speculative_config.method


_MICROBATCHES = Refusal(
    "microbatches (ubatch_size, enable_dbo)",
    lambda c: c.parallel_config.use_ubatching,
    "set ubatch_size=0 and enable_dbo=False",
)
_DRAFT_LAYERS = Refusal(
    "draft models with layers of their own",
    lambda c: _draft(c) not in (None, *_LAYERLESS_DRAFTS),
    "use the speculative method ngram or suffix",
)
# It alone keeps block tables and the order of the batch in host memory.
_V2_RUNNER = Refusal(
    "vLLM's V2 model runner",
    lambda c: c.use_v2_model_runner,
    "set VLLM_USE_V2_MODEL_RUNNER=0",
)

# Refused in either binding on any platform.
ALWAYS = (
    Refusal(
        "KV caches of mixed precision (kv_cache_dtype_skip_layers)",
        lambda c: bool(c.cache_config.kv_cache_dtype_skip_layers),
        "leave kv_cache_dtype_skip_layers empty",
    ),
)

# Refused with the tiered binding on any platform; the identity binding serves what vLLM's own tensor layout serves.
TIERED = (
    Refusal(
        "models with Mamba or other state layers",
        lambda c: c.model_config.is_hybrid or c.model_config.has_inner_state,
        "set HYBRIDGEN_DRAM=0 and HYBRIDGEN_CXL=0",
    ),
    _MICROBATCHES,
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
    _DRAFT_LAYERS,
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
    _V2_RUNNER,
)


# Refused on vLLM's CUDA platform in either binding: steps are planned from what vLLM has in host memory, one at a time.
CUDA = (
    _V2_RUNNER,
    _MICROBATCHES,
    _DRAFT_LAYERS,
    Refusal(
        "drafts under asynchronous scheduling, where the host does not know how many were accepted",
        lambda c: c.speculative_config is not None and bool(c.scheduler_config.async_scheduling),
        "set async_scheduling=False",
    ),
    Refusal(
        "CUDA graphs of mixed batches that hold attention (cudagraph_mode=FULL)",
        lambda c: _mixed_graphs(c) == "FULL",
        "set cudagraph_mode=PIECEWISE",
    ),
)

# Refused on vLLM's CUDA platform with the tiered binding.
CUDA_TIERED = (
    Refusal(
        "host tiers without kv_cache_memory_bytes, whose size is needed before vLLM has measured the GPU's free memory",
        lambda c: c.cache_config.kv_cache_memory_bytes is None,
        "set kv_cache_memory_bytes; without host tiers vLLM logs the largest value",
    ),
)


def _mixed_graphs(vllm_config) -> str | None:
    """Name of the mode of graphs for batches that are not all decodes."""
    mode = vllm_config.compilation_config.cudagraph_mode
    return None if mode is None else mode.mixed_mode().name


def backend_reasons(vllm_config, backend: type[compat.AttentionBackend]) -> list[str]:
    """Why the backend cannot serve the model in either binding; asked early, and the CPU platform never asks."""
    model, parallel, cache = vllm_config.model_config, vllm_config.parallel_config, vllm_config.cache_config
    attn_type = model.attn_type
    if attn_type in ("hybrid", "attention_free"):
        attn_type = compat.AttentionType.DECODER  # its attention layers, if any
    return backend.validate_configuration(
        head_size=model.get_head_size() if not model.use_mla else backend.get_supported_head_sizes()[0],
        dtype=model.dtype,
        kv_cache_dtype=cache.cache_dtype,
        block_size=cache.block_size if cache.user_specified_block_size else None,
        use_mla=model.use_mla,
        has_sink=False,
        use_sparse=False,
        use_mm_prefix=model.is_mm_prefix_lm,
        use_per_head_quant_scales=False,
        device_capability=compat.current_platform.get_device_capability(),
        attn_type=attn_type,
        use_pcp=parallel.prefill_context_parallel_size > 1,
        use_dcp=parallel.decode_context_parallel_size > 1,
        use_rswa=model.rswa_window is not None,
    )


def feature_reasons(vllm_config, *refusals: Refusal) -> Iterator[str]:
    """Which of the refused features the configuration has, each with its remedy, once."""
    for refusal in dict.fromkeys(refusals):
        if refusal.present(vllm_config):
            yield f"{refusal.name} ({refusal.remedy})"
