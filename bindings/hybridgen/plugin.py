"""Entry point of vLLM's `general_plugins` group: makes `attention_backend="CUSTOM"` mean HybridGen.

vLLM's CPU platform ignores every attention backend but its own, so two classmethods of the platform are wrapped; on the
CUDA platform the same two give refusals in one sentence and set the worker. The wrappers do nothing unless CUSTOM is
selected.
"""

import logging
import os
from dataclasses import asdict, replace

from hybridgen import config, tiers
from hybridgen.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unimplemented

_WRAPPED = "_hybridgen_wrapped"

# On the CPU platform, the device tier of the tiered binding when neither kv_cache_memory_bytes nor
# VLLM_CPU_KVCACHE_SPACE names one: this share of the free memory. vLLM's own default, most of the node, would leave no
# room for the host tiers.
_DEVICE_SHARE = 4

_MIB = 1 << 20


def register() -> None:
    """Called by vLLM in every process; may be called again."""
    if config.disabled(os.environ):
        return
    try:
        from hybridgen import compat, platforms
    except ImportError as error:
        _refuse_custom(str(error))
        return
    backend = (platforms.current() or platforms.CPU).backend  # on other platforms configure() refuses
    member = compat.AttentionBackendEnum.CUSTOM
    if member.is_overridden() and member.get_path() != backend:
        raise FailedPrecondition(
            f"another plug-in registered {member.get_path()} as attention backend CUSTOM; select one of the two with "
            "VLLM_PLUGINS"
        )
    compat.register_backend(member, backend)
    platform = type(compat.current_platform)
    if _WRAPPED not in vars(platform):
        _wrap(platform)
    selected = platform.get_attn_backend_cls
    if not getattr(selected, _WRAPPED, False) or member.get_path() != backend:
        raise FailedPrecondition(f"vLLM's platform {platform.__name__} does not take HybridGen's hooks")


def _refuse_custom(problem: str) -> None:
    """This vLLM is not supported: it runs without us, and only choosing CUSTOM fails, with the reason."""
    from vllm.platforms import current_platform

    logging.getLogger("vllm.hybridgen").warning("HybridGen is not active: %s", problem)
    platform = type(current_platform)
    original = platform.check_and_update_config.__func__

    def check_and_update_config(cls, vllm_config) -> None:
        if "CUSTOM" in str(vllm_config.attention_config.backend):
            raise Unimplemented(problem)
        original(cls, vllm_config)

    platform.check_and_update_config = classmethod(check_and_update_config)


def _wrap(platform: type) -> None:
    """Wraps get_attn_backend_cls and check_and_update_config of vLLM's platform class."""
    from hybridgen import compat

    select = platform.get_attn_backend_cls.__func__
    update = platform.check_and_update_config.__func__
    custom = compat.AttentionBackendEnum.CUSTOM

    def get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None):
        if selected_backend is not custom:
            return select(cls, selected_backend, attn_selector_config, num_heads)
        reasons = custom.get_class().validate_configuration(
            device_capability=cls.get_device_capability(), **attn_selector_config._asdict()
        )
        if reasons:
            raise Unimplemented(_sentence(reasons))
        return custom.get_path()

    def check_and_update_config(cls, vllm_config) -> None:
        update(cls, vllm_config)
        if _selected(vllm_config, custom):
            configure(vllm_config)

    setattr(get_attn_backend_cls, _WRAPPED, True)
    platform.get_attn_backend_cls = classmethod(get_attn_backend_cls)
    platform.check_and_update_config = classmethod(check_and_update_config)
    setattr(platform, _WRAPPED, True)


def _selected(vllm_config, custom) -> bool:
    attention = vllm_config.attention_config
    return vllm_config.model_config is not None and (
        attention.backend is custom or custom in attention.backend_per_kind.values()
    )


def configure(vllm_config) -> None:
    """Checks and completes a VllmConfig that selects CUSTOM.

    Runs in the front end, where refusals reach the caller of LLM(), and again in the engine core, which takes over
    what the front end decided.
    """
    additional = vllm_config.additional_config
    if not isinstance(additional, dict):
        raise InvalidArgument(f"additional_config is a {type(additional).__name__}; accepted: a dictionary")
    resolved = additional.get(config.RESOLVED_KEY)
    if resolved is None:
        settings = _resolve(vllm_config, config.load(os.environ, additional.get(config.KEY)))
        vllm_config.additional_config = {**additional, config.RESOLVED_KEY: asdict(settings)}
    else:
        settings = config.Config(**resolved)
    _install_worker(vllm_config, settings)
    if settings.tiered:
        # One KV cache group: with more, layers of different groups share addresses.
        vllm_config.scheduler_config.disable_hybrid_kv_cache_manager = True


def _resolve(vllm_config, settings: config.Config) -> config.Config:
    """Settings with nothing left `auto`, sizes per rank; refuses what cannot be served, in one sentence."""
    from hybridgen import _core, compat, platforms, refusals

    platform = platforms.current()
    if platform is None:
        name = compat.current_platform.device_name
        raise Unimplemented(_sentence([f"platform {name} (accepted: vLLM's CPU and CUDA platforms)"]))
    reasons = refusals.backend_reasons(vllm_config, compat.AttentionBackendEnum.CUSTOM.get_class())
    kind = platform.device_kinds[0] if settings.device_kind == config.AUTO else settings.device_kind
    if kind not in platform.device_kinds:
        accepted = ", ".join((config.AUTO, *platform.device_kinds))
        reasons.append(f"HYBRIDGEN_DEVICE_KIND={kind} (accepted on vLLM's {platform.name} platform: {accepted})")
    if kind == "cuda" and (problem := _core.cuda_problem()):
        reasons.append(problem)
    if settings.full_graphs and kind != "cuda":
        reasons.append(f"HYBRIDGEN_FULL_GRAPHS=1 (accepted in the {kind} kind: 0)")
    if settings.full_graphs and settings.streaming_share > 0:
        reasons.append(f"HYBRIDGEN_STREAMING_SHARE={settings.streaming_share} (accepted with HYBRIDGEN_FULL_GRAPHS=1: 0)")
    settings = replace(settings, device_kind=kind)
    parallel = vllm_config.parallel_config
    settings = tiers.resolve_cxl(settings, parallel.local_world_size * max(1, parallel.data_parallel_size_local))
    if settings.dram == config.AUTO and kind != "emulated":
        settings = replace(settings, dram=0)
    tiered = settings.dram == config.AUTO or settings.tiered
    features = refusals.ALWAYS + (refusals.TIERED if tiered else ())
    if platform is platforms.CUDA:
        features += refusals.CUDA + (refusals.CUDA_TIERED if tiered else ())
    reasons.extend(refusals.feature_reasons(vllm_config, *features))
    if reasons:
        raise Unimplemented(_sentence(reasons))
    return _resolve_sizes(vllm_config, settings) if tiered else settings


def _resolve_sizes(vllm_config, settings: config.Config) -> config.Config:
    """Device tier (into kv_cache_memory_bytes) and host tiers of one rank, checked against machine and model."""
    cache, parallel = vllm_config.cache_config, vllm_config.parallel_config
    ranks = parallel.local_world_size * max(1, parallel.data_parallel_size_local)
    free = tiers.available_bytes(settings.dram_node)
    if cache.kv_cache_memory_bytes is None:
        cache.kv_cache_memory_bytes = free // _DEVICE_SHARE // ranks // _MIB * _MIB
    on_gpu = settings.device_kind == "cuda"
    device = 0 if on_gpu else cache.kv_cache_memory_bytes * ranks  # in host memory
    if settings.dram == config.AUTO:
        settings = replace(settings, dram=max(0, free - device) // 2)
    tiers.check_room(device, settings)
    settings = replace(settings, dram=settings.dram // ranks, cxl=settings.cxl // ranks)
    if on_gpu and settings.threads == 0:  # vLLM's CPU platform gives each rank its CPUs, this one does not
        settings = replace(settings, threads=max(1, len(os.sched_getaffinity(0)) // ranks))
    _check_max_model_len(vllm_config, settings)
    return settings


def _check_max_model_len(vllm_config, settings: config.Config) -> None:
    model, cache = vllm_config.model_config, vllm_config.cache_config
    if model.original_max_model_len == -1:
        return  # vLLM fits the length to the cache
    shared = getattr(model.hf_text_config, "num_kv_shared_layers", 0) or 0
    geometry = tiers.Geometry(
        layers=max(1, model.get_num_layers(vllm_config.parallel_config) - shared),
        kv_heads=model.get_num_kv_heads(vllm_config.parallel_config),
        head_size=model.get_head_size(),
        element_size=1 if cache.cache_dtype.startswith("fp8") else model.dtype.itemsize,
        block_size=cache.block_size,
        host_page_format=settings.host_page_format,
    )
    device = cache.kv_cache_memory_bytes
    content = geometry.customised_content(device, settings.dram, settings.cxl)
    blocks = cache.num_gpu_blocks_override or geometry.blocks(device, content)
    tokens = max(0, blocks - 1) * geometry.block_size  # block 0 is vLLM's null block
    if model.max_model_len > tokens:
        raise ResourceExhausted(
            f"max_model_len={model.max_model_len} is larger than the {tokens} tokens that all tiers together hold: "
            f"device {config.format_size(device)} (kv_cache_memory_bytes), DRAM {config.format_size(settings.dram)} "
            f"(HYBRIDGEN_DRAM), CXL {config.format_size(settings.cxl)} (HYBRIDGEN_CXL); raise HYBRIDGEN_DRAM or "
            "HYBRIDGEN_CXL, or lower max_model_len"
        )


def _install_worker(vllm_config, settings: config.Config) -> None:
    from hybridgen import platforms

    platform, parallel = platforms.current(), vllm_config.parallel_config
    if parallel.worker_cls == platform.vllm_worker:
        parallel.worker_cls = platform.worker
    elif (settings.tiered or settings.full_graphs) and parallel.worker_cls != platform.worker:
        raise Unimplemented(_sentence([f"worker_cls={parallel.worker_cls} (set worker_cls='auto')"]))


def _sentence(reasons) -> str:
    return "HybridGen (attention_backend CUSTOM) cannot serve this configuration: " + "; ".join(reasons)
