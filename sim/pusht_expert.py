"""A scripted expert for PushT (gym-pusht): pick the push that helps most in a copy of the world, go around the block, push, repeat.

The block slides without friction and stops at once, so what a straight push does depends on how far it goes, not on how fast:
one quick simulated push per contact point tells its best length.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinew.errors import MissingDependency

GOAL = (256.0, 256.0, np.pi / 4)
"""Wanted x and y in pixels and angle in rad, as gym-pusht has it."""
RADIUS, GAP, CLEARANCE = 15.0, 5.0, 32.0
"""Of the agent; between it and the block before a push; between its centre and the block on the way. Pixels."""
WALL_LOW, WALL_HIGH = 24.0, 488.0
TRAVEL, PUSH = 20.0, 12.0
"""Pixels per step, without contact and in contact."""
SETTLE_STEPS = 3
ANGLE_WEIGHT = 100.0
"""Pixels that a radian counts for. A push off the centre moves the block by some 40 pixels per radian, so turning always pays."""
LONGEST = 110.0
"""Longest push in pixels."""
CORNERS = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], dtype=float)
"""Outline of the block in its own frame, pixels."""
EDGES = (
    ((-55, 0), (55, 0), (0, 1)), ((60, 5), (60, 25), (-1, 0)), ((34, 30), (57, 30), (0, -1)), ((15, 49), (15, 116), (-1, 0)),
    ((-12, 120), (12, 120), (0, -1)), ((-15, 49), (-15, 116), (1, 0)), ((-57, 30), (-34, 30), (0, -1)), ((-60, 5), (-60, 25), (1, 0)),
)  # fmt: skip
"""Where the agent can touch it: two ends, and the direction into the block."""
CONTACTS_PER_PIXEL = 1 / 14


class PushTExpert:
    """Pushes the T in N worlds, from the state [agent x, agent y, block x, block y, block angle] alone.

    Args:
        num_envs: N.

    Raises:
        MissingDependency: gym-pusht is not installed.
    """

    def __init__(self, num_envs: int) -> None:
        model = _Model()
        self._hands = [_Hand(model) for _ in range(num_envs)]

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """Begin new episodes in worlds `ids`; `seeds` fix which contact points are looked at."""
        rows = list(range(len(self._hands)) if ids is None else ids)
        for i, row in enumerate(rows):
            self._hands[row].reset(None if seeds is None else int(seeds[i]))

    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Targets of the agent (N, 2) in pixels."""
        states = obs["observation.state"].numpy().astype(np.float64)
        return torch.from_numpy(np.stack([hand.act(state) for hand, state in zip(self._hands, states, strict=True)]).astype(np.float32))


class _Hand:
    """The expert in one world: a queue of targets, filled anew whenever it runs empty."""

    def __init__(self, model: _Model) -> None:
        self._model = model
        self.reset(0)

    def reset(self, seed: int | None) -> None:
        self._rng = np.random.default_rng((seed or 0, 1))
        self._queue: list[np.ndarray] = []

    def act(self, state: np.ndarray) -> np.ndarray:
        if not self._queue:
            self._plan(state)
        return self._queue.pop(0)

    def _plan(self, state: np.ndarray) -> None:
        start, direction, length = self._choose(state)
        way = _way_around(state[:2], start, state[2:])
        self._queue = _walk(way, TRAVEL) + [start] * SETTLE_STEPS
        end = start + direction * length
        self._queue += _walk([start, end], PUSH) + [end] * SETTLE_STEPS
        self._queue += _walk([end, start], TRAVEL)

    def _choose(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Start (2,), direction (2,) and length of the push after which the block is nearest to its goal."""
        turn = _rotation(state[4])
        best: tuple[float, np.ndarray, np.ndarray, float] | None = None
        for a, b, inward in EDGES:
            first, last, direction = np.array(a, float), np.array(b, float), turn @ np.array(inward, float)
            count = max(1, round(float(np.linalg.norm(last - first)) * CONTACTS_PER_PIXEL))
            for share in (np.arange(count) + self._rng.uniform(size=count)) / count:
                contact = state[2:4] + turn @ (first + share * (last - first))
                start = contact - direction * (RADIUS + GAP)
                if start.min() < WALL_LOW or start.max() > WALL_HIGH:
                    continue
                cost, length = self._model.push(start, direction, state[2:])
                if best is None or cost < best[0]:
                    best = cost, start, direction, length
        if best is None:  # every side is against a wall: step back to the middle
            return np.array(GOAL[:2]), np.zeros(2), 0.0
        return best[1:]


class _Model:
    """A world of gym-pusht to try pushes in."""

    def __init__(self) -> None:
        try:
            world = importlib.import_module("gym_pusht.envs.pusht").PushTEnv()
        except ModuleNotFoundError as e:
            raise MissingDependency(f"the expert for PushT needs {e.name}: pip install 'sinew[worlds]'") from None
        world._setup()
        self._world: Any = world
        self._goal = np.array(GOAL[:2]) + _rotation(GOAL[2]) @ np.array(world.block.center_of_gravity)

    def push(self, start: np.ndarray, direction: np.ndarray, block: np.ndarray) -> tuple[float, float]:
        """Smallest distance of the block from its goal along the push, in pixels, and the length of the push to there."""
        agent, body, space = self._world.agent, self._world.block, self._world.space
        self._place(start, block)
        near = self._distance() < 25
        step = 0.5 if near else 1.5  # pixels per simulation step
        agent.velocity = tuple(direction * (step / self._world.dt))
        best, length, moved = self._distance(), 0.0, 0.0
        while moved < (LONGEST if not near else 25.0):
            space.step(self._world.dt)
            moved += step
            distance = self._distance()
            if distance < best:
                best, length = distance, moved
            places = (*agent.position, *body.position)
            if distance > best + 12 or min(places) < WALL_LOW or max(places) > WALL_HIGH:
                break
        return best, length

    def _place(self, agent: np.ndarray, block: np.ndarray) -> None:
        world = self._world
        world.agent.position, world.agent.velocity = tuple(agent), (0, 0)
        world.block.velocity, world.block.angular_velocity = (0, 0), 0
        world.block.angle = float(block[2])  # first, since it turns about the centre of gravity
        world.block.position = tuple(block[:2])
        for body in (world.agent, world.block):
            world.space.reindex_shapes_for_body(body)

    def _distance(self) -> float:
        body = self._world.block
        turned = abs((body.angle - GOAL[2] + np.pi) % (2 * np.pi) - np.pi)
        centre = body.local_to_world(body.center_of_gravity)
        return float(np.hypot(centre[0] - self._goal[0], centre[1] - self._goal[1]) + ANGLE_WEIGHT * turned)


def corners(pose: np.ndarray) -> np.ndarray:
    """(8, 2) corners in pixels of the block at pose (3,)."""
    return pose[:2] + CORNERS @ _rotation(pose[2]).T


def _rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def _walk(points: Sequence[np.ndarray], step: float) -> list[np.ndarray]:
    """Targets along a path, `step` pixels apart; the path's end is the last."""
    targets = []
    for a, b in pairwise(points):
        count = int(np.ceil(np.linalg.norm(b - a) / step))
        targets += [a + (b - a) * (i + 1) / count for i in range(count)]
    return targets


def _way_around(start: np.ndarray, end: np.ndarray, block: np.ndarray) -> list[np.ndarray]:
    """Points from `start` to `end` that keep clear of the block (x, y, angle)."""
    geometry = importlib.import_module("shapely.geometry")
    outline = geometry.Polygon(corners(block))
    if geometry.LineString([start, end]).distance(outline) > RADIUS + 3:
        return [start, end]
    ring = outline.convex_hull.buffer(CLEARANCE, 4).exterior
    places = [ring.project(geometry.Point(p)) for p in (start, end)]
    forward = (places[1] - places[0]) % ring.length
    ways = []
    for total in (forward, forward - ring.length):
        along = [ring.interpolate((places[0] + total * share) % ring.length) for share in np.linspace(0, 1, 13)]
        points = [np.array([p.x, p.y]) for p in along]
        outside = sum(p.min() < WALL_LOW or p.max() > WALL_HIGH for p in points)
        ways.append((outside, abs(total), [start, *(p.clip(WALL_LOW, WALL_HIGH) for p in points), end]))
    return min(ways, key=lambda way: way[:2])[2]
