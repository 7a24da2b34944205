"""The vision-language-action policy on a GPU, bf16, compiled and recorded, by number of cameras, with its roofline.

The roofline is the time that the matrix products and one reading of the weights they use would take at the speeds that this device
reaches on one large product and one large copy, both measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks import vla

PUBLISHED = {1: 20.0, 2: 27.3, 3: 36.8}
"""Milliseconds of pi0 by views, RTX 4090, Triton kernels, as its authors publish them (dexmal/realtime-vla)."""
PI0 = "pi0 on an RTX 4090, another and larger model, as published"


def rows(quick: bool) -> list[Row]:
    """Latency and roofline for 1, 2 and 3 views; without a GPU rows that say so."""
    import torch

    if not torch.cuda.is_available():
        return [
            Row(name=f"SmolVLM2 vla on a GPU, {views} views", unit="ms", ours=None, peer=f"not run here: no GPU; {PI0}", peer_value=value)
            for views, value in PUBLISHED.items()
        ]
    found = []
    for views, value in PUBLISHED.items():
        taken, least = measure("SmolVLM2", views, "cuda", 5 if quick else 50)
        name = f"SmolVLM2 vla on a GPU, bf16, CUDA graph, {views} views"
        found.append(Row(name=name, unit="ms", ours=taken, peer=PI0, peer_value=value, higher_is_better=False))
        found.append(Row(name=f"{name}, roofline over time", unit="", ours=least / taken, peer="the device's own product and copy"))
    return found


def measure(shape: str, views: int, device: str, calls: int, compiled: bool = True) -> tuple[float, float]:
    """Milliseconds of encode and sample, median, and those of the roofline."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from policies.warmup import prepare

    policy = vla.make(shape, views)
    obs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in vla.observation(1, views, vla.PIXELS[shape]).items()}
    ready = prepare(policy, device, dtype="bf16", compile=compiled, instruction=vla.TEXT)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            policy.sample(policy.encode(obs))
        times = [_milliseconds(lambda: ready.sample(ready.encode(obs)), device) for _ in range(calls + 3)][3:]
    flops, speed, bandwidth = counter.get_total_flops(), *_speeds(device)
    expert = sum(p.numel() for p in policy.net.parameters())
    weights = 4 * (sum(p.numel() for p in policy.encoder.parameters()) + vla.STEPS * expert)  # float32, the expert's at every step
    return float(np.median(times)), 1e3 * max(flops / speed, weights / bandwidth)


def _speeds(device: str) -> tuple[float, float]:
    """Operations per second of a bf16 product, bytes per second of a copy, on sizes that fill the device."""
    import torch

    side = 8192 if device == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    block = torch.empty(side * side * 4, device=device)
    product = min(_milliseconds(lambda: a @ a, device) for _ in range(5))
    copy = min(_milliseconds(lambda: block.clone(), device) for _ in range(5))
    return 2e3 * side**3 / product, 2e3 * block.nbytes / copy


def _milliseconds(function: Callable[[], Any], device: str) -> float:
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    started = time.perf_counter_ns()
    function()
    wait()
    return (time.perf_counter_ns() - started) / 1e6
