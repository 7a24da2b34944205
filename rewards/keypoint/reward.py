"""The reward along a path: success, and the difference of a potential that only forward progress raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rewards.files import CameraView
from rewards.keypoint.path import arc_lengths, hold_path
from rewards.keypoint.settings import TOOL, KeypointSettings, Place

CONFIDENCE = "confidence"
SHORTEST_WAY_M = 1e-3


class Poses(Protocol):
    """Tells where things are."""

    def points(self, obs: Mapping[str, Tensor], places: Sequence[Place]) -> Tensor:
        """(K, N, 3) world positions in metres, on the CPU; raises on what is not finite."""
        ...


class KeypointReward:
    """Success plus weight · (γ Φ(s') − Φ(s)), with Φ = 0 where an episode terminates.

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
        self.low, self.high = -deepest, max(1.0, deepest) if settings.replace else 1.0 + deepest
        self.phi = torch.zeros(num_envs)
        """(N,) potential of where each world is."""
        self.progress = torch.zeros(2, num_envs)
        """(2, N) metres walked on the tool's way and on the function point's."""
        own = Place(offset_m=(0.0, 0.0, 0.0), object=TOOL)
        self._moving = (own, settings.grasp or own, settings.function)
        self._longest = max(len(settings.approach) + 2, len(settings.waypoints) + 1)
        self._ways = torch.zeros(2, num_envs, self._longest, 3)
        """The tool's ways, as seen from the grasp point, and the function point's; the last place repeated where one is shorter."""
        self._arcs = torch.zeros(2, num_envs, self._longest)
        self._whole = torch.ones(num_envs)

    def begin(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> None:
        """Lay out the ways of new episodes in worlds `ids`; `obs` is of all worlds."""
        rows = torch.as_tensor(list(ids), dtype=torch.long)
        here = {key: value[rows.to(value.device)] for key, value in obs.items() if value.dim() == 2}
        approach, waypoints = self.settings.approach, self.settings.waypoints
        found = self.poses.points(here, (*self._moving, *approach, *waypoints))
        tool, grasp, function, *rest = found
        tools = [p - grasp for p in (tool, *rest[: len(approach)], grasp)]
        for i, way in enumerate((tools, [function, *rest[len(approach) :]])):
            way = [*way, *[way[-1]] * (self._longest - len(way))]
            self._ways[i, rows] = torch.stack(way, 1)
            self._arcs[i, rows] = arc_lengths(self._ways[i, rows])
        self._whole[rows] = self._arcs[:, rows, -1].sum(0).clamp(min=SHORTEST_WAY_M)
        self.progress[:, rows] = 0.0
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
        success = transition["success"].cpu()
        total = torch.where(success, 1.0, dense) if self.settings.replace else success + dense
        return total.to(transition["success"].device)

    def overlay(self, image: np.ndarray, view: CameraView, obs: Mapping[str, Tensor], world: int) -> np.ndarray:
        """A picture (H, W, 3) uint8 of one world with ways, progress and points drawn on it; obs of all worlds, as rewarded last."""
        from rewards.keypoint.overlay import draw

        tool, grasp, function = (p[world].numpy() for p in self.poses.points(obs, self._moving))
        ways = [
            (way[world].numpy() + shift, float(s[world])) for way, shift, s in zip(self._ways, (grasp, 0.0), self.progress, strict=True)
        ]
        return draw(image, view, ways, {"tool": tool, "grasp": grasp, "function": function}, float(self.phi[world]))

    def _potential(self, obs: Mapping[str, Tensor]) -> Tensor:
        """(N,) Φ after one more observation; progress goes on."""
        tool, grasp, function = self.poses.points(obs, self._moving)
        points = torch.cat((tool - grasp, function))
        walked, strayed = hold_path(points, self._ways.flatten(0, 1), self.progress.flatten(), self._arcs.flatten(0, 1))
        progress = walked.view_as(self.progress)
        stray = self.settings.stray
        left = self._whole - progress.sum(0) + stray * strayed.view_as(progress).sum(0)
        phi = (-left / self._whole).clamp(-1 - stray, 0.0)
        if CONFIDENCE not in obs:
            self.progress = progress
            return phi
        sure = obs[CONFIDENCE].cpu() >= self.settings.confidence
        self.progress = torch.where(sure, progress, self.progress)
        return torch.where(sure, phi, self.phi)
