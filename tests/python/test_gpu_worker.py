"""The GPU worker, its engines and the layer's call, over vLLM's real worker class and stand-ins for the device: tensors
that cannot be read, streams that are numbers, a model runner that makes two layers, and a library that records."""

import inspect
import typing
from types import SimpleNamespace

import cuda_platform
import numpy as np
import pytest
import torch
from cuda_platform import Core, CudaTensor, Streams

cuda_platform.install()

import vllm.v1.worker.gpu_worker as vllm_worker
from vllm.config import CUDAGraphMode, DeviceConfig, VllmConfig
from vllm.forward_context import BatchDescriptor
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from hybridgen import config, engine
from hybridgen.backend import HybridGenImpl, HybridGenMetadataBuilder
from hybridgen.errors import FailedPrecondition, InvalidArgument, Unimplemented
from hybridgen.gpu_worker import HybridGenGpuWorker

DEVICE = torch.device("cuda:1")
HEADS, KV_HEADS, SIZE, BLOCK, BLOCKS = 4, 2, 64, 16, 8
NAMES = ["model.layers.0.attn", "model.layers.1.attn"]
STREAM = 0x5EED0


class Unreadable:
    """A tensor of the batch in device memory: any use of it would wait for the device."""

    def __getattr__(self, name: str):
        raise AssertionError(f"planning used {name} of a tensor in device memory")

    def __getitem__(self, index):
        raise AssertionError("planning indexed a tensor in device memory")


def batch(query_start, seq_lens, causal=True):
    """vLLM's CommonAttentionMetadata as a GPU's model runner fills it."""
    return SimpleNamespace(
        num_reqs=len(seq_lens), causal=causal, num_actual_tokens=query_start[-1],
        query_start_loc_cpu=torch.tensor(query_start, dtype=torch.int32),
        seq_lens_cpu_upper_bound=torch.tensor(seq_lens, dtype=torch.int32),
        query_start_loc=Unreadable(), seq_lens=Unreadable(), block_table_tensor=Unreadable(), slot_mapping=Unreadable(),
    )  # fmt: skip


def cache_tensor(address: int, content: int = 2 * SIZE, dtype: torch.dtype = torch.bfloat16) -> CudaTensor:
    shape = (BLOCKS, KV_HEADS, BLOCK, content)
    return CudaTensor(address, shape, (KV_HEADS * BLOCK * content, BLOCK * content, content, 1), dtype)


def rows(address: int, heads: int, tokens: int = 3, row: int | None = None) -> CudaTensor:
    """[tokens][heads][SIZE]; `row` is the distance of two tokens where they lie in a wider tensor."""
    return CudaTensor(address, (tokens, heads, SIZE), (row or heads * SIZE, SIZE, 1))


def settings(**changes) -> config.Config:
    loaded = config.load({}, {"device_kind": "cuda", "dram": 0, "cxl": 0, **changes})
    return loaded if loaded.tiered else config.identity(loaded)


def scheduled(new=(), cached=None, tokens: int = 1, **changes) -> SchedulerOutput:
    """vLLM's SchedulerOutput. `new`: (request, blocks); `cached`: (request, new blocks or None)."""
    made = SchedulerOutput.make_empty()
    made.total_num_scheduled_tokens = tokens
    made.scheduled_new_reqs = [
        NewRequestData(req_id=request, prompt_token_ids=[1], mm_features=[], sampling_params=None, pooling_params=None,
                       block_ids=(blocks,), num_computed_tokens=0, lora_request=None)
        for request, blocks in new
    ]  # fmt: skip
    made.scheduled_cached_reqs = CachedRequestData.make_empty()
    for request, blocks in (cached or {}).items():
        made.scheduled_cached_reqs.req_ids.append(request)
        made.scheduled_cached_reqs.new_block_ids.append(None if blocks is None else (blocks,))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    Core.made.clear()
    monkeypatch.setattr(engine._core, "Backend", Core)
    monkeypatch.setattr(engine._core, "Plan", lambda: object())
    monkeypatch.setattr(torch.cuda, "current_stream", Streams(STREAM))
    monkeypatch.setattr(vllm_worker, "get_pp_group", lambda: SimpleNamespace(is_first_rank=True, is_last_rank=True))


class Runner:
    """What the worker uses of vLLM's V1 GPU model runner."""

    def __init__(self, vllm_config) -> None:
        self.vllm_config = vllm_config
        self.attn_groups: list = []
        self.input_batch = SimpleNamespace(req_ids=[], block_table=[])
        self.steps: list = []  # of each: (batch, dummy run or not)
        self.outputs: list = []
        self.next_address = 0x10000
        self.layers = vllm_config.compilation_config.static_forward_context
        for name in NAMES:
            self.layers[name] = SimpleNamespace(impl=HybridGenImpl(HEADS, SIZE, SIZE**-0.5, KV_HEADS), kv_cache=[])

    def _determine_batch_execution_and_padding(self, num_tokens: int) -> tuple:
        """vLLM's decision: with full graphs, one of 4 tokens for as many decodes."""
        if num_tokens <= 4 and self.vllm_config.compilation_config.cudagraph_mode.has_full_cudagraphs():
            return CUDAGraphMode.FULL, SimpleNamespace(num_tokens=4), False, None, None
        return CUDAGraphMode.NONE, SimpleNamespace(num_tokens=num_tokens), False, None, None

    def get_kv_cache_spec(self) -> dict:
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=KV_HEADS, head_size=SIZE, dtype=torch.bfloat16)
        return dict.fromkeys(NAMES, spec)

    def initialize_kv_cache(self, kv_cache_config, is_profiling=False, kv_cache_allocation_context=None) -> None:
        assert not self.attn_groups, "vLLM refuses this too"
        self.kv_cache_config = kv_cache_config
        for group in kv_cache_config.kv_cache_groups:
            builder = HybridGenMetadataBuilder(group.kv_cache_spec, group.layer_names, self.vllm_config, DEVICE)
            self.attn_groups.append([SimpleNamespace(layer_names=group.layer_names, metadata_builders=[builder])])
            tables = np.arange(4 * BLOCKS, dtype=np.int32).reshape(4, BLOCKS)
            self.input_batch.block_table.append(SimpleNamespace(get_numpy_array=lambda tables=tables: tables))
            for name in group.layer_names:
                dtype = group.kv_cache_spec.dtype
                content = group.kv_cache_spec.state_content_size_bytes // dtype.itemsize
                self.layers[name].kv_cache = cache_tensor(self.next_address, content, dtype)
                self.next_address += 0x100000

    def cleanup(self) -> None:
        """After profiling, and so that the cache can be made again."""
        self.attn_groups.clear()
        self.input_batch.block_table.clear()
        for layer in self.layers.values():
            layer.kv_cache = []

    def run(self, step, capture: bool = False, replay: bool = False) -> None:
        builder = self.attn_groups[0][0].metadata_builders[0]
        metadata = builder.build_for_cudagraph_capture(step) if capture else builder.build(0, step)
        if replay:  # which runs no Python
            return
        for name in NAMES:
            layer = self.layers[name]
            output = rows(0x9000, HEADS)
            layer.impl.forward(layer, rows(0x6000, HEADS), rows(0x7000, KV_HEADS), rows(0x8000, KV_HEADS),
                               layer.kv_cache, metadata, output)  # fmt: skip
            self.outputs.append(output)

    def execute_model(self, scheduler_output, intermediate_tensors=None):
        mode = self._determine_batch_execution_and_padding(scheduler_output.total_num_scheduled_tokens)[0]
        self.run(self.steps.pop(0), replay=mode == CUDAGraphMode.FULL)

    def shutdown(self) -> None:
        self.cleanup()


def kv_cache_config(spec=None, groups=(NAMES,)) -> KVCacheConfig:
    spec = spec or FullAttentionSpec(block_size=BLOCK, num_kv_heads=KV_HEADS, head_size=SIZE, dtype=torch.bfloat16)
    return KVCacheConfig(
        num_blocks=BLOCKS, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(list(names), spec) for names in groups]
    )


def make_worker(**changes) -> HybridGenGpuWorker:
    """A worker as the engine core leaves it once the model is loaded."""
    vllm_config = VllmConfig(device_config=DeviceConfig(device="cpu"))  # there is no CUDA for torch to start
    resolved = settings(**changes)
    vllm_config.additional_config = {config.RESOLVED_KEY: vars(resolved)}
    vllm_config.cache_config.kv_cache_memory_bytes = BLOCKS * 2 * KV_HEADS * BLOCK * 4 * SIZE
    vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.NONE
    vllm_config.compilation_config.static_forward_context = {}
    vllm_config.model_config = SimpleNamespace(enable_cumem_allocator=False)
    worker = HybridGenGpuWorker.__new__(HybridGenGpuWorker)
    worker.__dict__.update(
        vllm_config=vllm_config, cache_config=vllm_config.cache_config, rank=0, device=DEVICE, profiler=None,
        compilation_config=vllm_config.compilation_config, parallel_config=vllm_config.parallel_config,
        model_config=vllm_config.model_config, _pp_send_work=[], use_v2_model_runner=False,
        model_runner=Runner(vllm_config), elastic_ep_executor=SimpleNamespace(shutdown=lambda: None),
    )  # fmt: skip
    return worker


@pytest.fixture
def worker_of(monkeypatch):
    """Makes workers through HybridGen's own __init__; vLLM's would start CUDA."""

    def make(**changes) -> HybridGenGpuWorker:
        prepared = make_worker(**changes)
        monkeypatch.setattr(
            vllm_worker.Worker, "__init__", lambda self, *arguments: self.__dict__.update(prepared.__dict__)
        )
        return HybridGenGpuWorker(prepared.vllm_config, 0, 0, "")

    return make


def test_the_layers_call_passes_addresses_strides_and_the_current_stream():
    impl = HybridGenImpl(HEADS, SIZE, SIZE**-0.5, KV_HEADS)
    made = engine.IdentityEngine(settings(), kv_cache_config().kv_cache_groups[0].kv_cache_spec, DEVICE, lambda: tables)
    tables = np.array([[3, 4], [5, 6]], np.int32)
    cache = cache_tensor(0x10000)
    made.begin_step(scheduled())
    metadata = made.plan(batch([0, 2, 3], [20, 1]))

    width = (HEADS + 2 * KV_HEADS) * SIZE  # q, k and v are views of one tensor, as vLLM makes them
    output = rows(0x9000, HEADS, tokens=8)  # padded to a captured graph's size
    answer = impl.forward(None, rows(0x6000, HEADS, 8, width), rows(0x7000, KV_HEADS, 8, width),
                          rows(0x8000, KV_HEADS, 8, width), cache, metadata, output)  # fmt: skip
    assert answer is output and impl.num_calls == 1
    core = made.core
    assert core.config["device_kind"] == "cuda" and core.config["cuda_device"] == 1
    assert core.named("bind_identity") == [
        ("bind_identity", 0, 0x10000, BLOCKS, KV_HEADS * BLOCK * 2 * SIZE, BLOCK * 2 * SIZE, 2 * SIZE)
    ]
    assert core.named("forward") == [
        ("forward", metadata.plan, 0, 0x6000, width, SIZE, 0x7000, width, SIZE, 0x8000, width, SIZE,
         0x9000, HEADS * SIZE, SIZE, STREAM)
    ]  # fmt: skip
    assert torch.cuda.current_stream.devices == [DEVICE]
    torch.cuda.current_stream.current = 0x77  # asked for anew by every layer
    impl.forward(None, rows(0x6000, HEADS), None, None, cache, metadata, rows(0x9000, HEADS))
    assert core.named("forward")[1][3:] == (0x6000, HEADS * SIZE, SIZE, None, 0, 0, None, 0, 0, 0x9000, HEADS * SIZE,
                                            SIZE, 0x77)  # fmt: skip


def test_planning_reads_nothing_in_device_memory():
    tables = np.array([[3, 4], [5, 6], [0, 0]], np.int32)
    made = engine.IdentityEngine(settings(), kv_cache_config().kv_cache_groups[0].kv_cache_spec, DEVICE, lambda: tables)
    assert made.plan(batch([0, 2, 3], [20, 1])).plan is None  # outside a step: a dummy run
    made.begin_step(scheduled(tokens=0))
    assert made.plan(batch([0, 2, 3], [20, 1])).plan is None
    made.end_step()
    assert not made.core.named("plan_step")
    for number in range(4):
        made.begin_step(scheduled())
        metadata = made.plan(batch([0, 2, 3], [20 + number, 1]))
        made.end_step()
        _, plan, arguments = made.core.named("plan_step")[number]
        assert plan is metadata.plan and "slot_mapping" not in arguments
        assert arguments["query_start"].tolist() == [0, 2, 3] and arguments["seq_lens"].tolist() == [20 + number, 1]
        assert arguments["block_tables"].tolist() == [[3, 4], [5, 6]]
    plans = [call[1] for call in made.core.named("plan_step")]
    assert len({id(plan) for plan in plans[:3]}) == 3 and plans[3] is plans[0]  # two steps may be unfinished


def test_without_the_worker_tensors_are_copied_to_the_host():
    """As vLLM's own backend test calls the builder."""
    made = engine.IdentityEngine(settings(), kv_cache_config().kv_cache_groups[0].kv_cache_spec, DEVICE)
    copies = []

    class OnDevice:
        def __init__(self, values, dtype=torch.int32) -> None:
            self.host = torch.tensor(values, dtype=dtype)

        def __getitem__(self, index):
            part = OnDevice([])
            part.host = self.host[index]
            return part

        def cpu(self):
            copies.append(self)
            return self.host

    made.plan(SimpleNamespace(
        num_reqs=1, causal=True, query_start_loc=OnDevice([0, 2]), seq_lens=OnDevice([18]),
        block_table_tensor=OnDevice([[3, 4], [0, 0]]), slot_mapping=OnDevice([64, 65], torch.int64),
    ))  # fmt: skip
    _, _, arguments = made.core.named("plan_step")[0]
    assert len(copies) == 4 and arguments["slot_mapping"].tolist() == [64, 65]
    assert arguments["block_tables"].tolist() == [[3, 4]]


@pytest.mark.parametrize("kind", ["cpu", "emulated"])
def test_kinds_of_the_cpu_refuse_cuda_tensors(kind):
    with pytest.raises(InvalidArgument, match=f"device kind {kind} with tensors in cuda memory; accepted: cuda"):
        engine.make_core(settings(device_kind=kind), kv_cache_config().kv_cache_groups[0].kv_cache_spec, DEVICE)
    with pytest.raises(InvalidArgument, match="device kind cuda with tensors in cpu memory"):
        spec = kv_cache_config().kv_cache_groups[0].kv_cache_spec
        engine.make_core(settings(), spec, torch.device("cpu"))


def test_the_real_worker_is_the_base():
    assert HybridGenGpuWorker.__mro__[2] is vllm_worker.Worker
    for name in ("initialize_from_config", "get_kv_cache_spec", "execute_model", "sleep", "wake_up", "discard",
                 "shutdown", "get_supported_kv_cache_layouts"):  # fmt: skip
        assert callable(getattr(vllm_worker.Worker, name))


def test_identity_binds_after_the_profiling_cache_and_again(worker_of):
    worker = worker_of()
    runner = worker.model_runner
    # vLLM's profiling of graphs makes a minimal cache behind the worker's back, and takes it away again.
    runner.initialize_kv_cache(kv_cache_config(), is_profiling=True)
    assert not Core.made
    runner.cleanup()

    worker.initialize_from_config(kv_cache_config())
    first = Core.made[0]
    assert len(Core.made) == 1 and [call[2] for call in first.named("bind_identity")] == [0x210000, 0x310000]
    runner.run(batch([0, 1], [5]))  # warm-up: a dummy run outside a step
    assert not first.named("plan_step") and all(output.filled == 0 for output in runner.outputs)

    runner.steps = [batch([0, 1, 3], [5, 9])]
    worker.execute_model(scheduled(new=[("a", [1]), ("b", [2])], tokens=3))
    _, _, arguments = first.named("plan_step")[0]
    assert arguments["block_tables"].tolist() == np.arange(2 * BLOCKS).reshape(2, BLOCKS).tolist()
    assert [call[2] for call in first.named("forward")] == [0, 1]
    assert len(first.named("bind_identity")) == 2  # the layer path binds nothing

    runner.cleanup()
    worker.initialize_from_config(kv_cache_config())
    assert first.closed and len(Core.made) == 2 and not Core.made[1].closed
    runner.steps = [batch([0, 1], [5])]
    worker.execute_model(scheduled())
    assert len(first.named("forward")) == 2 and len(Core.made[1].named("forward")) == 2


@pytest.mark.parametrize("dram", [0, "64K"], ids=["identity", "tiered"])
def test_float8_goes_to_the_library_with_the_scales_of_the_layers(worker_of, dram):
    worker = worker_of(dram=dram)
    worker.vllm_config.cache_config.cache_dtype = "fp8_e5m2"
    worker.vllm_config.model_config.dtype = torch.bfloat16
    for number, name in enumerate(NAMES):
        layer = worker.model_runner.layers[name]
        layer._k_scale_float, layer._v_scale_float = 0.5 + number, 2.0 + number
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=KV_HEADS, head_size=SIZE, dtype=torch.uint8)
    worker.initialize_from_config(kv_cache_config(spec))
    core = Core.made[-1]
    assert core.config["dtype"] == "bfloat16" and core.config["kv_dtype"] == "float8_e5m2"
    scales = [(layer["k_scale"], layer["v_scale"]) for _, layer in core.named("add_layer")]
    assert scales == [(0.5, 2.0), (1.5, 3.0)]
    worker.model_runner.steps = [batch([0, 1], [5])]  # queries are of the model's dtype
    worker.model_runner.input_batch.req_ids = ["a"]
    worker.execute_model(scheduled(new=[("a", [1])]))
    assert len(core.named("forward")) == len(NAMES)


def test_identity_has_an_engine_for_each_kv_cache_group(worker_of):
    worker = worker_of()
    worker.initialize_from_config(kv_cache_config(groups=[NAMES[:1], NAMES[1:]]))
    builders = [groups[0].metadata_builders[0] for groups in worker.model_runner.attn_groups]
    assert len(Core.made) == 2 and builders[0].engine.core is not builders[1].engine.core
    worker.model_runner.input_batch.block_table[1] = SimpleNamespace(
        get_numpy_array=lambda: np.full((1, 2), 7, np.int32)
    )
    for made in worker._engines:
        made.begin_step(scheduled())
    for builder in builders:
        builder.build(0, batch([0, 1], [5]))
    tables = [core.named("plan_step")[0][2]["block_tables"].tolist() for core in Core.made]
    assert tables == [[list(range(BLOCKS))], [[7, 7]]]


def test_vllms_runner_decides_before_it_asks_for_metadata():
    """What the worker follows: the mode and the padded size come first in the decision."""
    source = inspect.getsource(GPUModelRunner.execute_model)
    assert 0 < source.index("_determine_batch_execution_and_padding(") < source.index("_build_attention_metadata(")
    decide = inspect.signature(GPUModelRunner._determine_batch_execution_and_padding)
    assert typing.get_args(decide.return_annotation)[:2] == (CUDAGraphMode, BatchDescriptor)


@pytest.mark.parametrize("tiered", [False, True])
def test_full_graphs_are_captured_and_each_step_taken_up_before_its_replay(worker_of, tiered):
    worker = worker_of(full_graphs=1, dram="64K" if tiered else 0)
    worker.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY
    worker.compilation_config.max_cudagraph_capture_size = 8
    worker.vllm_config.scheduler_config.max_num_seqs = 4
    worker.model_config.max_model_len = 5 * BLOCK - 1
    worker.cache_config.block_size = BLOCK
    runner = worker.model_runner
    # Graphs whose memory is measured hold no attention.
    runner.initialize_kv_cache(kv_cache_config(), is_profiling=True)
    runner.run(batch([0, 1, 2, 3, 4], [1, 1, 1, 1]))
    runner.run(batch([0, 1, 2, 3, 4], [1, 1, 1, 1]), capture=True)
    assert not Core.made and all(output.filled == 0 for output in runner.outputs)
    runner.cleanup()

    worker.initialize_from_config(kv_cache_config(next(iter(worker.get_kv_cache_spec().values()))))
    core = Core.made[0]
    assert core.config["graph_tokens"] == 4 and core.config["graph_pages"] == 4 * 5
    runner.run(batch([0, 1, 2, 3, 4], [1, 1, 1, 1]), capture=True)
    [(_, plan, arguments)] = core.named("plan_capture")
    assert arguments == {"num_tokens": 4, "stream": STREAM}
    assert [call[1] for call in core.named("forward")] == [plan, plan]

    # Three decodes, padded to four by requests without tokens.
    runner.input_batch.req_ids = ["a", "b", "c"]
    runner.steps = [batch([0, 1, 2, 3, 3], [5, 9, 2, 0]), batch([0, 6], [6])]
    worker.execute_model(scheduled(new=[("a", [1]), ("b", [2]), ("c", [3])], tokens=3))
    _, plan, arguments = core.named("plan_step")[0]
    assert arguments["seq_lens"].tolist() == [5, 9, 2]
    assert core.named("begin_step") == [("begin_step", plan, {"num_tokens": 4, "stream": STREAM})]
    assert core.calls[-1][0] == "begin_step", "nothing between the begin and the replay"

    # A prefill runs eagerly, and takes its step up by itself.
    runner.input_batch.req_ids = ["d"]
    worker.execute_model(scheduled(new=[("d", [4])], tokens=6))
    assert len(core.named("begin_step")) == 1 and len(core.named("forward")) == 4


def tiered_worker(worker_of):
    worker = worker_of(dram="64K")
    spec = next(iter(worker.get_kv_cache_spec().values()))
    worker.initialize_from_config(kv_cache_config(spec))
    return worker, spec


def test_tiered_declares_less_content_and_binds_addresses(worker_of):
    worker, spec = tiered_worker(worker_of)
    assert spec.state_content_size_bytes < 2 * 2 * SIZE
    core = Core.made[0]
    assert core.config["binding"] == "tiered" and core.config["dram_bytes"] == 64 << 10
    [(_, arguments)] = core.named("bind_tiered")
    assert arguments["data"] == [0x10000, 0x110000] and arguments["num_blocks"] == BLOCKS
    assert arguments["bytes"] == BLOCKS * KV_HEADS * BLOCK * spec.state_content_size_bytes


def test_tiered_plans_from_the_mirror_in_the_order_of_the_batch(worker_of):
    worker, _ = tiered_worker(worker_of)
    core, runner = Core.made[0], worker.model_runner
    runner.input_batch.req_ids = ["b", "a"]
    runner.steps = [batch([0, 1, 3], [5, 9])]
    worker.execute_model(scheduled(new=[("a", [1]), ("b", [2])], tokens=3))
    assert core.named("update_requests")[0][1] == [("set", 1, [1]), ("set", 2, [2])]
    _, _, arguments = core.named("plan_step")[0]
    assert arguments["requests"].tolist() == [2, 1]
    assert "block_tables" not in arguments and "slot_mapping" not in arguments
    assert [call[2] for call in core.named("forward")] == [0, 1]

    # The next step is planned while this one runs on the device; a request has finished, another grew.
    runner.input_batch.req_ids = ["b"]
    runner.steps = [batch([0, 1], [17])]
    worker.execute_model(scheduled(cached={"b": [3]}, finished_req_ids={"a"}))
    assert core.named("update_requests")[1][1] == [("finish", 1, ()), ("append", 2, [3])]
    assert core.named("plan_step")[1][1] is not core.named("plan_step")[0][1]


def test_tiered_binds_anew(worker_of):
    worker, spec = tiered_worker(worker_of)
    worker.model_runner.cleanup()
    worker.initialize_from_config(kv_cache_config(spec))
    assert Core.made[0].closed and Core.made[1].named("bind_tiered")[0][1]["data"] == [0x210000, 0x310000]


def test_tiered_refuses_foreign_layers_and_more_groups(worker_of):
    worker = worker_of(dram="64K")
    spec = next(iter(worker.get_kv_cache_spec().values()))
    with pytest.raises(Unimplemented, match="one KV cache group, this model has 2"):
        worker.initialize_from_config(kv_cache_config(spec, groups=[NAMES[:1], NAMES[1:]]))
    worker.model_runner.cleanup()
    worker.model_runner.layers["draft.attn"] = SimpleNamespace(impl=object(), kv_cache=[torch.ones(1)])
    with pytest.raises(Unimplemented, match=r"draft\.attn is not"):
        worker.initialize_from_config(kv_cache_config(spec))


def test_tiered_takes_layouts_whose_layers_are_one_run(worker_of, monkeypatch):
    every = ["LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"]
    monkeypatch.setattr(vllm_worker.Worker, "get_supported_kv_cache_layouts", lambda self: every)
    assert worker_of(dram="64K").get_supported_kv_cache_layouts() == ["LBHNC", "LBNHC"]
    assert worker_of().get_supported_kv_cache_layouts() == every


@pytest.mark.parametrize(("call", "arguments"), [("sleep", ()), ("wake_up", ()), ("discard", (("kv_cache",),))])
def test_sleep_mode_is_refused(worker_of, call, arguments):
    with pytest.raises(Unimplemented, match="sleep mode"):
        getattr(worker_of(), call)(*arguments)


def test_shutdown_closes_the_engines_before_the_cache_goes(worker_of, monkeypatch):
    worker = worker_of()
    worker.initialize_from_config(kv_cache_config())
    order = []
    monkeypatch.setattr(Core, "close", lambda self: order.append("library"))
    monkeypatch.setattr(vllm_worker.Worker, "shutdown", lambda self: order.append("vLLM"))
    worker.shutdown()
    assert order[-1] == "vLLM" and order[0] == "library"
