"""The reward along a path: success, and the difference of a potential that only forward progress raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.files import CameraView
from rewards.keypoint.path import Paths
from rewards.keypoint.poses import Frames, Poses, offsets, placed
from rewards.keypoint.settings import MAX_WAYPOINTS, TOOL, WORLD, KeypointSettings, Place
from rewards.shaping import After
from sinew.errors import InputError

CONFIDENCE = "confidence"
SHORTEST_WAY_M = 1e-3
HAND = Place(offset_m=(0.0, 0.0, 0.0), object=TOOL)


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
        self.settings, self.poses, self.gamma, self.num_envs = settings, poses, gamma, num_envs
        deepest = settings.weight * (1 + settings.stray)
        self.low, self.high = -deepest, max(1.0, deepest) if settings.replace else 1.0 + deepest
        self.paths = Paths(2 * num_envs, MAX_WAYPOINTS + 2)
        """The tool's ways, as seen from the grasp point, and after those of all worlds the function points'."""
        self._phi = np.zeros(num_envs, np.float32)
        self._whole = np.ones(num_envs, np.float32)
        self._moving = Moving(num_envs, (settings.grasp or HAND, settings.function))

    @property
    def phi(self) -> Tensor:
        """(N,) potential of where each world is."""
        return torch.from_numpy(self._phi)

    @property
    def progress(self) -> Tensor:
        """(2, N) metres walked on the tool's way and on the function point's."""
        return torch.from_numpy(self.paths.progress.reshape(2, -1))

    def begin(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> None:
        """Lay out the ways of new episodes in worlds `ids`; `obs` is of all worlds."""
        rows = np.asarray(list(ids), dtype=np.int64)
        self.lay(self.poses.begin(obs, rows, self.settings.moving()), rows, self.settings)

    def lay(self, frames: Frames, rows: np.ndarray, settings: KeypointSettings) -> None:
        """Lay out the ways of worlds `rows` (n,) by points of their own, in frames (9, n) as their episodes began."""
        grasp = settings.grasp or HAND
        self._moving.put(rows, (grasp, settings.function))
        named = (HAND, grasp, settings.function, *settings.approach, *settings.waypoints)
        found = [_points(frames, place, len(rows)) for place in named]
        _refuse_infinite(np.stack(found), named, rows)
        tool, held, function, *rest = found
        approach, waypoints = rest[: len(settings.approach)], rest[len(settings.approach) :]
        for first, way in ((0, [p - held for p in (tool, *approach, held)]), (self.num_envs, [function, *waypoints])):
            self.paths.lay(first + rows, np.stack(way).transpose(2, 0, 1))
        ends = self.paths.arc[:, -1].reshape(2, -1)[:, rows]
        self._whole[rows] = np.maximum(ends[0] + ends[1], SHORTEST_WAY_M)
        self.hold(rows)

    def hold(self, rows: np.ndarray) -> None:
        """The potential of worlds `rows` is that of a beginning."""
        self._phi = self._phi.copy()  # somebody may keep the last one
        self._phi[rows] = -1.0

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
        return self.paid(transition, self.advance(After(transition), self.sure(transition)))

    def sure(self, transition: Mapping[str, Tensor]) -> np.ndarray | None:
        """(N,) bool where it is known well enough where things are after a step; None for everywhere. Called once for every step."""
        told = self.poses.advance(After(transition), transition)
        if told is None and f"next.{CONFIDENCE}" in transition:
            told = transition[f"next.{CONFIDENCE}"].numpy(force=True)
        return None if told is None else told >= self.settings.confidence

    def paid(self, transition: Mapping[str, Tensor], now: np.ndarray) -> Tensor:
        """(N,) reward of a step that led to potentials (N,)."""
        before, self._phi = self._phi, now
        success, terminated = (transition[key].numpy(force=True) for key in ("success", "terminated"))
        dense = self.gamma * np.where(terminated, np.float32(0.0), now)
        dense -= before
        dense *= self.settings.weight
        total = np.where(success, np.float32(1.0), dense) if self.settings.replace else np.add(dense, success, dtype=np.float32)
        return torch.from_numpy(total).to(transition["success"].device)

    def advance(self, obs: Mapping[str, Tensor], sure: np.ndarray | None = None) -> np.ndarray:
        """(N,) Φ after one more observation; where `sure` (N,) bool is False, it is held and so is the progress."""
        frames = self.poses.frames(obs)
        tool, (grasp, function) = frames[TOOL][:3], self._moving.at(frames)
        strayed = self.paths.walk(np.concatenate((tool - grasp, function), axis=1), None if sure is None else np.tile(sure, 2))
        if not np.isfinite(strayed.sum()):
            _refuse_infinite(np.stack((tool, grasp, function)), (HAND, *self._moving.places[0]), np.arange(self.num_envs))
        ahead = self.settings.stray * strayed - self.paths.progress
        left = ahead[: self.num_envs] + ahead[self.num_envs :]
        left += self._whole
        left /= -self._whole
        phi = np.maximum(np.minimum(left, 0.0, out=left), -1 - self.settings.stray, out=left)
        return phi if sure is None else np.where(sure, phi, self._phi)

    @property
    def legend(self) -> str:
        """What `overlay` draws, in words."""
        from rewards.keypoint.overlay import LEGEND

        return LEGEND

    def overlay(self, image: np.ndarray, view: CameraView, obs: Mapping[str, Tensor], world: int) -> np.ndarray:
        """A picture (H, W, 3) uint8 of one world with ways, progress and points drawn on it; obs of all worlds, as rewarded last."""
        from rewards.keypoint.overlay import draw

        frames = self.poses.frames(obs)
        tool, (grasp, function) = frames[TOOL][:3, world], self._moving.at(frames)[:, :, world]
        ways = [
            (self.paths.places[row] + shift, float(self.paths.progress[row]))
            for row, shift in ((world, grasp), (self.num_envs + world, 0.0))
        ]
        return draw(image, view, ways, {"tool": tool, "grasp": grasp, "function": function}, float(self._phi[world]))


class Moving:
    """Points that keep their places in some frame, which may differ between worlds.

    Args:
        count: worlds N.
        places: K of them.
    """

    def __init__(self, count: int, places: Sequence[Place]) -> None:
        self.places = [tuple(places)] * count
        """Of each world."""
        self._offset = offsets(places, count)
        self._groups: list[tuple[str, int, Any]] = []
        self.put(range(count), places)

    def put(self, rows: Sequence[int] | np.ndarray, places: Sequence[Place]) -> None:
        """From now on they are there in worlds `rows`."""
        if self._groups and all(self.places[row] == tuple(places) for row in rows):
            return
        for row in rows:
            self.places[row] = tuple(places)
        self._offset = np.concatenate([offsets(world) for world in self.places], axis=3)
        self._groups = [
            (str(name), i, np.flatnonzero(of == name))
            for i, of in enumerate(np.array([[p.object for p in world] for world in self.places]).T)
            for name in np.unique(of)
        ]
        frames = {name for name, _, _ in self._groups}
        self._together = frames.pop() if len(frames) == 1 and WORLD not in frames else None
        self._one = all(p == world[0] for world in self.places for p in world)

    def at(self, frames: Frames) -> np.ndarray:
        """(K, 3, N) in the world."""
        shape = (len(self._offset), 3, self._offset.shape[3])
        if self._together is not None:
            return np.broadcast_to(placed(frames[self._together], self._offset[:1] if self._one else self._offset), shape)
        found = self._offset[:, 1:, 0].copy()  # which the places of the world's own frame are
        for name, i, rows in self._groups:
            if name != WORLD:
                found[i][:, rows] = placed(frames[name][:, rows], self._offset[i : i + 1, ..., rows])[0]
        return found


def _points(frames: Frames, place: Place, count: int) -> np.ndarray:
    """(3, count) where a place is in each of `count` worlds."""
    offset = offsets([place], count)
    return offset[0, 1:, 0] if place.object == WORLD else placed(frames[place.object], offset)[0]


def _refuse_infinite(points: np.ndarray, places: Sequence[Place], worlds: np.ndarray) -> None:
    """Raise InputError where one of points (K, 3, n) is not finite; names what it is on and the world."""
    wrong = ~np.isfinite(points).all(1)
    if wrong.any():
        place, world = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(f"where {places[place].object or 'the world'!r} is in world {worlds[world]} is not finite")
