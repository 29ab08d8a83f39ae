"""A prefill chunk through HybridGen's backend and through vLLM's CPU op, alternately in one run.

    PYTHONPATH=<unpacked wheel> python tests/bench/compare_prefill.py --cases bfloat16:8192,float16:8192,float32:8192

Each call writes the K and V of the chunk and attends it, causally, over a context that is in the cache: `hybridgen` is
the whole layer call that vLLM makes (HybridGenImpl.forward, `cpu` kind, the engine's tensor), `vllm` is
`cpu_attn_reshape_and_cache` and `cpu_attention_with_kv_cache` on its own cache. Rates are multiply-adds of visible pairs,
two operations each; both results are verified first. Rounds in which the machine was not quiet are dropped and counted.
"""

import argparse
import os
import pathlib
import sys
import time
from types import SimpleNamespace

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import sampling

_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def _data(torch, arguments, dtype, length):
    """Query of the chunk, K and V of the whole context: [token, head, dim]."""
    generator = torch.Generator().manual_seed(arguments.seed)
    shape = (length, arguments.kv_heads, arguments.head_size)
    keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    query = torch.randn(arguments.chunk, arguments.heads, arguments.head_size, generator=generator).to(dtype)
    return query, keys, values


def _verify(torch, name, output, query, keys, values, dtype):
    """Some rows of the chunk against the definition in double."""
    length, kv_heads, size = keys.shape
    chunk = query.shape[0]
    for token in (0, chunk // 2, chunk - 1):
        seen = length - chunk + token + 1
        grouped = query[token].double().view(kv_heads, -1, size)
        logits = torch.einsum("hgd,thd->hgt", grouped, keys[:seen].double()) * size**-0.5
        expected = torch.einsum("hgt,thd->hgd", logits.softmax(-1), values[:seen].double()).reshape(-1, size)
        error = (output[token].double() - expected).abs().max().item()
        if not error <= _TOLERANCE[dtype]:
            sys.exit(f"wrong result of {name}, token {token}: off by {error}, tolerance {_TOLERANCE[dtype]}")


def hybridgen_call(torch, arguments, dtype, length, query, keys, values, output):
    """The layer call of the chunk, over a context that has been written."""
    from hybridgen import config
    from hybridgen.backend import HybridGenImpl
    from hybridgen.engine import IdentityEngine

    block, kv_heads, size = arguments.block_size, arguments.kv_heads, arguments.head_size
    settings = config.identity(config.load({}, {"device_kind": "cpu", "threads": arguments.threads}))
    spec = SimpleNamespace(dtype=dtype, num_kv_heads=kv_heads, head_size=size, head_size_v=size, block_size=block)
    engine = IdentityEngine(settings, spec)
    impl = HybridGenImpl(arguments.heads, size, size**-0.5, kv_heads)
    blocks = -(-length // block)
    cache = torch.zeros(blocks + 1, kv_heads, block, 2 * size, dtype=dtype)  # block 0 is vLLM's null block
    table = torch.randperm(blocks, generator=torch.Generator().manual_seed(3)).to(torch.int32)[None] + 1

    def plan(first: int, last: int):
        position = torch.arange(first, last)
        slots = table[0, position // block].long() * block + position % block
        metadata = SimpleNamespace(
            num_reqs=1, causal=True, query_start_loc=torch.tensor([0, last - first], dtype=torch.int32),
            seq_lens=torch.tensor([last], dtype=torch.int32), block_table_tensor=table, slot_mapping=slots,
        )  # fmt: skip
        return engine.plan(metadata)

    def call(first: int, last: int, q, out) -> None:
        impl.forward(None, q, keys[first:last], values[first:last], cache, plan(first, last), out)

    first = length - arguments.chunk
    for begin in range(0, first, arguments.chunk):
        call(begin, begin + arguments.chunk, query, torch.empty_like(query))
    return lambda: call(first, length, query, output)


def vllm_call(torch, arguments, dtype, length, query, keys, values, output):
    """The same through vLLM's CPU op."""
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    if hasattr(torch.cpu, "_init_amx"):
        torch.cpu._init_amx()
    current_platform.import_kernels()
    block, kv_heads, size, chunk = arguments.block_size, arguments.kv_heads, arguments.head_size, arguments.chunk
    blocks = -(-length // block)
    cache = torch.zeros(blocks, kv_heads, block, 2 * size, dtype=dtype)
    key_cache, value_cache = cache.view(blocks, kv_heads, 2 * block, size).chunk(2, dim=2)
    table = torch.randperm(blocks, generator=torch.Generator().manual_seed(4)).to(torch.int32)[None]
    position = torch.arange(length)
    slots = table[0, position // block].long() * block + position % block
    first = length - chunk
    ops.cpu_attn_reshape_and_cache(keys[:first], values[:first], key_cache, value_cache, slots[:first], arguments.vllm_isa)
    starts, lengths = torch.tensor([0, chunk], dtype=torch.int32), torch.tensor([length], dtype=torch.int32)
    metadata = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=1, num_heads=arguments.heads, num_kv_heads=kv_heads, head_dim=size, seq_lens=lengths, dtype=dtype,
        query_start_loc=starts, causal=True, sliding_window_size=-1, isa=arguments.vllm_isa, enable_kv_split=True,
    )  # fmt: skip

    def call() -> None:
        ops.cpu_attn_reshape_and_cache(
            keys[first:], values[first:], key_cache, value_cache, slots[first:], arguments.vllm_isa
        )
        ops.cpu_attention_with_kv_cache(
            query=query, key_cache=key_cache, value_cache=value_cache, output=output, query_start_loc=starts,
            seq_lens=lengths, scale=size**-0.5, causal=True, alibi_slopes=None, sliding_window=-1,
            block_table=table, softcap=0.0, scheduler_metadata=metadata, s_aux=None,
        )  # fmt: skip

    return call


def compare(torch, arguments, case: str) -> dict:
    dtype_name, length = case.split(":")
    dtype, length = getattr(torch, dtype_name), int(length)
    query, keys, values = _data(torch, arguments, dtype, length)
    calls = {}
    for name, make in (("hybridgen", hybridgen_call), ("vllm", vllm_call)):
        output = torch.empty_like(query)
        calls[name] = make(torch, arguments, dtype, length, query, keys, values, output)
        calls[name]()
        _verify(torch, name, output, query, keys, values, dtype_name)
    pairs = arguments.chunk * (length - arguments.chunk) + arguments.chunk * (arguments.chunk + 1) // 2
    flops = 4 * pairs * arguments.heads * arguments.head_size
    rounds, discarded = [], 0
    end = time.monotonic() + arguments.case_seconds
    while len(rounds) < arguments.samples and time.monotonic() < end:
        rates = {}
        for name, call in calls.items():
            ran = time.process_time()
            with sampling.Quiet() as quiet:
                begin = time.perf_counter()
                call()
                elapsed = time.perf_counter() - begin
            if arguments.disturbed:
                elapsed = (time.process_time() - ran) / arguments.threads
            elif not quiet.clean():
                discarded += 1
                break
            rates[name] = flops / elapsed
        else:
            rounds.append(rates)
    result = {"case": case, "clean": len(rounds), "discarded": discarded, "quiet": len(rounds) >= sampling.FEWEST}
    if result["quiet"]:
        result["gflops"] = {name: sampling.spread([r[name] / 1e9 for r in rounds]) for name in calls}
        result["ratio"] = sampling.spread([r["hybridgen"] / r["vllm"] for r in rounds])
    return result


def print_result(result: dict) -> None:
    counts = f"{result['clean']} clean rounds, {result['discarded']} discarded"
    if not result["quiet"]:
        print(f"{result['case']:16} machine not quiet ({counts})", flush=True)
        return
    rates = "  ".join(f"{name} {spread['median']:.0f}" for name, spread in result["gflops"].items())
    ratio = result["ratio"]
    print(f"{result['case']:16} GFLOP/s: {rates}   hybridgen/vllm {ratio['min']:.2f} {ratio['median']:.2f} "
          f"{ratio['max']:.2f}   ({counts})", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", default="bfloat16:8192,float16:8192,float32:8192",
                        help="dtype:context tokens, the chunk's included, separated by commas")  # fmt: skip
    parser.add_argument("--chunk", type=int, default=2048, help="query tokens; contexts are multiples of it")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--case-seconds", type=float, default=60, help="a case gives up after this time")
    parser.add_argument("--vllm-isa", default="vec", help="code path of vLLM's op: vec, amx, ...")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--disturbed", action="store_true",
                        help="keep disturbed rounds; rates are of time run, not of time passed")  # fmt: skip
    parser.add_argument("--json", help="also write the results to this file")
    arguments = parser.parse_args()

    # Read by the OpenMP run time when torch is imported.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    results = []
    for case in arguments.cases.split(","):
        results.append(compare(torch, arguments, case))
        print_result(results[-1])
    sampling.write_results(arguments, results)


if __name__ == "__main__":
    main()
