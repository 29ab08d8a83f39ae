"""The native module: every bad argument is an exception of the right type that names the field; nothing crashes."""

import json
import os

import numpy as np
import pytest

from hybridgen import _core, errors

HEADS, DIMS, BLOCK = 2, 32, 16
GOOD = dict(
    device_kind="cpu", binding="identity", dtype="float32", num_kv_heads=HEADS, head_size=DIMS, block_size=BLOCK,
    executor="pool", num_threads=1,
)  # fmt: skip


def make(**changes) -> _core.Backend:
    return _core.Backend(**{**GOOD, **changes})


class Cache:
    """An identity-bound backend with one layer, and tensors for a sequence of 20 tokens of which 4 are new."""

    def __init__(self, blocks: int = 8, kv_dtype: str | None = None, **scales):
        self.core = make(kv_dtype=kv_dtype)
        self.layer = self.core.add_layer(num_query_heads=2 * HEADS, scale=DIMS**-0.5, **scales)
        self.pool = np.zeros((blocks, HEADS, BLOCK, 2 * DIMS), np.float32 if kv_dtype is None else np.uint8)
        self.bind()
        self.query = np.ones((4, 2 * HEADS, DIMS), np.float32)
        self.key = np.ones((4, HEADS, DIMS), np.float32)
        self.output = np.zeros_like(self.query)
        self.plan = _core.Plan()

    def bind(self, **changes):
        strides = [s // self.pool.itemsize for s in self.pool.strides]
        arguments = dict(layer=self.layer, data=self.pool.ctypes.data, num_blocks=len(self.pool),
                         block_stride=strides[0], head_stride=strides[1], token_stride=strides[2])  # fmt: skip
        self.core.bind_identity(**{**arguments, **changes})

    def step(self, **changes):
        arguments = dict(
            query_start=np.array([0, 4], np.int32),
            seq_lens=np.array([20], np.int32),
            block_tables=np.array([[3, 5]], np.int32),
        )
        self.core.plan_step(self.plan, **{**arguments, **changes})

    def forward(self, **changes):
        arguments = dict(
            plan=self.plan, layer=self.layer,
            query=self.query.ctypes.data, query_token_stride=2 * HEADS * DIMS, query_head_stride=DIMS,
            key=self.key.ctypes.data, key_token_stride=HEADS * DIMS, key_head_stride=DIMS,
            value=self.key.ctypes.data, value_token_stride=HEADS * DIMS, value_head_stride=DIMS,
            output=self.output.ctypes.data, output_token_stride=2 * HEADS * DIMS, output_head_stride=DIMS,
        )  # fmt: skip
        self.core.forward(**{**arguments, **changes})


@pytest.fixture
def cache():
    return Cache()


def test_good_input_attends(cache):
    cache.pool[[3, 5], :, :, DIMS:] = 1.0  # every value is 1, so is every average of them
    cache.step()
    cache.forward()
    np.testing.assert_allclose(cache.output, 1.0, rtol=1e-6)
    statistics = json.loads(cache.core.stats())
    assert statistics["forward_calls"] == 1 and statistics["binding"] == "identity"


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("device_kind", "tpu", "cpu, emulated, cuda"),
        ("binding", "both", "identity, tiered"),
        ("executor", "gomp", "auto, openmp, pool"),
        ("isa", "sse2", "auto, portable, avx2, avx512, avx512_vnni, avx512_bf16, amx_bf16"),
        ("dtype", "int8", "float32, float16, bfloat16"),
        ("kv_dtype", "float16", "float8_e4m3, float8_e5m2"),
        ("num_kv_heads", 0, ""),
        ("num_kv_heads", -4, ""),
        ("head_size", 33, "multiple"),
        ("head_size", 0, "multiple"),
        ("head_size", 264, "multiple"),
        ("block_size", 24, "multiple"),
        ("block_size", 0, "multiple"),
        ("num_threads", -1, ""),
        ("speculative_tokens", -1, ""),
        ("dram_bytes", -1, ""),
        ("cxl_bytes", -1, ""),
        ("placement", "spread", "auto, role, proportional, interleave"),
        ("page_digests", "always", "none, on_publish"),
        ("page_digests", "on_publish", "identity binding"),
        ("interleave_dram_weight", -1, "1 to 255"),
        ("cxl_gigabytes_per_second", -1.0, ""),
        ("streaming_share", 1.5, ""),
        ("streaming_share", float("nan"), ""),
        ("device_gigabytes_per_second", -1.0, ""),
        ("timeout_seconds", -1.0, ""),
    ],
)
def test_bad_configuration(field, value, accepted):
    with pytest.raises(errors.InvalidArgument) as caught:
        make(**{field: value})
    assert isinstance(caught.value, ValueError) and caught.value.code == 3
    assert field in str(caught.value) and accepted in str(caught.value)


def test_cuda_is_refused_by_name():
    """In the words that are to be had without trying."""
    problem = _core.cuda_problem()
    if problem is None:
        pytest.skip("this build has CUDA code and this machine a driver")
    assert problem.startswith("device kind cuda: ")
    with pytest.raises(errors.HybridGenError) as caught:
        make(device_kind="cuda", dtype="float16", head_size=64)
    assert str(caught.value) == problem and caught.value.code in (12, 14)


def test_tiered_binding_without_a_host_tier():
    """Tier sizes of zero: refused at the latest when the pool is bound."""
    with pytest.raises(errors.HybridGenError, match="dram_bytes|host"):
        core = make(binding="tiered", dram_bytes=0, cxl_bytes=0)
        core.add_layer(num_query_heads=2, scale=1.0)
        pool = np.zeros(4 * HEADS * BLOCK * 2 * DIMS, np.float32)
        core.bind_tiered(data=[pool.ctypes.data], bytes=pool.nbytes, num_blocks=100)


def test_page_digests_are_reserved_on_top_of_the_tiers():
    pool = np.zeros(4 * HEADS * BLOCK * 2 * DIMS, np.float32)
    for page_digests in ("none", "on_publish"):
        core = make(binding="tiered", dram_bytes=1 << 20, page_digests=page_digests)
        core.add_layer(num_query_heads=2, scale=1.0)
        core.bind_tiered(data=[pool.ctypes.data], bytes=pool.nbytes, num_blocks=16)
        digests = json.loads(core.stats()).get("page_digests")
        assert digests == (None if page_digests == "none" else {"reserved_bytes": 2 << 20, "blocks": 0, "seconds": 0.0})


def test_tier_larger_than_the_machine():
    """As many blocks of 4 MiB as 1 TiB holds."""
    core = make(binding="tiered", dram_bytes=1 << 40, num_kv_heads=16, head_size=256, block_size=128)
    core.add_layer(num_query_heads=16, scale=1.0)
    pool = np.zeros(1 << 20, np.float32)
    with pytest.raises(errors.ResourceExhausted) as caught:
        core.bind_tiered(data=[pool.ctypes.data], bytes=pool.nbytes, num_blocks=1 << 18)
    assert isinstance(caught.value, MemoryError) and caught.value.code == 8
    print(caught.value)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("num_query_heads", dict(num_query_heads=3)),
        ("num_query_heads", dict(num_query_heads=0)),
        ("soft_cap", dict(soft_cap=-1.0)),
        ("sliding_window", dict(sliding_window=-1)),
        ("alibi_slopes", dict(alibi_slopes=[1.0])),
        ("sinks", dict(sinks=[1.0, 2.0, 3.0])),
        ("k_scale", dict(k_scale=2.0)),  # KV is not float8
        ("v_scale", dict(v_scale=-1.0)),
    ],
)
def test_bad_layer(field, changes):
    with pytest.raises(errors.InvalidArgument, match=field):
        make().add_layer(**{**dict(num_query_heads=4, scale=1.0), **changes})


@pytest.mark.parametrize(
    ("field", "value"), [("k_scale", -1.0), ("k_scale", float("inf")), ("v_scale", float("nan"))]
)
def test_bad_scales_of_float8(field, value):
    with pytest.raises(errors.InvalidArgument, match=f"{field}.*positive finite"):
        make(kv_dtype="float8_e4m3").add_layer(num_query_heads=4, scale=1.0, **{field: value})


@pytest.mark.parametrize(("kv_dtype", "one"), [("float8_e4m3", 0x38), ("float8_e5m2", 0x3C)])
def test_float8_stores_a_byte_per_element_in_units_of_the_scale(kv_dtype, one):
    cache = Cache(kv_dtype=kv_dtype, k_scale=0.5, v_scale=4.0)
    cache.pool[[3, 5], :, :, DIMS:] = one  # every value is 4, so is every average of them
    cache.key[:] = 4.0
    cache.step()
    cache.forward()
    np.testing.assert_allclose(cache.output, 4.0, rtol=1e-6)
    new = cache.pool[5, :, :4]
    assert (new[..., DIMS:] == one).all()
    eight = one + (3 << (3 if kv_dtype == "float8_e4m3" else 2))  # 4 / 0.5: three exponents up
    assert (new[..., :DIMS] == eight).all() and not cache.pool[5, :, 4:, :DIMS].any()


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("layer", dict(layer=1)),
        ("layer", dict(layer=-1)),
        ("data", dict(data=0)),
        ("data", dict(data=None)),
        ("data", dict(data=-8)),
        ("data", dict(data="pool")),
        ("num_blocks", dict(num_blocks=0)),
        ("block -1", dict(block_stride=-1)),
        ("head -1", dict(head_stride=-1)),
        ("token -1", dict(token_stride=-1)),
    ],
)
def test_bad_pool(cache, field, changes):
    with pytest.raises(errors.InvalidArgument, match=field):
        cache.bind(**changes)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("block table entry", dict(block_tables=np.array([[3, -5]], np.int32))),
        ("block_tables", dict(block_tables=np.array([3, 5], np.int32))),
        ("block_tables", dict(block_tables=np.array([[3, 5]], np.int64))),
        ("block_tables", dict(block_tables=np.array([[3, 5], [1, 2]], np.int32))),
        ("block_tables", dict(block_tables=[[3, 5]])),
        ("block_tables", dict(block_tables=np.array([[3, 0, 5, 0]], np.int32)[:, ::2])),
        ("block_tables", dict(block_tables=None)),
        ("seq_len", dict(seq_lens=np.array([3], np.int32))),  # the query is longer
        ("seq_len", dict(seq_lens=np.array([-20], np.int32))),
        ("seq_lens", dict(seq_lens=np.array([20], np.float32))),
        ("seq_lens", dict(seq_lens=None)),
        ("query_start", dict(query_start=np.array([0], np.int32))),
        ("query_start", dict(query_start=np.array([4, 0], np.int32))),
        ("query_start", dict(query_start=np.array([1, 4], np.int32))),
        ("slot_mapping", dict(slot_mapping=np.array([1, 2, 3, 4], np.int32))),
        ("requests", dict(requests=np.array([9], np.int64), block_tables=None)),
    ],
)
def test_bad_step(cache, field, changes):
    with pytest.raises(errors.InvalidArgument, match=field):
        cache.step(**changes)
    # The backend works on.
    cache.step()
    cache.forward()


@pytest.mark.parametrize(
    "changes",
    [
        dict(block_tables=np.array([[3, 8]], np.int32)),
        dict(block_tables=np.array([[3, 1 << 30]], np.int32)),
        dict(slot_mapping=np.array([8 * BLOCK] * 4, np.int64)),
        dict(slot_mapping=np.array([1 << 33] * 4, np.int64)),
        dict(slot_mapping=np.array([1 << 60] * 4, np.int64)),
    ],
)
def test_block_beyond_the_layers_tensor(cache, changes):
    """A plan serves layers with tensors of any length, so the layer's call finds the bad id."""
    with pytest.raises(errors.InvalidArgument, match="block id|slot"):
        cache.step(**changes)
        cache.forward()
    cache.step()
    cache.forward()


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("query", dict(query=0)),
        ("query", dict(query=None)),
        ("output", dict(output=None)),
        ("output", dict(output=1.5)),
        ("key", dict(key=None)),  # a value without its key
        ("value", dict(value=None)),
        ("layer", dict(layer=7)),
        ("layer", dict(layer=-1)),
        ("query", dict(query_head_stride=-3)),
        ("key", dict(key_token_stride=-3)),
        ("output", dict(output_token_stride=-3)),
    ],
)
def test_bad_forward(cache, field, changes):
    cache.step()
    with pytest.raises(errors.InvalidArgument, match=field):
        cache.forward(**changes)
    cache.forward()


def test_plan_of_another_backend_and_no_plan(cache):
    other = Cache()
    other.step()
    with pytest.raises(errors.InvalidArgument, match="another backend"):
        cache.forward(plan=other.plan)
    with pytest.raises(errors.InvalidArgument, match="not planned"):
        cache.forward(plan=_core.Plan())
    with pytest.raises(errors.InvalidArgument, match="another backend"):
        cache.core.plan_step(other.plan, query_start=np.array([0, 4], np.int32), seq_lens=np.array([20], np.int32))
    with pytest.raises(TypeError, match="plan"):
        cache.forward(plan=None)


@pytest.mark.parametrize(
    ("field", "deltas"),
    [
        ("event", [("begin", 1, [1])]),
        ("block", [("set", 1, [100])]),
        ("block", [("set", 1, [-2])]),
        ("request", [("append", 77, [1])]),
    ],
)
def test_bad_deltas(field, deltas):
    core = make(binding="tiered", dram_bytes=1 << 20)
    core.add_layer(num_query_heads=2, scale=1.0)
    pool = np.zeros(4 * HEADS * BLOCK * 2 * DIMS, np.float32)
    core.bind_tiered(data=[pool.ctypes.data], bytes=pool.nbytes, num_blocks=20)
    with pytest.raises(errors.HybridGenError, match=field):
        core.update_requests(deltas)
    with pytest.raises(TypeError):
        core.update_requests([("set", "one", [1])])


def test_closed_backend(cache):
    cache.step()
    cache.core.close()
    cache.core.close()
    for call in (cache.step, cache.forward, cache.bind, cache.core.stats):
        with pytest.raises(errors.FailedPrecondition, match="closed"):
            call()


def test_plan_outlives_its_backend(cache):
    cache.step()
    plan = cache.plan
    del cache.core
    del plan


def test_forked_child_gets_an_error(cache):
    cache.step()
    child = os.fork()
    if child == 0:
        try:
            cache.forward()
            os._exit(1)
        except errors.FailedPrecondition:
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cache.forward()


def test_streaming_share(cache):
    cache.core.set_streaming_share(0.5)
    with pytest.raises(errors.InvalidArgument, match="share"):
        cache.core.set_streaming_share(2.0)


def test_exceptions_by_status():
    for code, builtin in {3: ValueError, 8: MemoryError, 9: RuntimeError, 12: NotImplementedError}.items():
        error = errors.from_status(code, "text")
        assert isinstance(error, builtin) and isinstance(error, errors.HybridGenError) and error.code == code
    assert errors.from_status(13, "text").code == 13
