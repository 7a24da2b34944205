"""Shares of the roofline: on numbers worked by hand, on a made-up state, and on real worlds of Warp."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sinew.cli.benchmarks import sim_roofline, sim_warp
from sinew.cli.benchmarks.sim_roofline import Work


class Array:
    """Like Warp's."""

    strides = (4,)

    def __init__(self, values: list[int], capacity: int = 0) -> None:
        self.values, self.capacity = values, capacity

    def numpy(self) -> np.ndarray:
        return np.array(self.values)


@dataclass
class Rows:
    J: Array = field(default_factory=lambda: Array([], 4_000))


@dataclass
class State:
    """Two worlds, room for 10 rows each and 8 contacts in all, of which 5 and 2 are used."""

    qpos: Array = field(default_factory=lambda: Array([], 600))
    efc: Rows = field(default_factory=Rows)
    contact: Rows = field(default_factory=Rows)
    nefc: Array = field(default_factory=lambda: Array([4, 6], 8))
    nacon: Array = field(default_factory=lambda: Array([2], 4))
    solver_niter: Array = field(default_factory=lambda: Array([1, 3], 8))
    njmax: int = 10
    naconmax: int = 8


def test_what_a_step_needs() -> None:
    work = sim_roofline.work_of(SimpleNamespace(data=State(), num_envs=2, qvel=torch.zeros(2, 3)))
    assert work.bytes == (600 + 8 + 4 + 8 + 4_000 * 0.5 + 4_000 * 0.25) / 2
    # 5 rows, 3 velocities, 2 iterations: 5 * 3 * 4 + 27 / 3 + 2 * 9 + 4 * 5 * 3
    assert sim_roofline.solver_operations(3, 5.0) == 60 + 9 + 18 + 60 and work.operations == 2 * 147
    assert sim_roofline.held(State()) == 600 + 8 + 4 + 8 + 8_000


def test_shares_of_what_a_device_can_do() -> None:
    assert sim_roofline.shares(Work(bytes=1_000, operations=2_000), 1e6, 4e9, 1e12) == (0.25, 0.002)


def test_rows_say_what_they_are_shares_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_roofline, "copied", lambda device: 4e12)
    monkeypatch.setattr(sim_roofline, "multiplied", lambda device: 5e13)
    row = SimpleNamespace(detail={"work": {"bytes": 10_000.0, "operations": 5_000.0}, "physics_steps_per_s": 1e8})
    memory, arithmetic = sim_warp._roofline(row)  # type: ignore[arg-type]
    assert memory.name == "lift, Warp on cuda, 8,192 worlds, of the roofline: memory bandwidth, at least"
    assert memory.unit == "% of 4,000 GB/s, copying" and memory.ours == pytest.approx(25.0)
    assert arithmetic.unit == "% of 50.0 TFLOP/s, float32 products" and arithmetic.ours == pytest.approx(1.0)


def test_what_a_device_can_do_is_measured() -> None:
    assert sim_roofline.copied("cpu", 2**20) > 1e6 and sim_roofline.multiplied("cpu", 64) > 1e5


@pytest.mark.skipif(importlib.util.find_spec("mujoco_warp") is None, reason="mujoco-warp is not installed")
def test_real_worlds_need_their_state_and_less_than_all_they_have_room_for() -> None:
    row = sim_warp._cost("lift", 2, "cpu", 1)
    work = row.detail["work"]  # type: ignore[index]
    assert 4 * 60 < work["bytes"] < row.detail["bytes_a_world"] and work["operations"] > 1_000  # type: ignore[index]
    assert "KiB a world" in row.name
