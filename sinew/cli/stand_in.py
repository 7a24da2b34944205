"""The scripted expert in the place of a person: it takes over where the policy is not getting there, less often as time goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from robot_bridge.takeover import Given, Unattended

if TYPE_CHECKING:
    from sim import TaskInterface


class ExpertTakeover(Unattended):
    """Takes over, until the episode ends, in an episode that is not solved after `patience` steps.

    A person helps in nearly every episode at first and in few at the end: the share of the episodes that are looked at falls
    from 1 to `least` over `taper` episodes. Which these are is fixed by the episode's seed.

    Args:
        task: whose expert.
        interface: as the policy sees the task; its actions must be the expert's.
        patience: steps that the policy is left alone.
        taper: episodes.
        least: share in the end.

    Raises:
        InputError: the policy's actions are not those of the expert.
    """

    def __init__(self, task: str, interface: TaskInterface, *, patience: int, taper: int = 100, least: float = 0.1) -> None:
        import sim
        from sim.expert import Expert

        super().__init__()
        self.expert: Expert = sim.make_expert(task)
        check = Expert(interface)  # refuses actions of another kind
        assert check.num_envs == 1
        self.patience, self.taper, self.least = patience, taper, least
        self.episodes = 0
        self._helps = self._acts = False
        self._observation: Mapping[str, np.ndarray] = {}
        self._step = self._seed = 0

    def watch(self, observation: Mapping[str, np.ndarray], step: int, seed: int) -> None:
        """See `Takeover.watch`."""
        if step < 0:
            self._helps = False
        elif step == 0:
            self.episodes += 1
            share = max(self.least, 1.0 - (self.episodes - 1) / self.taper)
            self._helps, self._acts = bool(np.random.default_rng((seed, 2)).random() < share), False
        self._observation, self._step, self._seed = observation, step, seed

    def read(self) -> Given | None:
        """See `Takeover.read`."""
        import torch

        if not self._helps or self._step < self.patience:
            return None
        if not self._acts:
            self.expert.reset(seeds=[self._seed])
            self._acts = True
        seen = {key: torch.from_numpy(np.array(value))[None] for key, value in self._observation.items()}
        return Given(tuple(float(v) for v in self.expert.act(seen)[0]), kind="action")
