"""Generated code as a reward: success, plus what the code says, bounded so that success is never worth less than guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rewards.files import KINDS, RewardUnavailable, Situation
from rewards.generated.fields import Field, fields_of, widths
from rewards.generated.sandbox import CodeRefused, Sandbox, WorkerLost
from sinew.errors import InputError
from sinew.specs import ACTION

LOG_STEPS = 500
"""Environment steps, over all worlds, between lines in the training log."""
STAGE = "reward"
"""What marks those lines."""


@KINDS.add("code")
@dataclass(frozen=True, kw_only=True)
class GeneratedSettings:
    """A reward that a model wrote."""

    source: str
    """Code in the language of `rewards.generated.language`."""
    weight: float = 1.0
    """Factor on what the code says; at most 1 keeps success worth more than all guidance."""
    strikes: int = 10
    """Steps that may be not finite, too late or fatal to the process; one more, and sparse success stands in."""
    deadline_s: float = 2.0
    """Longest time a step may take; generous, since machines are busy, and code that was checked cannot run for long."""

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1 or self.strikes < 0 or not 0 < self.deadline_s <= 60:
            raise InputError("a generated reward has a weight in (0, 1], strikes >= 0 and a deadline up to 60 s")

    def returns(self, gamma: float, max_episode_steps: int) -> tuple[float, float]:
        """Lowest and highest sum of rewards: success, less the potential at the start, or with all guidance there can be."""
        return -self.weight, 1.0 + self.weight

    def build(self, situation: Situation) -> GeneratedReward:
        """See `rewards.files.Kind`."""
        return GeneratedReward(self, situation)


@dataclass
class Strikes:
    """What went wrong, counted."""

    not_finite: int = 0
    lost: int = 0
    last: str = ""
    limit: int = 10

    def add(self, what: Literal["not_finite", "lost"], why: str) -> None:
        """Count one.

        Raises:
            RewardUnavailable: it is one too many.
        """
        setattr(self, what, getattr(self, what) + 1)
        self.last = why
        if self.not_finite + self.lost > self.limit:
            raise RewardUnavailable(f"the generated reward failed {self.limit + 1} times, last: {why}")


@dataclass
class Statistics:
    """What the value and its parts were, since `clear`."""

    names: tuple[str, ...]
    count: int = 0
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        n = len(self.names)
        self.count, self.low, self.high, self.total = 0, np.full(n, np.inf), np.full(n, -np.inf), np.zeros(n)

    def add(self, values: np.ndarray) -> None:
        """Take in values (names, N); those that are not finite are left out."""
        finite = np.isfinite(values)
        good = values if finite.all() else values[:, finite.all(axis=0)]
        if good.size:
            self.count += good.shape[1]
            self.low, self.high = np.minimum(self.low, good.min(axis=1)), np.maximum(self.high, good.max(axis=1))
            self.total += good.sum(axis=1)

    def told(self) -> dict[str, dict[str, float]]:
        """{name: {"min", "mean", "max"}}; empty before anything was taken in."""
        if not self.count:
            return {}
        rows = zip(self.names, self.low, self.total / self.count, self.high, strict=True)
        return {name: {"min": float(low), "mean": float(mean), "max": float(high)} for name, low, mean, high in rows}


class GeneratedReward:
    """Generated code over N worlds.

    A `potential` gives success + weight * (γ Φ(s') − Φ(s)), Φ clipped to [0, 1] and 0 where the episode terminates: no policy
    becomes better by it. A `reward` is clipped to [-1, 1] and scaled by weight * (1 − γ): all of it that is to come, discounted,
    is at most 1, as much as one success; it may still teach something else than the task, so it is not the default.

    Args:
        settings: the code and its limits.
        situation: where it is used.

    Raises:
        InputError: the code says what it may not, or reads what is not observed here.
        RewardUnavailable: this machine does not confine a process.
    """

    def __init__(self, settings: GeneratedSettings, situation: Situation) -> None:
        self.settings, self.gamma, self._log = settings, situation.gamma, situation.log
        self.fields: Mapping[str, Field] = fields_of(situation.observation)
        self.strikes = Strikes(limit=settings.strikes)
        try:
            self.sandbox = Sandbox(settings.source, widths(self.fields.values()), situation.action.dim, deadline_s=settings.deadline_s)
        except WorkerLost as e:
            raise RewardUnavailable(f"{e} while its code was checked") from None
        self.statistics = Statistics(("total", *self.sandbox.described.parts))
        self._since, self._steps, self._successes = 0, 0, 0
        self.potential = self.sandbox.described.form == "potential"
        span = settings.weight * (1.0 if self.potential else 1.0 - self.gamma)
        self.low, self.high = -span, 1.0 + span

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """See `sinew.protocols.Reward`; transitions as `rewards.shaping.Shaped` takes them.

        Raises:
            RewardUnavailable: the code failed too often, or what is observed is not finite.
        """
        success = transition["success"].float()
        guidance = self._shaping(transition) if self.potential else self._dense(transition)
        self._keep(len(success), int(success.sum()))
        return success + torch.from_numpy(guidance).to(success)

    def close(self) -> None:
        """End the process."""
        self.sandbox.close()

    def _keep(self, steps: int, successes: int) -> None:
        """Every `LOG_STEPS` steps of all worlds together a line about the parts goes to the training log."""
        self._steps, self._since, self._successes = self._steps + steps, self._since + steps, self._successes + successes
        if self._since >= LOG_STEPS:
            told = {"parts": self.statistics.told(), "successes": self._successes, "not_finite": self.strikes.not_finite}
            self._log({"stage": STAGE, "step": self._steps, **told, "lost": self.strikes.lost})
            self._since = self._successes = 0
            self.statistics.clear()

    def _shaping(self, transition: Mapping[str, Tensor]) -> np.ndarray:
        """Before and after in one go: the worlds come twice."""
        n = len(transition["success"])
        inputs = {}
        for argument, name in self.sandbox.described.uses:
            inputs[argument, name] = _checked(
                np.concatenate([self._read(transition, name, ""), self._read(transition, name, "next.")]), name
            )
        values = self._step(inputs, 2 * n)
        if values is None:
            return np.zeros(n, np.float32)
        self.statistics.add(values[:, n:])
        potential = np.clip(values[0], 0.0, 1.0)
        after = np.where(transition["terminated"].cpu().numpy(), 0.0, potential[n:])
        return self._finite(self.settings.weight * (self.gamma * after - potential[:n]))

    def _dense(self, transition: Mapping[str, Tensor]) -> np.ndarray:
        n = len(transition["success"])
        inputs = {}
        for argument, name in self.sandbox.described.uses:
            if argument == "action":
                inputs[argument, name] = _checked(transition[ACTION].numpy(force=True), ACTION)
            else:
                inputs[argument, name] = _checked(self._read(transition, name, "next." if argument == "now" else ""), name)
        values = self._step(inputs, n)
        if values is None:
            return np.zeros(n, np.float32)
        self.statistics.add(values)
        dense = self._finite(self.settings.weight * (1.0 - self.gamma) * np.clip(values[0], -1.0, 1.0))
        return np.where(transition["success"].cpu().numpy(), np.float32(0), dense)  # the success stands for itself

    def _read(self, transition: Mapping[str, Tensor], name: str, before: str) -> np.ndarray:
        field = self.fields[name]
        first, last = field.columns[0], field.columns[-1] + 1
        columns = slice(first, last) if last - first == len(field.columns) else list(field.columns)
        return transition[before + field.key].numpy(force=True)[:, columns]

    def _step(self, inputs: Mapping[tuple[str, str], np.ndarray], worlds: int) -> np.ndarray | None:
        """Values (1 + parts, worlds); None where the process was lost or the code did not work out."""
        try:
            return self.sandbox.step(inputs, worlds)
        except (WorkerLost, CodeRefused) as e:
            self.strikes.add("lost", str(e))
            return None

    def _finite(self, guidance: np.ndarray) -> np.ndarray:
        """Nothing where it is not finite, which is a strike."""
        wrong = ~np.isfinite(guidance)
        if wrong.any():
            self.strikes.add("not_finite", f"its value in world {int(wrong.argmax())} is not finite")
        return np.where(wrong, 0.0, guidance).astype(np.float32)


def evaluate(sandbox: Sandbox, fields: Mapping[str, Field], read: Callable[[str], np.ndarray], action: np.ndarray) -> np.ndarray:
    """Values (1 + parts, T) along recorded frames; a `reward` takes each frame with the one after it, the last with itself.

    Args:
        sandbox: with the code.
        fields: what it may read.
        read: key of the observation → (T, D) in frame order, of one episode.
        action: (T, A) physical units.
    """
    inputs, frames = {}, len(action)
    for argument, name in sandbox.described.uses:
        if argument == "action":
            inputs[argument, name] = action
            continue
        values = read(fields[name].key)[:, list(fields[name].columns)]
        later = argument == "now" and sandbox.described.form == "reward"
        inputs[argument, name] = np.concatenate([values[1:], values[-1:]]) if later else values
    return sandbox.step(inputs, frames)


def _checked(values: np.ndarray, what: str) -> np.ndarray:
    """Values (N, D) as they are.

    Raises:
        RewardUnavailable: one is not finite.
    """
    if not np.isfinite(values).all():
        raise RewardUnavailable(
            f"{what}, which the generated reward reads, is not finite in row {int((~np.isfinite(values)).any(1).argmax())}"
        )
    return values
