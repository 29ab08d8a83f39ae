"""What HybridGen adds to a worker of vLLM: declares the capacity of all tiers, binds them, feeds the host mirror."""

import json
import os
from dataclasses import replace

import torch

from hybridgen import _core, compat, config, report, tiers
from hybridgen.backend import HybridGenImpl, HybridGenMetadataBuilder, engine_settings
from hybridgen.engine import Engine, Graphs, TieredEngine, float8_of, own_cpus
from hybridgen.errors import Unimplemented
from hybridgen.statistics import StatisticsFile

_TIERED_LAYOUTS = ("LBHNC", "LBNHC")  # a layer's blocks are one run of bytes, which can be carved into device pages


class HybridGenWorker:
    """The first base of a worker, ahead of vLLM's own class."""

    def __init__(self, vllm_config, local_rank, rank, distributed_init_method, is_driver_worker=False) -> None:
        super().__init__(vllm_config, local_rank, rank, distributed_init_method, is_driver_worker)
        self._settings = engine_settings(vllm_config)
        self._engines: list[Engine] = []  # those that are told of each step
        self._graphs: Graphs | None = None
        self._statistics = StatisticsFile(
            self._settings.stats, rank, vllm_config.parallel_config.world_size, self._collect
        )

    def get_supported_kv_cache_layouts(self) -> list[str]:
        layouts = super().get_supported_kv_cache_layouts()
        if not self._settings.tiered:
            return layouts
        return [name for name in layouts if name in _TIERED_LAYOUTS]

    def get_kv_cache_spec(self) -> dict:
        """vLLM's specs; with host tiers the content is declared smaller, so that block ids range over all tiers."""
        specs = super().get_kv_cache_spec()
        if not self._settings.tiered:
            return specs
        first = _common_spec(specs)
        geometry = tiers.Geometry(
            layers=len(specs),
            kv_heads=first.num_kv_heads,
            head_size=first.head_size,
            element_size=first.dtype.itemsize,
            block_size=first.block_size,
            host_page_format=self._settings.host_page_format,
        )
        content = geometry.customised_content(
            self.cache_config.kv_cache_memory_bytes, self._settings.dram, self._settings.cxl
        )
        return {name: replace(spec, state_content_bytes=content) for name, spec in specs.items()}

    def initialize_from_config(self, kv_cache_config) -> None:
        """Binds the cache that vLLM allocates here. Called again, it binds anew."""
        self._close_engines()
        super().initialize_from_config(kv_cache_config)
        self._graphs = self._full_graphs()
        self._engines = [self._tiered_engine(kv_cache_config)] if self._settings.tiered else self._identity_engines()
        for engine in self._engines if self._settings.tiered else ():
            compat.logger.info("HybridGen: %s", report.placement_line(json.loads(engine.core.stats())))
        compat.logger.info("%s", self._description(kv_cache_config))

    def execute_model(self, scheduler_output):
        for engine in self._engines:
            engine.begin_step(scheduler_output)
        try:
            return super().execute_model(scheduler_output)
        finally:
            for engine in self._engines:
                engine.end_step()
            self._statistics.tick()

    def sleep(self, level: int = 1) -> None:
        raise Unimplemented("sleep mode is not supported: the host tiers hold KV that vLLM does not know of")

    def wake_up(self, tags: list[str] | None = None) -> None:
        raise Unimplemented("sleep mode is not supported, so there is nothing to wake up")

    def discard(self, tags: tuple[str, ...]) -> None:
        raise Unimplemented("sleep mode is not supported, so there is nothing to discard")

    def shutdown(self) -> None:
        if self._cores():
            self._statistics.write()
        self._close_engines()
        super().shutdown()

    def _close_engines(self) -> None:
        for builder in self._builders():
            if builder.engine is not None:
                builder.engine.close()
                builder.engine = None
        for engine in self._engines:  # their builders may be gone
            engine.close()
        self._engines = []

    def _full_graphs(self) -> Graphs | None:
        """Graphs of decode batches that vLLM will capture attention in; None without."""
        return None

    def _identity_engines(self) -> list[Engine]:
        """Engines that the worker makes for the identity binding; none where each builder makes its own."""
        return []

    def _tiered_engine(self, kv_cache_config) -> TieredEngine:
        """Carves vLLM's tensors of our layers into device pages and reserves the host tiers."""
        groups = self.model_runner.kv_cache_config.kv_cache_groups  # with the layers that share KV
        if len(groups) != 1:
            names = "; ".join(", ".join(group.layer_names[:2]) for group in groups)
            raise Unimplemented(f"host tiers need one KV cache group, this model has {len(groups)} ({names}, ...)")
        layers = self.compilation_config.static_forward_context
        for name, layer in layers.items():
            cache = getattr(layer, "kv_cache", None)
            has_cache = cache.numel() > 0 if isinstance(cache, torch.Tensor) else bool(cache)
            if has_cache and not isinstance(getattr(layer, "impl", None), HybridGenImpl):
                raise Unimplemented(f"host tiers need every layer with KV to be HybridGen's, {name} is not")
        names = groups[0].layer_names
        spec = _common_spec(getattr(groups[0].kv_cache_spec, "kv_cache_specs", {names[0]: groups[0].kv_cache_spec}))
        speculative = self.vllm_config.speculative_config
        engine = TieredEngine(
            self._settings,
            spec,
            self.device,
            layers=[layers[name] for name in names],
            num_blocks=kv_cache_config.num_blocks,
            speculative_tokens=0 if speculative is None else speculative.num_speculative_tokens,
            batch_order=lambda: self.model_runner.input_batch.req_ids,
            float8=float8_of(spec, self.vllm_config),
            graphs=self._graphs,
        )
        for builder in self._builders():
            builder.engine = engine
        return engine

    def _builders(self) -> list[HybridGenMetadataBuilder]:
        groups = getattr(self.model_runner, "attn_groups", None) or []
        return [
            builder
            for per_kv_group in groups
            for group in per_kv_group
            for builder in group.metadata_builders
            if isinstance(builder, HybridGenMetadataBuilder)
        ]

    def _cores(self) -> list[_core.Backend]:
        engines = {id(b.engine): b.engine for b in self._builders() if b.engine is not None}
        return [engine.core for engine in engines.values()]

    def _collect(self) -> dict:
        return {
            "pid": os.getpid(),
            "rank": self.rank,
            "device_kind": self._settings.device_kind,
            "binding": "tiered" if self._settings.tiered else "identity",
            "backends": [json.loads(core.stats()) for core in self._cores()],
        }

    def _description(self, kv_cache_config) -> str:
        sizes = {"device": sum({tensor.size for tensor in kv_cache_config.kv_cache_tensors})}
        sizes |= {"DRAM": self._settings.dram, "CXL": self._settings.cxl}
        tiers_text = ", ".join(f"{name} {config.format_size(size)}" for name, size in sizes.items())
        cpus, source = own_cpus(self._settings)
        return (
            f"HybridGen is active: HybridGenBackend, device kind {self._settings.device_kind}, binding "
            f"{'tiered' if self._settings.tiered else 'identity'}, tiers {tiers_text}, "
            f"{kv_cache_config.num_blocks} blocks of {self.cache_config.block_size} tokens, own threads "
            f"on {'any CPU' if cpus is None else cpus} ({source}); {_core.build_info()}"
        )


def _common_spec(specs: dict):
    """The one geometry of all layers; host tiers keep one kind of page."""
    first_name, first = next(iter(specs.items()))
    for name, spec in specs.items():
        if not isinstance(spec, (compat.FullAttentionSpec, compat.SlidingWindowSpec)):
            raise Unimplemented(f"layer {name} has a KV cache of type {type(spec).__name__}; accepted: attention")
        for field in ("num_kv_heads", "head_size", "dtype", "block_size"):
            if getattr(spec, field) != getattr(first, field):
                raise Unimplemented(
                    f"host tiers need layers with equal {field}: {name} has {getattr(spec, field)}, {first_name} "
                    f"{getattr(first, field)}"
                )
    return first
