"""Broken, hostile and merely wild commands and measurements for a gate, and a judge of what it lets through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from robot_bridge.safety.config import GateConfig
from robot_bridge.safety.gate import SafetyGate
from sinew.protocols import Command, Observation

SCALES_RAD = (1e-310, 1e-6, 1e-3, 0.01, 0.1, 0.3, 2.0, 1e9)
"""How far targets jump."""
SETTLE_PERIODS = 100
"""In which a simulated robot comes to rest."""
ROUNDING = 1e-6
"""Share of a limit that differences of rounded positions may seem to be beyond it."""


@dataclass
class Judge:
    """Checks a stream of positions against the limits, one after the other."""

    config: GateConfig
    worst: dict[str, float] = field(default_factory=dict)
    """Largest share of each limit that was used: 1 is the limit."""
    violations: Counter[str] = field(default_factory=Counter)
    _differences: list[np.ndarray] = field(default_factory=list)

    def restart(self, position: np.ndarray) -> None:
        """The stream begins at rest."""
        still = np.zeros_like(position)
        self._differences = [np.array(position, dtype=float), still, still]

    def __call__(self, position: np.ndarray) -> None:
        """Take the next position (J,) rad."""
        c, (last, velocity, acceleration) = self.config, self._differences
        middle = (np.array(c.position_low_rad) + c.position_high_rad) / 2
        now_velocity = (position - last) / c.dt_s
        now_acceleration = (now_velocity - velocity) / c.dt_s
        used = {
            "position": np.abs(position - middle) / (np.array(c.position_high_rad) - middle),
            "velocity": np.abs(now_velocity) / c.velocity_max_rad_s,
            "acceleration": np.abs(now_acceleration) / c.acceleration_max_rad_s2,
            "jerk": np.abs(now_acceleration - acceleration) / c.dt_s / c.jerk_max_rad_s3,
        }
        for name, shares in used.items():
            self.judge(name, float(shares.max()))
        self._differences = [np.array(position, dtype=float), now_velocity, now_acceleration]

    def judge(self, name: str, share: float) -> None:
        """Take a share of some limit."""
        if not share <= self.worst.get(name, 0.0):
            self.worst[name] = share
        if not share <= 1.0 + ROUNDING:
            self.violations[name] += 1


class Wild:
    """Draws what a broken policy, its plumbing and a broken robot may send.

    Args:
        rng: source of randomness.
        joints: of the robot.
        broken: share of commands that are no proper command at all.
    """

    def __init__(self, rng: np.random.Generator, joints: int, broken: float = 0.004) -> None:
        self.rng, self.joints, self.broken = rng, joints, broken
        self.target = np.zeros(joints)
        self._velocity = np.zeros(joints)
        self._mode, self._left = 0, 0
        self._seen: Observation | None = None
        self._stuck = 0

    def command(self, now_ns: int, seq: int, last: np.ndarray, dt_s: float) -> Command:
        """A command at `now_ns`, where `last` (J,) rad was emitted before."""
        rng = self.rng
        if self._left <= 0:
            self._mode, self._left = int(rng.integers(5)), int(rng.integers(1, 60))
            self._velocity = rng.normal(size=self.joints) * rng.choice([0.0, 0.1, 1.0, 10.0])
        self._left -= 1
        if self._mode == 0:  # wherever
            self.target = last + rng.normal(size=self.joints) * rng.choice(SCALES_RAD)
        elif self._mode == 1:  # at a steady speed, also beyond all limits
            self.target = self.target + self._velocity * dt_s
        elif self._mode == 2:  # to and fro as fast as can be
            self.target = last + rng.choice([-0.4, 0.4], size=self.joints)
        elif self._mode == 3 and rng.random() < 0.1:  # near by
            self.target = last + rng.normal(size=self.joints) * 0.02
        sent: Any = self.target
        gripper: Any = rng.choice([0.0, 0.04, 0.2, -5.0, 1e300])
        stamp_ns = now_ns
        if rng.random() < self.broken:
            shapes = [self.target * np.nan, np.full(self.joints, np.inf), np.zeros(rng.integers(0, 9)), "abc", None, [[0.0]], object()]
            sent = shapes[rng.integers(len(shapes))]
        if rng.random() < self.broken / 2:
            gripper = rng.choice([np.nan, np.inf, -np.inf])
        if rng.random() < 0.01:
            stamp_ns -= int(rng.choice([2e8, -2e8, 1e12]))
            seq -= int(rng.integers(3))
        return Command(stamp_ns, seq, rng.choice([0.1, 1e9]), {"joint_position": sent, "gripper": gripper})

    def observation(self, now_ns: int, position: np.ndarray, gripper: float) -> Observation:
        """A measurement of a robot that is where it was sent, now and then not."""
        rng, values, stamp_ns = self.rng, np.array(position, dtype=float), now_ns
        if self._stuck > 0 and self._seen is not None:  # nothing new arrives
            self._stuck -= 1
            return self._seen
        if rng.random() < 0.002:
            self._stuck = int(rng.integers(1, 200))
        if rng.random() < self.broken / 4:
            stamp_ns += int(rng.choice([-3e8, 3e8]))
        if rng.random() < self.broken / 4:
            values = rng.choice([np.nan, np.inf, 5.0, 0.5]) + values
        self._seen = _seen(stamp_ns, values, gripper)
        return self._seen


class Physics(Protocol):
    """A simulated robot; `sim.RobotSim` is one."""

    @property
    def joint_position(self) -> np.ndarray: ...

    @property
    def gripper(self) -> float | np.ndarray: ...

    def reset(self, seed: int) -> None: ...

    def step(self, joint_target: np.ndarray, gripper_target: float | np.ndarray, duration_s: float) -> None: ...


def fuzz(
    gate: SafetyGate,
    actions: int,
    seed: int,
    start: np.ndarray,
    check: Callable[[np.ndarray], None] = lambda q: None,
    physics: Physics | None = None,
) -> Judge:
    """Send `actions` commands to a gate and judge every position it emits; a latch is released, and the gate seeded, at rest.

    Args:
        gate: any.
        actions: how many.
        seed: of the randomness.
        start: (J,) rad where the robot stands.
        check: called with every position: emitted, or measured where there is physics.
        physics: moves as it is told and is measured; None for a robot that is where it was sent.
    """
    c = gate.config
    wild, judge = Wild(np.random.default_rng(seed), len(start)), Judge(c)
    dt_ns, sent, gripper = round(c.dt_s * 1e9), np.array(start, dtype=float), c.gripper_low_m
    stopping, refused = 0, 0
    for i in range(1, actions + 1):
        now_ns = i * dt_ns
        measured = sent if physics is None else np.array(physics.joint_position)
        if gate.last_command is None:
            refused = refused + 1 if gate.seed(_seen(now_ns, measured, gripper), now_ns) else 0
            if refused > SETTLE_PERIODS and physics is not None:  # it was stopped where it may not start
                physics.reset(seed + i)
            sent = measured
            judge.restart(sent)
            wild.target = sent.copy()
        moving = gate.speed > 0
        verdict = gate.check(wild.command(now_ns, i, sent, c.dt_s), wild.observation(now_ns, measured, gripper), now_ns)
        if verdict.joint_position is not None:
            sent, gripper = verdict.joint_position, verdict.gripper[0]
            judge(sent)
            judge.judge("gripper", 2.0 if not c.gripper_low_m <= gripper <= c.gripper_high_m else 0.0)
            stopping = stopping + 1 if verdict.outcome in ("hold", "latched") and moving else 0
            judge.judge("stop_time", stopping * c.dt_s / c.stop_time_s)
        if physics is not None:
            physics.step(sent, gripper, c.dt_s)
            check(np.array(physics.joint_position))
        elif verdict.joint_position is not None:
            check(sent)
        if gate.latched and gate.speed == 0.0:
            gate.release("fuzz")
    return judge


def _seen(now_ns: int, position: np.ndarray, gripper: float) -> Observation:
    return Observation(now_ns, 0, {"joint_position": position, "joint_velocity": np.zeros(len(position)), "gripper": np.array(gripper)})
