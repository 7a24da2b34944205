"""Dense guidance that cannot change which policy is best: F = γ Φ(s') − Φ(s), with Φ = 0 where the episode terminates.

Source: Ng, Harada and Russell, "Policy invariance under reward transformations", ICML 1999; the terminal condition
after Grześ, "Reward shaping in episodic reinforcement learning", AAMAS 2017.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rewards import registry
from rewards.files import RewardUnavailable
from sinew.errors import InputError
from sinew.specs import ENVIRONMENT_STATE, STATE, ObservationSpec


class Potential(Protocol):
    """How good a state is, with a declared range."""

    low: float
    high: float

    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} → (N,) float32."""
        ...


class HistoryPotential(Protocol):
    """How good it is to have come here, with a declared range."""

    low: float
    high: float

    def begin(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> Tensor:
        """New episodes in worlds `ids`; {key: (N, ...)} of all worlds → (len(ids),) float32, what those worlds begin with."""
        ...

    def advance(self, obs: Mapping[str, Tensor]) -> Tensor:
        """One step later, {key: (N, ...)} → (N,) float32; where an episode ends, obs is its last."""
        ...


class DistancePotential:
    """Minus the distance from the tool to an object, clipped at `reach_m`.

    Args:
        spec: observation spec; the tool is read from the elements of observation.state named "tool.x", "tool.y" and
            "tool.z", the object from those of observation.environment_state named "<object>.x" and so on.
        object: name of the object.
        reach_m: distance in metres that counts as far.

    Raises:
        InputError: a named element is missing; those that exist are listed.
    """

    high = 0.0

    def __init__(self, spec: ObservationSpec, object: str, reach_m: float = 0.5) -> None:
        self.low = -reach_m
        self.tool = columns(spec, STATE, "tool")
        self.object = columns(spec, ENVIRONMENT_STATE, object)

    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} → (N,) float32 in [-reach_m, 0], metres."""
        between = obs[STATE][:, self.tool] - obs[ENVIRONMENT_STATE][:, self.object]
        return -between.norm(dim=1).clamp(max=-self.low)


def columns(spec: ObservationSpec, key: str, point: str) -> list[int]:
    """Where the coordinates of a named point stand in a vector; raises InputError where it has none."""
    names = spec[key].names if key in spec else ()
    missing = [n for n in (f"{point}.{axis}" for axis in "xyz") if n not in names]
    if missing:
        raise InputError(f"{key} has no element {missing[0]!r}; it has {', '.join(names) or 'no named elements'}")
    return [names.index(f"{point}.{axis}") for axis in "xyz"]


class Shaped:
    """Sparse success plus the difference of a potential: over an episode the latter sums up to nothing but its ends.

    Args:
        potential: Φ, a `Potential`.
        gamma: discount per step; the learner's own leaves what is best as it is, and 1 pays for progress, with a rent for what is left.
        weight: factor on the shaping term.
    """

    def __init__(self, potential: Any, gamma: float = 0.99, weight: float = 1.0) -> None:
        self.potential, self.gamma, self.weight = potential, gamma, weight
        span = weight * max_difference(potential, gamma)
        self.low, self.high = -span, 1.0 + span

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """Reward of a step.

        Args:
            transition: observation keys (N, ...) before the step, the same keys under "next." after it (the final
                observation where an episode ended), "success" and "terminated" (N,) bool.
            context: not used.

        Returns:
            (N,) float32.

        Raises:
            RewardUnavailable: the potential is not finite; the first world is named.
        """
        return self._paid(self.potential(transition), self.potential(After(transition)), transition)

    def _paid(self, before: Tensor, after: Tensor, transition: Mapping[str, Tensor]) -> Tensor:
        if not math.isfinite(float((before + after).sum())):
            wrong = ~(torch.isfinite(before) & torch.isfinite(after))
            if wrong.any():  # a sum of large ones may be infinite, too
                raise RewardUnavailable(f"the potential of world {int(wrong.nonzero()[0])} is not finite")
        gained = torch.add(-before, after.masked_fill(transition["terminated"], 0.0), alpha=self.gamma)
        return torch.add(transition["success"].float(), gained, alpha=self.weight)


registry.add("shaped")(Shaped)


class ShapedByHistory(Shaped):
    """The same with a potential that depends on the episode so far: what it was before the step is remembered, not computed again.

    The best policy stays the best: Devlin and Kudenko, "Dynamic potential-based reward shaping", AAMAS 2012.

    Args:
        potential: Φ, a `HistoryPotential`.
        gamma: discount per step; must be the learner's own.
        num_envs: worlds N.
        weight: factor on the shaping term.
    """

    def __init__(self, potential: HistoryPotential, gamma: float, num_envs: int, weight: float = 1.0) -> None:
        super().__init__(potential, gamma, weight)
        self.history = potential
        self.before = torch.zeros(num_envs)

    def begin(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> None:
        """New episodes in worlds `ids`; obs of all worlds."""
        rows = list(ids)
        values = self.history.begin(obs, rows)
        self.before = self.before.to(values).clone()
        self.before[rows] = values

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """See `Shaped.reward`; called once for every step, in order."""
        after = self.history.advance(After(transition))
        paid = self._paid(self.before.to(after), after, transition)
        self.before = after.clone()
        return paid


def max_difference(potential: Potential | HistoryPotential, gamma: float) -> float:
    """The largest |γ Φ(s') − Φ(s)| that a range allows, episodes that terminate (Φ = 0) included."""
    low, high = potential.low, potential.high
    return max(abs(gamma * after - before) for before in (low, high) for after in (low, high, 0.0))


class After(Mapping[str, Tensor]):
    """The observation after a step, under its own keys; nothing is read that is not asked for."""

    def __init__(self, transition: Mapping[str, Tensor]) -> None:
        self.transition = transition

    def __getitem__(self, key: str) -> Tensor:
        return self.transition[f"next.{key}"]

    def __iter__(self) -> Iterator[str]:
        return (k.removeprefix("next.") for k in self.transition if k.startswith("next."))

    def __len__(self) -> int:
        return sum(1 for _ in self)
