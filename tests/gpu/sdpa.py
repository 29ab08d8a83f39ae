"""Decode attention by torch's SDPA on the shapes of tests/gpu/bandwidth.cu: lines "GROUP SECONDS" on standard output."""

import torch
import torch.nn.functional as F

KV_HEADS, HEAD_SIZE, CONTEXT, REPEATS = 8, 128, 32768, 25

for group in (1, 4, 8):
    q = torch.randn(1, KV_HEADS * group, 1, HEAD_SIZE, dtype=torch.float16, device="cuda")
    k = torch.randn(1, KV_HEADS, CONTEXT, HEAD_SIZE, dtype=torch.float16, device="cuda")
    v = torch.randn_like(k)
    times = []
    for repeat in range(REPEATS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        F.scaled_dot_product_attention(q, k, v, enable_gqa=group > 1)
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(begin.elapsed_time(end))
    print(group, sorted(times)[len(times) // 2] * 1e-3)
