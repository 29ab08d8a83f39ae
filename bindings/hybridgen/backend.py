"""The attention backend that vLLM selects as CUSTOM: its capabilities, metadata builder and per-layer call."""

import os
from typing import ClassVar

import torch

from hybridgen import compat, config, platforms
from hybridgen.engine import DummyMetadata, IdentityEngine, Metadata, float8_of
from hybridgen.errors import FailedPrecondition, InvalidArgument, Unimplemented


class HybridGenBackend(compat.AttentionBackend):
    """What the CPU kernels do, in either binding; further refusals are in `hybridgen.refusals`."""

    _head_sizes: ClassVar[list[int]] = [*range(8, 257, 8), 512]
    _head_sizes_text: ClassVar[str] = "multiples of 8 up to 256, and 512"
    forward_includes_kv_cache_update: bool = True
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.float16, torch.bfloat16]
    _float8: ClassVar[list[str]] = ["fp8", "fp8_e4m3", "fp8_e5m2"]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16", *_float8]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type["HybridGenImpl"]:
        return HybridGenImpl

    @staticmethod
    def get_builder_cls() -> type["HybridGenMetadataBuilder"]:
        return HybridGenMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None) -> list:
        return [compat.MultipleOf(16)]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return cls._head_sizes

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple:
        return tuple(compat.KVCacheLayout)  # kernels read K and V by strides

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_non_causal(cls) -> bool:
        return True

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        return False  # steps are planned from the lengths on the host

    @classmethod
    def validate_configuration(cls, head_size, dtype, kv_cache_dtype, block_size, **kwargs) -> list[str]:
        """vLLM's reasons, with the value and the accepted ones where vLLM names only the field."""
        reasons = super().validate_configuration(head_size, dtype, kv_cache_dtype, block_size, **kwargs)
        accepted = (None, "auto", str(dtype).removeprefix("torch."), *cls._float8)
        if kv_cache_dtype not in accepted and "kv_cache_dtype not supported" not in reasons:
            reasons.append("kv_cache_dtype not supported")
        dtypes = ", ".join(str(accepted).removeprefix("torch.") for accepted in cls.supported_dtypes)
        details = {
            "head_size": f"{head_size}; accepted: {cls._head_sizes_text}",
            "dtype": f"{dtype}; accepted: {dtypes}",
            "kv_cache_dtype": f"{kv_cache_dtype}; accepted: {', '.join(('auto', *cls._float8))}, or the dtype of the model",
            "block_size": f"{block_size}; accepted: multiples of 16",
        }
        return [f"{r} ({details[r.split()[0]]})" if r.split()[0] in details else r for r in reasons]


class HybridGenCudaBackend(HybridGenBackend):
    """What the CUDA kernels do (kernels/cuda/launch.h). They have not run on a GPU yet."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    _head_sizes: ClassVar[list[int]] = [64, 96, 128, 256]
    _head_sizes_text: ClassVar[str] = "64, 96, 128, 256"

    @classmethod
    def supports_compute_capability(cls, capability) -> bool:
        return capability is not None and capability.major >= 8


class HybridGenMetadataBuilder(compat.AttentionMetadataBuilder):
    """Plans a step once for all layers of its group.

    The worker sets `engine` after it has bound the cache: always with the tiered binding, and on a GPU. Else the builder
    makes its own engine, whose cache is vLLM's tensor.
    """

    # Attention stays out of captured graphs, between the pieces of piecewise ones, unless the operator asks for more.
    _cudagraph_support = compat.AttentionCGSupport.NEVER

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.engine = None

    @classmethod
    def get_cudagraph_support(cls, vllm_config, kv_cache_spec) -> compat.AttentionCGSupport:
        """With full graphs: decodes of one token a request. Each step is planned and taken up in `build`, ahead of the
        replay, which then reads it from memory at fixed addresses."""
        if full_graphs(vllm_config):
            return compat.AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
        return super().get_cudagraph_support(vllm_config, kv_cache_spec)

    def build_for_cudagraph_capture(self, common_attn_metadata) -> Metadata:
        """Metadata of the padded size: for a capture, and for dummy runs that replay what was captured."""
        if self.engine is None or not full_graphs(self.vllm_config):
            return self.build(0, common_attn_metadata)
        return self.engine.plan_capture(common_attn_metadata.num_actual_tokens)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False) -> Metadata | DummyMetadata:
        if self.engine is None:
            if full_graphs(self.vllm_config):
                # vLLM measures the graphs' memory with a cache that the worker, which is ours then, does not see.
                return DummyMetadata()
            self.engine = self._identity_engine()
        return self.engine.plan(common_attn_metadata)

    def _identity_engine(self) -> IdentityEngine:
        settings = engine_settings(self.vllm_config)
        spec = self.kv_cache_spec
        dense = 2 * spec.head_size * spec.dtype.itemsize
        if settings.tiered or spec.state_content_size_bytes != dense:
            raise FailedPrecondition(
                "the tiered binding needs HybridGen's worker, which has not bound the KV cache; leave worker_cls at "
                "'auto'"
            )
        return IdentityEngine(settings, spec, self.device, float8=float8_of(spec, self.vllm_config))


def engine_settings(vllm_config) -> config.Config:
    """Settings that the front end resolved, or (an engine that did not pass it, as in vLLM's tests) the variables'
    identity binding."""
    additional = vllm_config.additional_config
    resolved = additional.get(config.RESOLVED_KEY) if isinstance(additional, dict) else None
    if resolved is not None:
        return config.Config(**resolved)
    settings = config.load(os.environ, additional.get("hybridgen") if isinstance(additional, dict) else None)
    return config.identity(settings, platforms.current().device_kinds[0])


def full_graphs(vllm_config) -> bool:
    """Whether attention is part of captured decode graphs."""
    return engine_settings(vllm_config).full_graphs


class HybridGenImpl(compat.AttentionImpl):
    """One attention layer: its parameters, and the one call into the library per layer and step."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = compat.AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        if attn_type != compat.AttentionType.DECODER:
            raise Unimplemented(f"attention type {attn_type} is not supported; accepted: decoder")
        if sinks is not None and sinks.numel() != num_heads:
            raise InvalidArgument(f"sinks have {sinks.numel()} elements; accepted: num_heads, {num_heads}")
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.alibi_slopes = alibi_slopes
        self.sliding_window = sliding_window
        self.kv_cache_dtype = kv_cache_dtype
        self.logits_soft_cap = logits_soft_cap
        self.attn_type = attn_type
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.sinks = sinks  # a parameter of the model: its values are there once the weights are loaded
        self.num_calls = 0  # planned calls answered, for tests and statistics
        self.unbind()

    def bind(self, core, index: int, kv_cache: torch.Tensor) -> None:
        """Layer `index` of `core` is this one, with KV in `kv_cache`."""
        self._core = core
        self._index = index
        self._kv_cache = kv_cache

    def unbind(self) -> None:
        self._core = self._index = self._kv_cache = None

    def forward(
        self,
        layer,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor,
        attn_metadata: Metadata | DummyMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Writes key/value [tokens, kv_heads, head_size] and attends query [tokens, heads, head_size] into output.

        The one call per layer and step: kept lean, because its fixed cost is paid for every layer of every token.
        """
        if attn_metadata is None or attn_metadata.plan is None:  # warm-up and dummy runs
            return output.fill_(0)
        if output_scale is not None or output_block_scale is not None:
            raise Unimplemented("fused output quantisation is not supported")
        core = attn_metadata.core
        if self._core is not core or self._kv_cache is not kv_cache:
            attn_metadata.engine.attach(self, kv_cache, layer)
        dtype = attn_metadata.dtype
        if query.dtype is not dtype or output.dtype is not dtype:
            raise InvalidArgument(f"query and output are {query.dtype} and {output.dtype}; accepted: {dtype}")
        q_token, q_head, q_dim = query.stride()
        o_token, o_head, o_dim = output.stride()
        if key is None or self.kv_sharing_target_layer_name is not None:
            k_data = v_data = None  # the layer that shares its KV with this one has written it
            k_token = k_head = v_token = v_head = 0
            k_dim = v_dim = 1
        else:
            if key.dtype is not dtype or value.dtype is not dtype:
                raise InvalidArgument(f"key and value are {key.dtype} and {value.dtype}; accepted: {dtype}")
            k_data, (k_token, k_head, k_dim) = key.data_ptr(), key.stride()
            v_data, (v_token, v_head, v_dim) = value.data_ptr(), value.stride()
        if not q_dim == o_dim == k_dim == v_dim == 1:
            raise InvalidArgument("dims of a head are not contiguous in query, key, value or output; accepted: stride 1")
        # The library queues its work where PyTorch would now queue its own.
        stream = torch.cuda.current_stream(query.device).cuda_stream if attn_metadata.on_gpu else 0
        core.forward(
            attn_metadata.plan, self._index, query.data_ptr(), q_token, q_head, k_data, k_token, k_head,
            v_data, v_token, v_head, output.data_ptr(), o_token, o_head, stream,
        )  # fmt: skip
        self.num_calls += 1
        return output
