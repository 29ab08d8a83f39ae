"""The bridge between one vLLM engine and the library: who plans a step, from what, and for which layers.

IdentityEngine belongs to one metadata builder and plans from the engine's block tables. TieredEngine belongs to one
worker and plans from the host mirror of the block tables alone. What a worker makes plans from host memory only, so that
it never waits for the device.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from hybridgen import _core
from hybridgen.config import AUTO, Config, cpu_list, placement_weights
from hybridgen.errors import FailedPrecondition, InvalidArgument, Unimplemented

_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}

# vLLM's names of KV cache types with scales per tensor -> the library's.
_FLOAT8 = {"fp8": "float8_e4m3", "fp8_e4m3": "float8_e4m3", "fp8_e5m2": "float8_e5m2"}

# A plan stays valid while its backend plans 2 further steps, so a third one may reuse its memory.
_PLANS = 3


class Float8(NamedTuple):
    """A KV cache of float8: vLLM's spec says that it holds bytes, and neither which nor the model's dtype."""

    kv_dtype: str  # the library's name
    model_dtype: torch.dtype


def float8_of(spec, vllm_config) -> Float8 | None:
    """None: the cache holds the model's dtype, which is the spec's."""
    if spec.dtype is not torch.uint8:
        return None
    return Float8(_FLOAT8[vllm_config.cache_config.cache_dtype], vllm_config.model_config.dtype)


class Metadata:
    """What vLLM hands from the builder to every layer of a step."""

    __slots__ = ("core", "dtype", "engine", "on_gpu", "plan")

    def __init__(self, engine, plan) -> None:
        self.engine = engine
        self.core = engine.core
        self.dtype = engine.dtype
        self.plan = plan
        self.on_gpu = engine.on_gpu


class DummyMetadata:
    """Of a dummy run: nothing is written or attended."""

    plan = None


class Graphs:
    """Full CUDA graphs of decode batches, one token of each sequence.

    `max_tokens` is of the largest one, `max_pages` of all sequences of a step together. `tokens` is the worker's: of the
    graph that vLLM will replay for the present step, None where the step is run otherwise.
    """

    def __init__(self, max_tokens: int, max_pages: int) -> None:
        self.max_tokens = max_tokens
        self.max_pages = max_pages
        self.tokens: int | None = None


def own_cpus(settings: Config, environ: Mapping[str, str] = os.environ) -> tuple[list[int] | None, str]:
    """CPUs for the library's own threads (None: not pinned) and where the choice comes from.

    vLLM pins its worker process to the first CPU of a list that it leaves in the OpenMP variables; threads made by that
    process would all inherit the one CPU.
    """
    if settings.cpus != AUTO:
        return cpu_list(settings.cpus), "HYBRIDGEN_CPUS"
    patterns = {"GOMP_CPU_AFFINITY": r"[\d, -]+", "KMP_AFFINITY": r"(?<=proclist=\[)[\d,-]+", "OMP_PLACES": r"[\d,-]+"}
    for variable, pattern in patterns.items():
        found = re.search(pattern, environ.get(variable, ""))
        if found:
            return cpu_list(",".join(found.group().replace(",", " ").split())), variable
    return None, "not pinned"


def make_core(
    settings: Config,
    spec,
    device: torch.device,
    float8: Float8 | None = None,
    speculative_tokens: int = 0,
    graphs: Graphs | None = None,
) -> _core.Backend:
    """A library backend for layers of one geometry on vLLM's `device`; `spec` is vLLM's AttentionSpec."""
    if (device.type == "cuda") != (settings.device_kind == "cuda"):
        raise InvalidArgument(
            f"device kind {settings.device_kind} with tensors in {device.type} memory; accepted: cuda for CUDA tensors, "
            "cpu or emulated for those in host memory"
        )
    if spec.head_size_v != spec.head_size:
        raise Unimplemented(f"values of {spec.head_size_v} dims with keys of {spec.head_size}; accepted: equal sizes")
    placement, dram_weight, cxl_weight = placement_weights(settings.placement)
    return _core.Backend(
        device_kind=settings.device_kind,
        binding="tiered" if settings.tiered else "identity",
        isa=settings.isa,
        dtype=_DTYPES[float8.model_dtype if float8 else spec.dtype],
        kv_dtype=float8.kv_dtype if float8 else None,
        num_kv_heads=spec.num_kv_heads,
        head_size=spec.head_size,
        block_size=spec.block_size,
        num_threads=settings.threads,
        device_threads=settings.device_threads,
        cpus=own_cpus(settings)[0],
        speculative_tokens=speculative_tokens,
        dram_bytes=settings.dram,
        cxl_bytes=settings.cxl,
        dram_node=settings.dram_node,
        cxl_node=settings.cxl_node,
        cxl_device=settings.cxl_device or None,
        placement=placement,
        interleave_dram_weight=dram_weight,
        interleave_cxl_weight=cxl_weight,
        cxl_gigabytes_per_second=settings.cxl_gbps,
        mover_gigabytes_per_second=settings.mover_gbps,
        host_page_format=settings.host_page_format,
        page_digests=settings.page_digests,
        head_groups=settings.head_groups,
        streaming_share=settings.streaming_share,
        device_gigabytes_per_second=settings.device_gbps,
        timeout_seconds=settings.timeout,
        cuda_device=device.index or 0,
        graph_tokens=0 if graphs is None else graphs.max_tokens,
        graph_pages=0 if graphs is None else graphs.max_pages,
    )


def add_layer(core: _core.Backend, impl, layer, float8: Float8 | None) -> int:
    """Declares the parameters of an impl to the library; its weights (sinks) and those of `layer`, vLLM's module that has
    it (scales of float8), must be loaded."""
    return core.add_layer(
        num_query_heads=impl.num_heads,
        scale=impl.scale,
        soft_cap=impl.logits_soft_cap or 0.0,
        sliding_window=impl.sliding_window or 0,
        alibi_slopes=None if impl.alibi_slopes is None else [float(slope) for slope in impl.alibi_slopes],
        sinks=None if impl.sinks is None else impl.sinks.detach().float().flatten().tolist(),
        k_scale=layer._k_scale_float if float8 else 1.0,
        v_scale=layer._v_scale_float if float8 else 1.0,
    )


def _causal(causal) -> bool:
    if isinstance(causal, torch.Tensor):
        values = set(causal.tolist())
        if len(values) > 1:
            raise Unimplemented("a batch that mixes causal and non-causal requests is not supported")
        return bool(values.pop()) if values else True
    return bool(causal)


def _to_host(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as an array: in host memory the same bytes, else a copy, which waits for the device."""
    return tensor.cpu().numpy()


def _real_requests(batch) -> int:
    """Requests of a batch without those at its end that pad it to a graph's size, which have no tokens."""
    starts = batch.query_start_loc_cpu[: batch.num_reqs + 1].tolist()
    n = batch.num_reqs
    while n > 0 and starts[n] == starts[n - 1]:
        n -= 1
    return n


class Engine:
    """What the two bindings have in common. A worker tells its engines of each step before any builder plans it."""

    def __init__(
        self,
        settings: Config,
        spec,
        device: torch.device,
        float8: Float8 | None = None,
        speculative_tokens: int = 0,
        graphs: Graphs | None = None,
    ) -> None:
        self.core = make_core(settings, spec, device, float8, speculative_tokens, graphs)
        self.float8 = float8
        self.dtype = float8.model_dtype if float8 else spec.dtype
        self.on_gpu = device.type == "cuda"
        self._device = device
        self._graphs = graphs
        self._capture_plan = None if graphs is None else _core.Plan()
        self._plans = [_core.Plan() for _ in range(_PLANS)]
        self._step = 0
        self._in_step = False

    def begin_step(self, scheduled) -> None:
        """`scheduled` is vLLM's SchedulerOutput. Without scheduled tokens vLLM makes dummy runs at most."""
        self._in_step = scheduled.total_num_scheduled_tokens > 0
        self._step += 1

    def end_step(self) -> None:
        self._in_step = False

    def plan_capture(self, num_tokens: int) -> Metadata:
        """For layers that are captured, or run to warm up, with tensors of `num_tokens` rows; or replayed, without a
        step."""
        self.core.plan_capture(self._capture_plan, num_tokens=num_tokens, stream=self._stream())
        return Metadata(self, self._capture_plan)

    def _plan(self, **batch) -> Metadata:
        plan = self._plans[self._step % _PLANS]
        self.core.plan_step(plan, **batch)
        if self._graphs is not None and self._graphs.tokens is not None:
            self.core.begin_step(plan, num_tokens=self._graphs.tokens, stream=self._stream())
        return Metadata(self, plan)

    def _stream(self) -> int:
        return torch.cuda.current_stream(self._device).cuda_stream


class IdentityEngine(Engine):
    """Identity binding for one attention group: vLLM's tensor is the cache, a block id is a slot in it.

    `host_tables` gives the group's block tables [rows, width] in host memory; then planning does not touch the device,
    and only steps that the worker announced are planned. Without it the batch's own tensors are read, each of them a
    step.
    """

    def __init__(
        self,
        settings: Config,
        spec,
        device: torch.device = torch.device("cpu"),
        host_tables: Callable[[], np.ndarray] | None = None,
        float8: Float8 | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        super().__init__(settings, spec, device, float8, graphs=graphs)
        self._cache_dtype = spec.dtype
        self._block_size = spec.block_size
        self._head_size = spec.head_size
        self._host_tables = host_tables
        self._indices: dict[int, int] = {}  # id(impl) -> layer; the impls are kept alive in _impls
        self._impls: list = []

    def plan(self, batch) -> Metadata | DummyMetadata:
        """Plans the step of vLLM's CommonAttentionMetadata."""
        n = batch.num_reqs if self._graphs is None else _real_requests(batch)
        causal = _causal(batch.causal)
        if self._host_tables is None:
            self._step += 1
            return self._plan(
                query_start=_to_host(batch.query_start_loc[: n + 1]),
                seq_lens=_to_host(batch.seq_lens[:n]),
                causal=causal,
                block_tables=_to_host(batch.block_table_tensor[:n]),
                slot_mapping=_to_host(batch.slot_mapping),
            )
        if not self._in_step:
            return DummyMetadata()  # a dummy run, with stale tables
        return self._plan(  # slots follow from the tables
            query_start=batch.query_start_loc_cpu[: n + 1].numpy(),
            seq_lens=batch.seq_lens_cpu_upper_bound[:n].numpy(),
            causal=causal,
            block_tables=self._host_tables()[:n],
        )

    def attach(self, impl, kv_cache: torch.Tensor, layer) -> None:
        """(Re)binds the impl of vLLM's module `layer` to its view [blocks, kv_heads, block_size, 2 * head_size] of the cache."""
        blocks, _, block_size, content = kv_cache.shape
        strides = kv_cache.stride()
        if block_size != self._block_size or content != 2 * self._head_size or strides[3] != 1:
            raise InvalidArgument(
                f"KV cache of shape {tuple(kv_cache.shape)} and strides {strides}; accepted: [blocks, kv_heads, "
                f"{self._block_size}, {2 * self._head_size}] with contiguous content"
            )
        if kv_cache.dtype is not self._cache_dtype:
            raise InvalidArgument(f"KV cache is {kv_cache.dtype}; accepted: {self._cache_dtype}")
        index = self._indices.get(id(impl))
        if index is None:
            index = add_layer(self.core, impl, layer, self.float8)
            self._indices[id(impl)] = index
            self._impls.append(impl)
        self.core.bind_identity(index, kv_cache.data_ptr(), blocks, strides[0], strides[1], strides[2])
        impl.bind(self.core, index, kv_cache)

    def close(self) -> None:
        for impl in self._impls:
            impl.unbind()
        self._impls.clear()
        self._indices.clear()
        self.core.close()


class TieredEngine(Engine):
    """Tiered binding of one worker: block ids range over all tiers, planning reads the host mirror only.

    `layers` are vLLM's modules in layer order, each with its impl and KV view; layers that share KV have the same view.
    `batch_order` gives the request ids of the step's rows, in the order of the step's tensors.
    """

    def __init__(
        self,
        settings: Config,
        spec,
        device: torch.device,
        layers: Iterable,
        num_blocks: int,
        speculative_tokens: int,
        batch_order: Callable[[], list[str]],
        float8: Float8 | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        super().__init__(settings, spec, device, float8, speculative_tokens, graphs)
        layers = list(layers)
        self._layers = [layer.impl for layer in layers]
        self._views = [layer.kv_cache for layer in layers]
        self._batch_order = batch_order
        self._check = settings.check
        self._key = None
        self._metadata = None
        self._numbers: dict[str, int] = {}  # vLLM's request id -> number in the mirror
        self._tables: dict[str, list[int]] = {}  # kept only for HYBRIDGEN_CHECK
        self._next_number = 1
        for index, layer in enumerate(layers):
            if add_layer(self.core, layer.impl, layer, float8) != index:
                raise FailedPrecondition("layers were added to the backend behind the worker's back")
            layer.impl.bind(self.core, index, layer.kv_cache)
        view = self._views[0]
        self.core.bind_tiered(
            data=[view.data_ptr() for view in self._views],
            bytes=num_blocks * view.stride(0) * view.element_size(),
            num_blocks=num_blocks,
        )

    def begin_step(self, scheduled) -> None:
        """Feeds vLLM's SchedulerOutput into the mirror."""
        if scheduled.kv_cache_block_copies or scheduled.new_block_ids_to_zero:
            raise Unimplemented("copying or zeroing KV blocks is not supported with host tiers")
        deltas = []
        for request in scheduled.finished_req_ids:
            self._drop(request, "finish", deltas)
        for request in scheduled.preempted_req_ids or ():
            self._drop(request, "preempt", deltas)
        for new in scheduled.scheduled_new_reqs:
            self._set(new.req_id, new.block_ids, deltas)
        cached = scheduled.scheduled_cached_reqs
        for request, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if request in cached.resumed_req_ids:
                self._set(request, blocks, deltas)
            elif blocks is not None and blocks[0]:
                deltas.append(("append", self._numbers[request], blocks[0]))
                if self._check:
                    self._tables[request].extend(blocks[0])
        if deltas:
            self.core.update_requests(deltas)
        super().begin_step(scheduled)

    def plan(self, batch) -> Metadata | DummyMetadata:
        """The step's plan; the same batch of the same step gives the same object."""
        if not self._in_step:
            return DummyMetadata()  # a dummy run: vLLM scheduled no request
        n = batch.num_reqs if self._graphs is None else _real_requests(batch)
        requests = tuple(self._batch_order()[:n])
        query_start = batch.query_start_loc_cpu[: n + 1].numpy()
        seq_lens = batch.seq_lens_cpu_upper_bound[:n].numpy()
        causal = _causal(batch.causal)
        key = (self._step, requests, query_start.tobytes(), seq_lens.tobytes(), causal)
        if key == self._key:
            return self._metadata
        if self._key is not None and self._key[0] == self._step:
            raise FailedPrecondition("one step brought two different batches, which host tiers do not support")
        if self._check:
            self._compare(batch, requests, seq_lens)
        self._metadata = self._plan(
            query_start=query_start,
            seq_lens=seq_lens,
            causal=causal,
            requests=np.fromiter((self._numbers[request] for request in requests), np.uint64, n),
        )
        self._key = key
        return self._metadata

    def attach(self, impl, kv_cache: torch.Tensor, layer) -> None:
        raise FailedPrecondition(
            "a layer came with a KV cache that the worker did not bind; with host tiers a layer's cache may not change"
        )

    def close(self) -> None:
        for impl in self._layers:
            impl.unbind()
        self._layers.clear()
        self._views.clear()
        self.core.close()

    def _set(self, request: str, blocks, deltas: list) -> None:
        number = self._numbers.get(request)
        if number is None:
            number = self._numbers[request] = self._next_number
            self._next_number += 1
        deltas.append(("set", number, blocks[0]))
        if self._check:
            self._tables[request] = list(blocks[0])

    def _drop(self, request: str, event: str, deltas: list) -> None:
        self._tables.pop(request, None)
        if event == "preempt":
            number = self._numbers.get(request)
        else:
            number = self._numbers.pop(request, None)
        if number is not None:
            deltas.append((event, number, ()))

    def _compare(self, batch, requests: tuple[str, ...], seq_lens: np.ndarray) -> None:
        """HYBRIDGEN_CHECK: the mirror against the engine's tensors, over the entries that the step may look at."""
        lens = _to_host(batch.seq_lens[: len(requests)])
        if not np.array_equal(lens, seq_lens):
            raise FailedPrecondition(f"sequence lengths on the host {seq_lens} differ from the tensors' {lens}")
        block_size = self._views[0].shape[2]
        for row, request in enumerate(requests):
            used = -(-int(seq_lens[row]) // block_size)
            tensor = batch.block_table_tensor[row, :used].tolist()
            if tensor != self._tables[request][:used]:
                raise FailedPrecondition(
                    f"block table of request {request} in the host mirror, {self._tables[request][:used]}, differs "
                    f"from the engine's, {tensor}"
                )
