"""Where the robot may be: boxes and planes, distance between links, singular poses and the speed of the tools.

A period is allowed if the robot is where it may be at its end and on the whole way to the standstill that may follow. Most
periods are told without computing a pose: no point moves more than its lever arm per radian, so a pose that was a distance
away from every wall vouches for all poses around it (conservative advancement, Mirtich 1996). Near a wall the way is looked at
in a few places; the margins of the config are for what lies between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from robot_bridge.kinematics import LinkModel
from robot_bridge.safety.config import GateConfig
from robot_bridge.safety.motion import JointStream

PLACES = 4
"""Of a way to a standstill that are looked at."""
SPEED_PLACES = 32
"""Of a way to a standstill between which the tools' speed is looked at."""
SLOW_RATE_HZ = 50.0
"""How often the measure of singularity is taken; the way of a period of this rate is looked ahead."""
UNKNOWN_M = 1e6
"""Stands for a lever arm that is not known."""
SPEED_SHARE = 0.98
"""Of the tools' largest speed that is aimed at."""


class Distances(Protocol):
    """Self-collision; `robot_bridge.safety.collision.SelfCollision` is one."""

    levers_m: np.ndarray
    """(P, J) the most metres by which the links of each pair come nearer per radian of each joint."""

    def distances(self, joints: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(S, J) rad → (S, len(which)) metres between the links of the pairs of these numbers."""
        ...

    def name(self, pair: int) -> str: ...


class Clearance:
    """Whether a way stays clear of things, asking for poses only where that is needed.

    Args:
        rooms: poses (S, J) rad and numbers of things (n,) → (S, n) metres to each, negative beyond, NaN where it cannot be told.
        levers_m: (P, J) the most metres by which each of P things comes nearer per radian of each joint.
    """

    def __init__(self, rooms: Callable[[np.ndarray, np.ndarray], np.ndarray], levers_m: np.ndarray) -> None:
        self.rooms, self._levers = rooms, np.minimum(levers_m, UNKNOWN_M)
        self.all = np.arange(len(levers_m))
        self._at = np.zeros_like(self._levers)
        self._room = np.full(len(levers_m), -1.0)

    def inside(self, before: np.ndarray, end: np.ndarray, reach: np.ndarray, path: Callable[[], np.ndarray]) -> bool | None:
        """Whether a period and the stop after it stay clear, or get no farther in; None where it cannot be told.

        Args:
            before: (J,) rad at the beginning of the period.
            end: (J,) rad at its end.
            reach: (J,) rad that the joints stay within of `end` while they stop.
            path: () → (K, J) rad at the end of the period and of each one after it.
        """
        near = np.flatnonzero((self._levers * (np.abs(end - self._at) + reach)).sum(axis=1) > self._room)
        if not len(near):
            return True
        room = self.rooms(end[None], near)[0]
        if np.isnan(room).any():
            return None
        self._at[near], self._room[near] = end, room
        near = near[self._levers[near] @ reach > room]
        if not len(near):
            return True
        ways = path()
        places = np.unique((np.arange(PLACES + 1) * ((len(ways) - 1) / PLACES)).round().astype(int))
        rooms = self.rooms(np.concatenate((before[None], ways[places])), near)
        if np.isnan(rooms).any():
            return None
        return bool((rooms[1:] >= np.minimum(0.0, rooms[0])).all())


class Space:
    """All that is asked of poses.

    Args:
        config: limits.
        model: where tools and links are; None leaves boxes, planes, singular poses and speeds unchecked.
        collision: distances between links; None leaves them unchecked.
    """

    def __init__(self, config: GateConfig, model: LinkModel | None, collision: Distances | None) -> None:
        self.config, self.model, self.collision = config, model, collision
        self._clearances: list[tuple[str, Clearance]] = []
        self._speed_max = config.tcp_speed_m_s
        if model is not None:
            self._normals, self._offsets, self._applies = _planes(config, model)
            self._tool_levers = np.minimum(model.levers_m[: model.tools], UNKNOWN_M)
            if len(self._normals):
                self._clearances.append(("workspace", Clearance(self._walls, model.levers_m)))
        if collision is not None:
            margin = config.self_collision_margin_m
            self._clearances.append(("self_collision", Clearance(lambda q, p: collision.distances(q, p) - margin, collision.levers_m)))
        self._every = max(1, round(1.0 / (SLOW_RATE_HZ * config.dt_s)))
        self._ticks, self._share = 0, 1.0

    def _walls(self, joints: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(S, J) rad → (S, n) metres of these points to their nearest wall, negative outside, NaN where it cannot be told."""
        assert self.model is not None
        points = self.model.points(joints)[:, which]
        inside = points @ self._normals.T - self._offsets - self.model.radii_m[which, None]
        return np.where(self._applies[which], inside, np.inf if np.isfinite(points).all() else np.nan).min(axis=2)

    def start_problem(self, joints: Sequence[float]) -> str:
        """Why the robot may not start at joints (J,); empty where it may."""
        q, c = np.array([joints], dtype=float), self.config
        for name, clearance in self._clearances:
            rooms = clearance.rooms(q, clearance.all)[0]
            worst = int(np.argmin(rooms))  # NaN counts as the least
            if rooms[worst] >= 0.0:
                continue
            if name == "self_collision" and self.collision is not None:
                apart = rooms[worst] + c.self_collision_margin_m
                return f"{self.collision.name(worst)} are {apart:.3f} m apart, {c.self_collision_margin_m} are needed"
            assert self.model is not None
            tool = self.model.points(q)[0, 0].round(3).tolist()
            box = f"{c.workspace_low_m} to {c.workspace_high_m}"
            return f"a tool or link is {-rooms[worst]:.3f} m outside of where it may be: the tool is at {tool}, its box {box}"
        return ""

    def problem(self, stream: JointStream, accelerations: Sequence[float]) -> str:
        """Why a period with these accelerations, and the stop after it, may not be; empty where they may."""
        if not self._clearances and self._speed_max is None:
            return ""
        end = stream.after(accelerations)[0]
        made: list[np.ndarray] = []

        def path() -> np.ndarray:
            if not made:
                made.append(stream.stop_path(accelerations))
            return made[0]

        if self._clearances:
            before, ends, reach = np.array(stream.position), np.array(end), np.array(stream.stop_reach(accelerations))
            for name, clearance in self._clearances:
                inside = clearance.inside(before, ends, reach, path)
                if not inside:
                    return "bad_measurement" if inside is None else name
        if self._speed_max is not None and not self._slow_enough(stream, accelerations, path):
            return "tcp_speed"
        return ""

    def _slow_enough(self, stream: JointStream, accelerations: Sequence[float], path: Callable[[], np.ndarray]) -> bool:
        """Whether no tool gets too fast in this period nor while the robot stops."""
        assert self._speed_max is not None
        fastest = np.maximum(np.abs(stream.after(accelerations)[1]), np.abs(stream.peaks(accelerations)))
        if self._speed_bound(fastest) <= self._speed_max:
            return True
        ways = np.concatenate(([stream.position], path()))
        stride = -(-len(ways) // SPEED_PLACES)
        most = self._speed_max if stride == 1 else 0.99 * self._speed_max  # over several periods it is the mean that is seen
        return self._fastest(ways[::stride]) / stride <= most

    def _speed_bound(self, velocity: Sequence[float] | np.ndarray) -> float:
        """Speed in m/s that no tool exceeds at joint speeds (J,)."""
        return float((self._tool_levers @ np.abs(velocity)).max())

    def _fastest(self, ways: np.ndarray) -> float:
        """Speed in m/s of the fastest tool along poses (S, J) rad a period apart, NaN where it cannot be told."""
        assert self.model is not None
        moved = np.diff(self.model.points(ways)[:, : self.model.tools], axis=0)
        return float(np.sqrt((moved * moved).sum(axis=-1)).max(initial=0.0)) / self.config.dt_s

    def slowed(self, stream: JointStream, accelerations: Sequence[float]) -> tuple[list[float] | None, str]:
        """Joint speeds (J,) that a period may not exceed, on account of tool speed or a singular pose; and which.

        Returns:
            None where nothing has to be slower; speeds of 0 where the robot has to stand.
        """
        if self.model is None:
            return None, ""
        velocity = stream.peaks(accelerations)
        speeds, reason = None, ""
        if self._speed_max is not None:
            most = SPEED_SHARE * self._speed_max
            if self._speed_bound(velocity) > most:
                at = np.array(stream.position)
                fastest = self._fastest(np.stack((at, at + np.multiply(velocity, self.config.dt_s))))
                if fastest > most:
                    speeds, reason = [most / fastest * abs(v) for v in velocity], "tcp_speed"
        self._ticks += 1
        if self._ticks % self._every == 0 or self._share < 1.0:
            self._share = self._singular_share(stream, velocity)
        if self._share < 1.0:
            caps = [self._share * cap for cap in stream.velocity_cap]
            if any(abs(v) > cap for v, cap in zip(velocity, caps, strict=True)):
                speeds = caps if speeds is None else [min(a, b) for a, b in zip(speeds, caps, strict=True)]
                reason = "singularity"
        return speeds, reason

    def _singular_share(self, stream: JointStream, velocity: Sequence[float]) -> float:
        """Share of the joint speeds that may be had, from 1 down to 0 at a singular pose; 1 for motion away from it."""
        c = self.config
        if not np.isfinite(c.singularity_stop):
            return 1.0
        reach = stream.stop_reach([0.0] * stream.joints)
        seen_s = c.dt_s + 1.0 / SLOW_RATE_HZ
        ahead = [q + v * seen_s + (r if v > 0 else -r) for q, v, r in zip(stream.position, velocity, reach, strict=True)]
        worst = self.condition(ahead)
        if worst <= c.singularity_slow or worst <= self.condition(stream.position):
            return 1.0
        return max(0.0, (c.singularity_stop - worst) / (c.singularity_stop - c.singularity_slow))

    def condition(self, joints: Sequence[float]) -> float:
        """Largest condition number of any tool's Jacobian at joints (J,); translation alone counts for fewer than six joints."""
        assert self.model is not None
        worst = 1.0
        for jacobian in self.model.jacobians(np.array(joints, dtype=float)):
            rows = 6 if jacobian.shape[1] >= 6 else 3
            values = np.linalg.svd(jacobian[:rows], compute_uv=False)
            worst = max(worst, float(values[0] / max(values[-1], 1e-12)))
        return worst


def _planes(config: GateConfig, model: LinkModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normals (K, 3), offsets (K,) with the margin, and which points (P, K) they are for."""
    tools = np.arange(len(model.radii_m)) < model.tools
    planes: list[tuple[Sequence[float], float, np.ndarray]] = []
    boxes = ((config.workspace_low_m, config.workspace_high_m, tools), (config.cell_low_m, config.cell_high_m, np.ones_like(tools)))
    for low, high, which in boxes:
        for axis in range(3):
            for sign, bound in ((1.0, low[axis]), (-1.0, high[axis])):
                if np.isfinite(bound):
                    planes.append(((sign * np.eye(3)[axis]).tolist(), sign * bound, which))
    planes += [((a, b, c), d, np.ones_like(tools)) for a, b, c, d in config.keep_out]
    normals = np.array([normal for normal, _, _ in planes]).reshape(-1, 3)
    offsets = np.array([offset + config.workspace_margin_m for _, offset, _ in planes])
    applies = np.array([which for _, _, which in planes]).reshape(-1, len(tools)).T
    return normals, offsets, applies
