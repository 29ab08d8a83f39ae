"""Fixed cost of one layer call from Python: KV update and attention together, as vLLM makes it.

One sequence of 64 tokens, one of them new, `cpu` kind, one thread. `impl` is the whole call that vLLM makes
(HybridGenImpl.forward), `module` the call into the native module alone. The result is verified against torch first.

    PYTHONPATH=<unpacked wheel> python tests/bench/layer_call.py [--json FILE] [--dtype float32] [--tokens 64] ...
"""

import argparse
import json
import statistics
import sys
import time
from types import SimpleNamespace

import torch

from hybridgen import _core, config
from hybridgen.backend import HybridGenImpl
from hybridgen.engine import IdentityEngine

_TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
_BLOCK_SIZE = 16


def prepare(arguments):
    """The call to time, as (impl call, module call), after it gave what torch gives."""
    dtype = getattr(torch, arguments.dtype)
    heads, kv_heads, size, tokens = arguments.heads, arguments.kv_heads, arguments.head_size, arguments.tokens
    generator = torch.Generator().manual_seed(arguments.seed)
    keys, values = (torch.randn(tokens, kv_heads, size, generator=generator).to(dtype) for _ in range(2))
    query = torch.randn(1, heads, size, generator=generator).to(dtype)

    settings = config.identity(config.load({}, {"device_kind": "cpu", "threads": arguments.threads}))
    spec = SimpleNamespace(
        dtype=dtype, num_kv_heads=kv_heads, head_size=size, head_size_v=size, block_size=_BLOCK_SIZE
    )
    engine = IdentityEngine(settings, spec)
    impl = HybridGenImpl(heads, size, size**-0.5, kv_heads)
    blocks = -(-tokens // _BLOCK_SIZE)
    cache = torch.full((blocks + 1, kv_heads, _BLOCK_SIZE, 2 * size), float("nan"), dtype=dtype)
    output = torch.empty_like(query)

    def plan(first: int):
        """Writes tokens [first, tokens); block 0 is vLLM's null block."""
        return engine.plan(
            SimpleNamespace(
                num_reqs=1,
                causal=True,
                query_start_loc=torch.tensor([0, tokens - first], dtype=torch.int32),
                seq_lens=torch.tensor([tokens], dtype=torch.int32),
                block_table_tensor=torch.arange(1, blocks + 1, dtype=torch.int32)[None],
                slot_mapping=torch.arange(first, tokens) + _BLOCK_SIZE,
            )
        )

    many = torch.empty(tokens, heads, size, dtype=dtype)
    impl.forward(None, query.expand(tokens, -1, -1).contiguous(), keys, values, cache, plan(0), many)
    metadata = plan(tokens - 1)
    key, value = keys[-1:], values[-1:]

    def whole():
        impl.forward(None, query, key, value, cache, metadata, output)

    whole()
    grouped = query.double().view(kv_heads, heads // kv_heads, size)
    logits = torch.einsum("hgd,thd->hgt", grouped, keys.double()) * size**-0.5
    expected = torch.einsum("hgt,thd->hgd", logits.softmax(-1), values.double()).view(1, heads, size)
    error = (output.double() - expected).abs().max().item()
    if not error <= _TOLERANCE[arguments.dtype]:
        sys.exit(f"wrong result: off by {error}, tolerance {_TOLERANCE[arguments.dtype]}")

    call = (
        metadata.plan, 0, query.data_ptr(), heads * size, size, key.data_ptr(), kv_heads * size, size,
        value.data_ptr(), kv_heads * size, size, output.data_ptr(), heads * size, size,
    )  # fmt: skip
    return whole, lambda: engine.core.forward(*call), error, json.loads(engine.core.stats())


def microseconds(call, calls: int, samples: int) -> list[float]:
    """Time per call of each sample of `calls` calls."""
    results = []
    for _ in range(samples):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        results.append((time.perf_counter() - began) / calls * 1e6)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", default="float32", choices=_TOLERANCE)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--samples", type=int, default=21)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="also write the result to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    whole, module, error, backend = prepare(arguments)
    result = {"configuration": vars(arguments), "max_error": error, "kernels": backend["kernels"],
              "executor": backend["executor"], "build": _core.build_info()}  # fmt: skip
    print(f"{arguments.heads} heads, {arguments.kv_heads} KV heads of {arguments.head_size}, {arguments.dtype}, "
          f"{arguments.tokens} tokens, kernels {result['kernels']}, executor {result['executor']}, "
          f"verified: largest error {error:.1e}")  # fmt: skip
    print(f"{'call':8} {'median':>8} {'least':>8}  microseconds")
    for name, call in (("impl", whole), ("module", module)):
        times = microseconds(call, arguments.calls, arguments.samples)
        result[name] = {"median_us": statistics.median(times), "least_us": min(times)}
        print(f"{name:8} {statistics.median(times):8.2f} {min(times):8.2f}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
