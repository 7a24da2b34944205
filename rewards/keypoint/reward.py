"""The reward along a path: the difference of a potential that only forward progress raises, and 1 instead where the task is solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rewards.keypoint.path import arc_lengths, hold_path
from rewards.keypoint.poses import place
from rewards.keypoint.settings import TOOL, KeypointSettings

CONFIDENCE = "confidence"


class Poses(Protocol):
    """Tells where things are."""

    def frames(self, obs: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """{name: position (N, 3) in metres and rotation (N, 3, 3)}; of "tool" and of every object that is needed."""
        ...


class KeypointReward:
    """F = γ Φ(s') − Φ(s) with Φ = 0 where an episode terminates, and 1 in place of it on the step that succeeds.

    Φ = −(way left + κ · distance from the path) / whole way, in [−1 − κ, 0], over the tool's way to the grasp and the function point's
    way to the goal together. Ways are those of the episode: they start where tool and function point are when it begins. The tool's is
    seen from the grasp point, wherever that moves, so that an object which is held is not left behind, and one that is dropped is.

    What was reached is remembered for each world, so Φ depends on the episode so far and not on the observation alone; the sum over an
    episode telescopes all the same. `begin` must be called when episodes begin.

    Args:
        settings: points and weights.
        poses: where things are.
        num_envs: N.
        gamma: the learner's discount per step.
    """

    def __init__(self, settings: KeypointSettings, poses: Poses, num_envs: int, gamma: float) -> None:
        self.settings, self.poses, self.gamma = settings, poses, gamma
        deepest = settings.weight * (1 + settings.stray)
        self.low, self.high = -deepest, max(1.0, deepest)
        self.phi = torch.zeros(num_envs)
        """(N,) potential of where each world is."""
        self.progress = torch.zeros(num_envs, 2)
        """(N, 2) metres walked on the tool's way and on the function point's."""
        self._ways = [torch.zeros(num_envs, len(settings.approach) + 2, 3), torch.zeros(num_envs, len(settings.waypoints) + 1, 3)]
        self._arcs = [arc_lengths(way) for way in self._ways]
        self._whole = torch.ones(num_envs)

    def begin(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> None:
        """Lay out the ways of new episodes in worlds `ids`; `obs` is of all worlds."""
        settings, rows = self.settings, torch.as_tensor(list(ids), dtype=torch.long)
        frames = self.poses.frames(obs)
        here = [place(frames, settings.function), *(place(frames, w) for w in settings.waypoints)]
        grasp = place(frames, settings.grasp) if settings.grasp else frames[TOOL][0]
        there = [frames[TOOL][0], *(place(frames, w) for w in settings.approach), grasp]
        ways = (torch.stack(there, 1) - grasp[:, None], torch.stack(here, 1))
        for i, way in enumerate(ways):
            self._ways[i][rows] = way[rows].to(self._ways[i])
            self._arcs[i][rows] = arc_lengths(self._ways[i][rows])
        self._whole[rows] = (self._arcs[0][rows, -1] + self._arcs[1][rows, -1]).clamp(min=1e-3)
        self.progress[rows] = 0.0
        self.phi[rows] = -1.0

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """Reward of a step; moves on to where it led.

        Args:
            transition: the observation after the step under "next.", "success" and "terminated" (N,) bool; "next.confidence" (N,) in
                [0, 1] where it is known how sure the poses are.
            context: not used.

        Returns:
            (N,) float32.

        Raises:
            InputError: where something is is not finite.
        """
        after = {k.removeprefix("next."): v for k, v in transition.items() if k.startswith("next.")}
        before, now = self.phi, self._potential(after)
        self.phi = now
        kept = torch.where(transition["terminated"].cpu(), 0.0, now)
        dense = self.settings.weight * (self.gamma * kept - before)
        return torch.where(transition["success"].cpu(), 1.0, dense).to(transition["success"].device)

    def _potential(self, obs: Mapping[str, Tensor]) -> Tensor:
        """(N,) Φ after one more observation; progress goes on."""
        settings, frames = self.settings, self.poses.frames(obs)
        tool = frames[TOOL][0]
        grasp = place(frames, settings.grasp) if settings.grasp else tool
        walked, strayed = [], torch.zeros_like(self._whole)
        for i, point in enumerate((tool - grasp, place(frames, settings.function))):
            s, d = hold_path(point.cpu(), self._ways[i], self.progress[:, i], self._arcs[i])
            walked.append(s)
            strayed = strayed + d
        progress = torch.stack(walked, 1)
        left = self._whole - progress.sum(1)
        phi = (-(left + settings.stray * strayed) / self._whole).clamp(-1 - settings.stray, 0.0)
        if CONFIDENCE not in obs:
            self.progress = progress
            return phi
        sure = obs[CONFIDENCE].cpu() >= settings.confidence
        self.progress = torch.where(sure[:, None], progress, self.progress)
        return torch.where(sure, phi, self.phi)
