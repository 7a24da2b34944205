"""Demonstrations with planted bad ones: what a careless hour of recording holds, with the truth kept aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from sim import TaskInterface

KINDS = ("wrong way", "hesitant", "noisy", "mistake", "habit")
"""Leaves in the wrong direction first; stops again and again; trembles; aims beside the object; keeps its fingers closed, as in
a task where things are only pushed."""
AWAY_STEPS = (10, 20)
PAUSE_CHANCE, PAUSE_STEPS = 0.12, (4, 10)
TREMBLE, TREMBLE_MEMORY = 0.6, 0.6
"""Standard deviation as a share of half the action range, and how much of it stays from step to step."""
MISS_M = (0.03, 0.06)
DONE_STEPS = 10
"""In the last leg of the plan, whatever came of it: then a person takes the task for done and stops. Otherwise the length of an
episode alone would give the failed ones away, which run into the time limit."""


def kinds_of(good: int, bad_each: int, seed: int) -> list[str]:
    """What each episode is, "good" or one of `KINDS`, in an order that `seed` shuffles."""
    kinds = ["good"] * good + [kind for kind in KINDS for _ in range(bad_each)]
    return [kinds[i] for i in np.random.default_rng([seed, 7]).permutation(len(kinds))]


class Planted:
    """An expert with people's small differences, spoiled in the episodes that are to be bad.

    Args:
        task: whose expert.
        interface: task interface with ee_delta actions.
        kinds: what each episode is.
        first: scene of the first episode; episode i has scene first + i.
        n: worlds.
    """

    def __init__(self, task: str, interface: TaskInterface, kinds: Sequence[str], first: int, n: int) -> None:
        import sim
        from sim.expert import ExpertStyle

        style = ExpertStyle(aim_jitter_m=0.003, speed=(0.7, 1.0), height_m=(-0.02, 0.03), side_m=0.02, pause_probability=0.01)
        self.expert = sim.make_expert(task, num_envs=n, style=style)
        self.kinds, self.first = kinds, first
        self.low, self.high = np.array(interface.action_spec.low), np.array(interface.action_spec.high)
        self.gripper = np.array([name.endswith("gripper") for name in interface.action_spec.names])
        self.miss = np.zeros((n, 2))
        self.away, self.pause, self.step = np.zeros(n, int), np.zeros(n, int), np.zeros(n, int)
        self.kind, self.rng = ["good"] * n, [np.random.default_rng(i) for i in range(n)]
        self.tremble = np.zeros((n, len(self.low)))
        self.last, self.done, self.scene = len(self.expert._phases) - 1, np.zeros(n, int), [first] * n
        self.ends: dict[int, int] = {}
        """Scene → frames after which a person would have stopped."""

    def reset(self, ids: Sequence[int], seeds: Sequence[int]) -> None:
        """See `sinew.cli.recorded.Player`."""
        self.expert.reset(ids, seeds)
        for row, seed in zip(ids, seeds, strict=True):
            rng = self.rng[row] = np.random.default_rng([seed, 11])
            self.kind[row] = self.kinds[seed - self.first]
            self.away[row] = rng.integers(*AWAY_STEPS) if self.kind[row] == "wrong way" else 0
            angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(*MISS_M)
            if self.kind[row] == "mistake":
                self.expert._aim[row, :2] += radius * np.array([np.cos(angle), np.sin(angle)])
            self.pause[row] = self.step[row] = self.done[row] = 0
            self.scene[row] = seed
            self.tremble[row] = 0.0

    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        """See `sinew.cli.recorded.Player`."""
        import torch

        action = self.expert.act(obs).numpy().astype(np.float64)
        for row, kind in enumerate(self.kind):
            action[row] = self._spoil(row, kind, action[row])
        self.step += 1
        self.done += self.expert.phase == self.last
        for row in np.flatnonzero(self.done == DONE_STEPS):
            self.ends.setdefault(self.scene[row], int(self.step[row]))
        return torch.from_numpy(np.clip(action, self.low, self.high).astype(np.float32))

    def _spoil(self, row: int, kind: str, action: np.ndarray) -> np.ndarray:
        rng, half = self.rng[row], (self.high - self.low) / 2
        if kind == "wrong way" and self.step[row] < self.away[row]:
            return np.where(self.gripper, action, -action)
        if kind == "hesitant":
            if not self.pause[row] and rng.random() < PAUSE_CHANCE:
                self.pause[row] = rng.integers(*PAUSE_STEPS)
            self.pause[row] = max(0, self.pause[row] - 1)
            return np.where(self.gripper | (self.pause[row] == 0), action, 0.0)
        if kind == "noisy":
            fresh = rng.standard_normal(len(action)) * np.sqrt(1 - TREMBLE_MEMORY**2)
            self.tremble[row] = TREMBLE_MEMORY * self.tremble[row] + fresh
            return action + np.where(self.gripper, 0.0, TREMBLE * half * self.tremble[row])
        return np.where(self.gripper, self.low, action) if kind == "habit" else action


def collect(root: Path, task: str, kinds: Sequence[str], seed: int, progress: Progress = SILENT) -> None:
    """Record one episode for each of `kinds`, each as long as a person would go on."""
    import shutil

    import sim
    from demos import Dataset
    from demos.edit import assemble, pieces_of
    from sinew.cli.recorded import record
    from sinew.cli.scenes import first_scene

    interface, first = sim.make_interface(task), first_scene("demonstrations", seed)
    raw, players = root.with_name(f"{root.name}-raw"), []

    def player(n: int) -> Planted:
        players.append(Planted(task, interface, kinds, first, n))
        return players[-1]

    shutil.rmtree(raw, ignore_errors=True)
    seeds = [first + i for i in range(len(kinds))]
    record(raw, interface, tuple(interface.observation_spec), seeds, lambda n: sim.make_vec(task, n), player, progress)
    data, ends = Dataset(raw), {scene: end for p in players for scene, end in p.ends.items()}
    pieces = [replace(p, end=min(data.episode(i).length, ends.get(first + i, 1 << 30))) for i, p in enumerate(pieces_of(raw))]
    assemble(root, pieces, progress)
    shutil.rmtree(raw)
