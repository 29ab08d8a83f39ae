"""Decode attention of HybridGen, vLLM's CPU op and torch's SDPA on the same shapes, alternately in one run.

    bazel build -c opt //tests/bench:attend_bench
    ~/.cache/hybridgen/venv-vllm0.32/bin/python tests/bench/compare_peers.py --cases bfloat16:1,bfloat16:4,float16:8

Every round measures each contender once; a round in which the machine was not quiet is dropped and counted. Rates are
bytes of K and V per second; every result is verified first. `packed` and `strided` are HybridGen's kernels
(attend_bench) on host pages and on the engine's tensor; `vllm` is `cpu_attention_with_kv_cache` on its own cache;
`sdpa` is torch's scaled_dot_product_attention on contiguous K and V, with no pages at all.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import sampling

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
_BATCH = 4  # sequences of a call
_KV_HEADS = 8


class Served:
    """HybridGen's kernels: an attend_bench that measures one sample whenever it is asked."""

    def __init__(self, arguments, page_format: str, dtype: str, group: int) -> None:
        self._rate = "cpu_rate" if arguments.disturbed else "rate"
        self._process = subprocess.Popen(
            [arguments.binary, "--serve", f"--formats={page_format}", f"--dtypes={dtype}", f"--groups={group}",
             f"--page_tokens={arguments.page_tokens}", f"--head_size={arguments.head_size}", f"--gib={arguments.gib}",
             f"--threads={arguments.threads}", f"--sample_ms={arguments.sample_ms}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if self._process.stdout.readline().strip() != "ready":
            sys.exit(f"{arguments.binary} did not start (exit status {self._process.wait()})")

    def sample(self, what: str = "attend") -> tuple[float, bool]:
        """Bytes per second, and whether the machine was quiet."""
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        result = json.loads(self._process.stdout.readline())
        return result[self._rate], max(result["lost"], result["foreign"]) <= sampling.LIMIT

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class Peer:
    """A call in this process, repeated over several batches in turn, so that no cache holds them."""

    def __init__(self, arguments, calls, bytes_per_call: int) -> None:
        self._arguments = arguments
        self._calls = calls
        self._bytes = bytes_per_call
        self._next = 0

    def sample(self) -> tuple[float, bool]:
        count = 0
        ran = time.process_time()
        with sampling.Quiet() as quiet:
            begin = time.perf_counter()
            while (elapsed := time.perf_counter() - begin) < self._arguments.sample_ms / 1e3 or not count:
                self._calls[self._next % len(self._calls)]()
                self._next += 1
                count += 1
        if self._arguments.disturbed:
            elapsed = (time.process_time() - ran) / self._arguments.threads
        return count * self._bytes / elapsed, quiet.clean()

    def close(self) -> None:
        self._calls = []


def _verify(torch, name, output, query, keys, values, dtype) -> None:
    """One sequence against the definition in double; query, output [head, dim], keys, values [head, token, dim]."""
    heads, size = query.shape
    grouped = query.double().view(keys.shape[0], -1, size)
    weights = (torch.einsum("hgd,htd->hgt", grouped, keys.double()) * size**-0.5).softmax(-1)
    expected = torch.einsum("hgt,htd->hgd", weights, values.double()).reshape(heads, size)
    error = (output.double() - expected).abs().max().item()
    if not error <= _TOLERANCE[dtype]:
        sys.exit(f"wrong result of {name}: off by {error}, tolerance {_TOLERANCE[dtype]}")


def _repeated(torch, shape, dtype, generator):
    """Random elements; a pattern of a mebielement is repeated, for the speed of it."""
    count = 1
    for size in shape:
        count *= size
    pattern = torch.randn(min(count, 1 << 20), generator=generator).to(dtype)
    return pattern.repeat(-(-count // pattern.numel()))[:count].view(shape)


def vllm_peer(arguments, dtype_name: str, group: int) -> Peer:
    import torch
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    if hasattr(torch.cpu, "_init_amx"):
        torch.cpu._init_amx()
    current_platform.import_kernels()
    dtype, size, block = getattr(torch, dtype_name), arguments.head_size, arguments.page_tokens
    generator = torch.Generator().manual_seed(1)
    length = arguments.length
    per_sequence = length // block
    bytes_per_call = 2 * _BATCH * length * _KV_HEADS * size * dtype.itemsize
    batches = max(1, int(arguments.gib * 2**30) // bytes_per_call)
    blocks = batches * _BATCH * per_sequence
    cache = torch.zeros(blocks, _KV_HEADS, block, 2 * size, dtype=dtype)
    # As vLLM's backend views it: K and V halves of each head's block.
    key_cache, value_cache = cache.view(blocks, _KV_HEADS, 2 * block, size).chunk(2, dim=2)
    tables = torch.randperm(blocks, generator=generator, dtype=torch.int64).to(torch.int32)
    tables = tables.view(batches, _BATCH, per_sequence)
    key = _repeated(torch, (_BATCH * length, _KV_HEADS, size), dtype, generator)
    value = _repeated(torch, (_BATCH * length, _KV_HEADS, size), dtype, generator)
    for table in tables:
        slots = (table.long()[:, :, None] * block + torch.arange(block)).flatten()
        ops.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, slots, arguments.vllm_isa)
    query = torch.randn(_BATCH, _KV_HEADS * group, size, generator=generator).to(dtype)
    output = torch.empty_like(query)
    starts = torch.arange(_BATCH + 1, dtype=torch.int32)
    lengths = torch.full((_BATCH,), length, dtype=torch.int32)
    metadata = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=_BATCH, num_heads=_KV_HEADS * group, num_kv_heads=_KV_HEADS, head_dim=size, seq_lens=lengths,
        dtype=dtype, query_start_loc=starts, causal=True, sliding_window_size=-1, isa=arguments.vllm_isa,
        enable_kv_split=True,
    )  # fmt: skip

    def call(table):
        ops.cpu_attention_with_kv_cache(
            query=query, key_cache=key_cache, value_cache=value_cache, output=output, query_start_loc=starts,
            seq_lens=lengths, scale=size**-0.5, causal=True, alibi_slopes=None, sliding_window=-1,
            block_table=table, softcap=0.0, scheduler_metadata=metadata, s_aux=None,
        )  # fmt: skip

    call(tables[0])
    keys, values = (x[:length].transpose(0, 1) for x in (key, value))
    _verify(torch, "vllm", output[0], query[0], keys, values, dtype_name)
    return Peer(arguments, [lambda table=table: call(table) for table in tables], bytes_per_call)


def sdpa_peer(arguments, dtype_name: str, group: int) -> Peer:
    import torch

    dtype, size, length = getattr(torch, dtype_name), arguments.head_size, arguments.length
    generator = torch.Generator().manual_seed(2)
    bytes_per_call = 2 * _BATCH * length * _KV_HEADS * size * dtype.itemsize
    batches = max(1, int(arguments.gib * 2**30) // bytes_per_call)
    shape = (batches, _BATCH, _KV_HEADS, length, size)
    keys, values = (_repeated(torch, shape, dtype, generator) for _ in range(2))
    query = torch.randn(_BATCH, _KV_HEADS * group, 1, size, generator=generator).to(dtype)

    def call(batch):
        return torch.nn.functional.scaled_dot_product_attention(query, keys[batch], values[batch], enable_gqa=True)

    _verify(torch, "sdpa", call(0)[0, :, 0], query[0, :, 0], keys[0, 0], values[0, 0], dtype_name)
    return Peer(arguments, [lambda batch=batch: call(batch) for batch in range(batches)], bytes_per_call)


def compare(arguments, dtype: str, group: int) -> dict:
    """Rates of every contender, and ratios of HybridGen's to the peers', over the clean rounds of one case."""
    contenders = {
        "packed": Served(arguments, "packed", dtype, group),
        "strided": Served(arguments, "strided", dtype, group),
        "vllm": vllm_peer(arguments, dtype, group),
        "sdpa": sdpa_peer(arguments, dtype, group),
    }
    rounds, discarded = [], 0
    end = time.monotonic() + arguments.case_seconds
    samples = {"seq1": lambda: contenders["packed"].sample("seq1")}
    samples |= {name: contender.sample for name, contender in contenders.items()}
    while len(rounds) < arguments.samples and time.monotonic() < end:
        results = {}
        for name, sample in samples.items():
            results[name], clean = sample()
            if not clean and not arguments.disturbed:
                discarded += 1
                break
        else:
            rounds.append(results)
    for contender in contenders.values():
        contender.close()
    result = {"case": f"{dtype}:{group}", "clean": len(rounds), "discarded": discarded,
              "quiet": len(rounds) >= sampling.FEWEST}  # fmt: skip
    if result["quiet"]:
        result["gb_per_second"] = {
            name: sampling.spread([r[name] / 1e9 for r in rounds]) for name in rounds[0]
        }
        result["ratios"] = {
            f"{ours}/{peer}": sampling.spread([r[ours] / r[peer] for r in rounds])
            for ours in ("packed", "strided") for peer in ("vllm", "sdpa", "seq1")
        }  # fmt: skip
    return result


def print_result(result: dict) -> None:
    case = result["case"]
    if not result["quiet"]:
        print(f"{case:14} machine not quiet ({result['clean']} clean rounds, {result['discarded']} discarded)")
        return
    rates = "  ".join(f"{name} {s['median']:.1f}" for name, s in result["gb_per_second"].items())
    print(f"{case:14} GB/s: {rates}   ({result['clean']} clean rounds, {result['discarded']} discarded)")
    for name, s in result["ratios"].items():
        print(f"{'':14} {name:13} {s['min']:.2f} {s['median']:.2f} {s['max']:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", default="bfloat16:1,bfloat16:4,bfloat16:8,float16:4,float32:4",
                        help="dtype:group (query heads per KV head), separated by commas")  # fmt: skip
    parser.add_argument("--binary", default=str(_ROOT / "bazel-bin/tests/bench/attend_bench"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--page-tokens", type=int, default=128)
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--gib", type=float, default=1, help="KV of each contender")
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--case-seconds", type=float, default=30, help="a case gives up after this time")
    parser.add_argument("--sample-ms", type=float, default=40)
    parser.add_argument("--vllm-isa", default="vec", help="code path of vLLM's op: vec, amx, ...")
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
        dtype, group = case.split(":")
        results.append(compare(arguments, dtype, int(group)))
        print_result(results[-1])
    sampling.write_results(arguments, results)


if __name__ == "__main__":
    main()
