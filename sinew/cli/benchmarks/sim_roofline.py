"""How much of what a device can do the physics of Warp's worlds uses: of its memory's bandwidth, and of its arithmetic.

What a physics step needs is counted from below: every array of a world's state read or written once, of constraints and contacts those
that there are; and the products of the solver's iterations alone. What the device can do is measured on it: copying, and multiplying large
matrices in single precision. So the shares are lower bounds.

Source: Williams et al. 2009, Roofline, doi 10.1145/1498765.1498785.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sinew.bench import Row

BY_ROWS = ("efc", "efc_islandid", "map_efc2iefc", "map_iefc2efc")
"""Parts of Warp's state that have room for as many constraints as there may be."""


@dataclass(frozen=True)
class Work:
    """What one physics step of one world needs at least."""

    bytes: float
    """Moved between memory and processor."""
    operations: float
    """Floating-point additions and multiplications."""


def work_of(physics: Any) -> Work:
    """What the worlds of a `sim.warp_physics.WarpPhysics` need a step, as they are now."""
    data, worlds, nv = physics.data, physics.num_envs, physics.qvel.shape[1]
    rows, contacts, iterations = float(data.nefc.numpy().mean()), float(data.nacon.numpy().sum()), float(data.solver_niter.numpy().mean())
    used: dict[str, float] = {name: rows / data.njmax for name in BY_ROWS}
    used["contact"] = contacts / data.naconmax
    total = sum(held(value) * used.get(name, 1.0) for name, value in vars(data).items())
    return Work(bytes=total / worlds, operations=iterations * solver_operations(nv, rows))


def solver_operations(nv: int, rows: float) -> float:
    """Additions and multiplications of an iteration of Newton's method: Hessian J'DJ (its half), Cholesky, two solves, J x and J' f."""
    return rows * nv * (nv + 1) + nv**3 / 3 + 2 * nv**2 + 4 * rows * nv


def held(value: Any) -> int:
    """Bytes of an array of Warp, or of all arrays in a structure of them."""
    if hasattr(value, "strides") and hasattr(value, "capacity"):
        return int(value.capacity)
    return sum(held(part) for part in vars(value).values()) if hasattr(value, "__dataclass_fields__") else 0


def shares(work: Work, steps_per_s: float, bytes_per_s: float, operations_per_s: float) -> tuple[float, float]:
    """Of bandwidth and of arithmetic, from 0 to 1, at so many physics steps of a world per second."""
    return work.bytes * steps_per_s / bytes_per_s, work.operations * steps_per_s / operations_per_s


def rows(name: str, work: Work, steps_per_s: float, device: str) -> list[Row]:
    """Both shares, measured against this device.

    Args:
        name: what was stepped.
        work: what a step of it needs.
        steps_per_s: physics steps per second, over all worlds.
        device: where.
    """
    bytes_per_s, operations_per_s = copied(device), multiplied(device)
    memory, arithmetic = shares(work, steps_per_s, bytes_per_s, operations_per_s)
    units = f"% of {bytes_per_s / 1e9:,.0f} GB/s, copying", f"% of {operations_per_s / 1e12:,.1f} TFLOP/s, float32 products"
    return [
        Row(name=f"{name}: memory bandwidth, at least", unit=units[0], ours=100 * memory),
        Row(name=f"{name}: arithmetic, at least", unit=units[1], ours=100 * arithmetic),
    ]


def copied(device: str, size: int = 2**30) -> float:
    """Bytes per second that are read and written by copying `size` bytes."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(_timed(lambda: target.copy_(source), device))


def multiplied(device: str, size: int = 8_192) -> float:
    """Operations per second of a product of square matrices (size, size) in float32, without TF32."""
    left = torch.ones(size, size, device=device)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return 2 * size**3 / min(_timed(lambda: left @ left, device))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _timed(call: Callable[[], Any], device: str, turns: int = 5) -> Iterator[float]:
    """Seconds of each call after the first."""
    for turn in range(turns + 1):
        begun = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        if turn:
            yield time.perf_counter() - begun
