"""What is lived through between two updates of a method that learns from its own newest steps alone, and what it was worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.memory import Memory
from rl.worlds import Step


def advantages(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, ended: Tensor, gamma: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantages of T steps of N worlds, on their device.

    Args:
        reward: (T, N).
        value: (T, N) of the state before each step.
        next_value: (T, N) of the state after it: of the final observation where an episode ended. Nothing is bootstrapped from a
            terminal state, and from one in which time ran out it is.
        terminated: (T, N) bool.
        ended: (T, N) bool: terminated or out of time; what follows is another episode.
        gamma: discount per step.
        decay: lambda.

    Returns:
        (T, N) advantages; (T, N) returns, advantage plus value.

    Source: Schulman et al. 2015, arXiv:1506.02438; time limits as in Pardo et al. 2018, arXiv:1712.00378.
    """
    delta = reward + gamma * next_value * ~terminated - value
    carry = gamma * decay * ~ended
    made, total = torch.empty_like(delta), torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        total = delta[t] + carry[t] * total
        made[t] = total
    return made, made + value


@dataclass(frozen=True)
class Rollout:
    """T steps of N worlds."""

    frames: Mapping[str, Tensor]
    """{key: (T, N, ...)} before each step."""
    reward: Tensor
    """(T, N)."""
    terminated: Tensor
    """(T, N) bool."""
    ended: Tensor
    """(T, N) bool."""
    last: Mapping[str, Tensor]
    """{key: (N, ...)} after the last step, of the new episode where one ended."""
    final: Mapping[str, Tensor]
    """{key: (M, ...)} after the M steps that ended an episode, in the order of time and then of worlds."""

    def next_values(self, value: Tensor, last: Tensor, final: Tensor) -> Tensor:
        """Values (T, N) of the states after each step.

        Args:
            value: (T, N) of `frames`.
            last: (N,) of `last`.
            final: (M,) of `final`.
        """
        following = torch.cat((value[1:], last[None]))
        return following.masked_scatter(self.ended, final)


class Rollouts(Memory):
    """A memory that holds nothing but the steps since the last `taken`, where they were made; it asks for the final frame of every episode.

    Args:
        device: where worlds and networks are.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__([], device)
        self._newest: dict[str, Tensor] = {}
        self._frames: list[dict[str, Tensor]] = []
        self._steps: list[Step] = []

    def __len__(self) -> int:
        """Steps that are held, over all worlds."""
        return sum(len(step.reward) for step in self._steps)

    def start(self, place: int, frames: Mapping[str, Tensor]) -> None:
        """All worlds begin anew; what was not learned from yet is forgotten, since nobody knows what came after it."""
        self._frames, self._steps = [], []
        self._newest = self._moved(frames)

    def add(self, place: int, step: Step) -> None:
        """Append one step."""
        self._frames.append(self._newest)
        self._steps.append(step if step.reward.device == self.device else step.to(self.device))
        self._newest = self._moved(step.frames)

    def _moved(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.device) for key, value in frames.items()}

    def taken(self) -> Rollout:
        """What was held, which is forgotten here."""
        frames, steps = self._frames, self._steps
        self._frames, self._steps = [], []
        finals = [step.final for step in steps if step.final is not None]
        terminated = torch.stack([step.terminated for step in steps])
        return Rollout(
            frames={key: torch.stack([f[key] for f in frames]) for key in frames[0]},
            reward=torch.stack([step.reward for step in steps]),
            terminated=terminated,
            ended=terminated | torch.stack([step.truncated for step in steps]),
            last=self._newest,
            final={key: torch.cat([f[key] for f in finals]) for key in finals[0]}
            if finals
            else {k: v[:0] for k, v in self._newest.items()},
        )
