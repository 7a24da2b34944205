"""Scripted experts: clean ones that solve a task, and ones that are imperfect the way people are.

White noise on actions is a poor model of a person: a flow policy averages it away for free. People aim wrong for a whole
episode, choose one of several ways, work at their own speed, hesitate, and keep failures; `HUMAN` does these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sim.interface import TaskInterface, make_interface
from sim.robots.config import RobotConfig
from sim.tasks import Phase, View
from sinew.errors import InputError, unknown

_GAIN = 0.55
_LEAD_STEPS = 1.0


@dataclass(frozen=True, kw_only=True)
class ExpertStyle:
    """How an expert deviates from the plan. Everything but `noise` is drawn once per episode, from the episode's seed."""

    noise: float = 0.0
    """Standard deviation of white action noise, as a fraction of half the action range."""
    aim_error_probability: float = 0.0
    """Share of the episodes whose grasp is aimed wrong along world x."""
    aim_error_m: tuple[float, float] = (0.0, 0.0)
    """The wrong aim along world x, uniform between the two: one-sided, as a misjudged depth is."""
    aim_jitter_m: float = 0.0
    """Standard deviation of the aim in x and y, in every episode."""
    speed: tuple[float, float] = (1.0, 1.0)
    """Share of the largest step that is used, uniform between the two."""
    height_m: tuple[float, float] = (0.0, 0.0)
    """Added to the height of the first leg, uniform between the two: high and low approaches."""
    side_m: float = 0.0
    """The first leg ends this far to the left or the right, at random: two ways to come."""
    pause_probability: float = 0.0
    """Chance per step to begin a hesitation."""
    pause_steps: tuple[int, int] = (2, 5)
    """Length of a hesitation, uniform between the two, both included."""


CLEAN = ExpertStyle()
HUMAN = ExpertStyle(
    aim_error_probability=0.6,
    aim_error_m=(-0.06, -0.025),
    aim_jitter_m=0.003,
    speed=(0.6, 1.0),
    height_m=(-0.03, 0.04),
    side_m=0.03,
    pause_probability=0.02,
    pause_steps=(2, 5),
)
STYLES = {"clean": CLEAN, "human": HUMAN}


class Expert:
    """A task's scripted solution in N worlds, from observations alone.

    Args:
        interface: task interface with ee_delta actions.
        style: how it deviates.
        num_envs: N; worlds are addressed by row.

    Raises:
        InputError: the action kind is not ee_delta.
    """

    def __init__(self, interface: TaskInterface, style: ExpertStyle = CLEAN, num_envs: int = 1) -> None:
        if interface.action != "ee_delta":
            raise InputError(f"scripted experts act in ee_delta, not {interface.action}; make the environment with action='ee_delta'")
        self.interface, self.style, self.num_envs = interface, style, num_envs
        self._phases: tuple[Phase, ...] = interface.scene.task.expert()
        self._low, self._high = np.array(interface.action_spec.low), np.array(interface.action_spec.high)
        self._rng = [np.random.default_rng(i) for i in range(num_envs)]
        self._phase = np.zeros(num_envs, dtype=np.int64)
        self._age = np.zeros(num_envs, dtype=np.int64)
        self._dwell = np.zeros(num_envs, dtype=np.int64)
        self._pause = np.zeros(num_envs, dtype=np.int64)
        self._fresh = np.ones(num_envs, dtype=bool)
        self._aim, self._first = np.zeros((num_envs, 3)), np.zeros((num_envs, 3))
        self._speed = np.ones(num_envs)
        self._previous: View | None = None
        self._start: View | None = None
        self.reset(seeds=range(num_envs))

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """Begin new episodes in worlds `ids` (None for all); `seeds` (one each) fix how the expert deviates in them."""
        rows = np.arange(self.num_envs) if ids is None else np.asarray(ids, dtype=np.int64).reshape(-1)
        style = self.style
        for i, row in enumerate(rows):
            if seeds is not None:
                # The scene is drawn from the same seed; the second word keeps the two streams apart.
                self._rng[row] = np.random.default_rng((int(list(seeds)[i]), 1))
            rng = self._rng[row]
            wrong = (rng.random() < style.aim_error_probability) * rng.uniform(*style.aim_error_m)
            self._aim[row, :2] = style.aim_jitter_m * rng.standard_normal(2) + (wrong, 0.0)
            self._first[row] = (0.0, style.side_m * rng.choice((-1.0, 1.0)), rng.uniform(*style.height_m))
            self._speed[row] = rng.uniform(*style.speed)
        for counter in (self._phase, self._age, self._dwell, self._pause):
            counter[rows] = 0
        self._fresh[rows] = True

    @property
    def phase(self) -> np.ndarray:
        """(N,) index of the leg each world is in."""
        return self._phase.copy()

    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Actions (N, A) float32 in physical units for observations {key: (N, …)}; advances the legs."""
        now = self.interface.view({k: np.asarray(v) for k, v in obs.items() if not k.startswith("observation.images")})
        if self._previous is None or self._start is None:
            self._previous, self._start = now, now
        self._previous = _merge(self._previous, now, self._fresh)
        self._start = _merge(self._start, now, self._fresh)
        self._fresh[:] = False
        self._advance(now)
        action = self._command(now)
        self._previous = now
        return torch.from_numpy(action.astype(np.float32))

    def _goal(self, phase: Phase, index: int, now: View) -> np.ndarray:
        assert self._start is not None
        goal = np.array(phase.goal(now, self._start), dtype=np.float64)
        if phase.aimed and index == 0:
            goal = goal + self._first
        return goal + self._aim if phase.aimed else goal

    def _advance(self, now: View) -> None:
        """Go on to the next leg where this one is done."""
        done = np.zeros(self.num_envs, dtype=bool)
        for index, phase in enumerate(self._phases[:-1]):
            here = self._phase == index
            if not here.any():
                continue
            error = np.linalg.norm(self._goal(phase, index, now) - now.tools[phase.arm], axis=1)
            if phase.yaw is not None:
                error = error + 0.1 * np.abs(wrap(phase.yaw(now, self._start_view()) - now.tool_yaws[phase.arm]))
            reached = error < phase.tolerance_m
            self._dwell[here & (reached | (self._dwell > 0))] += 1
            done |= here & ((self._dwell > phase.dwell_steps) | (self._age >= phase.limit_steps))
        self._age += 1
        self._phase[done] += 1
        self._age[done] = 0
        self._dwell[done] = 0
        self._start = _merge(self._start_view(), now, done)

    def _start_view(self) -> View:
        assert self._start is not None
        return self._start

    def _command(self, now: View) -> np.ndarray:
        assert self._previous is not None
        arms = len(now.tools)
        width = len(self._low) // arms
        action = np.zeros((self.num_envs, len(self._low)))
        for index, phase in enumerate(self._phases):
            here = np.flatnonzero(self._phase == index)
            if not len(here):
                continue
            at = phase.arm * width
            velocity = now.tools[phase.arm] - self._previous.tools[phase.arm]
            delta = _GAIN * (self._goal(phase, index, now) - now.tools[phase.arm] - _LEAD_STEPS * velocity)
            limit = self._high[at] * self._speed[:, None]
            peak = np.abs(delta).max(axis=1, keepdims=True)
            action[here, at : at + 3] = (delta * np.minimum(1.0, limit / np.maximum(peak, 1e-9)))[here]
            if phase.yaw is not None and self.interface.scene.task.axes == "xyz_yaw":
                turn = 0.5 * wrap(phase.yaw(now, self._start_view()) - now.tool_yaws[phase.arm])
                action[here, at + 3] = np.clip(turn, self._low[at + 3], self._high[at + 3])[here]
            for arm in range(len(now.grippers)):
                action[here, arm * width + width - 1] = self._opening(arm, index)
        return self._deviate(action)

    def _opening(self, arm: int, index: int) -> float:
        """Opening of an arm in a leg: that of the newest leg of this arm, open before its first."""
        own = [p.opening_m for p in self._phases[: index + 1] if p.arm == arm]
        return own[-1] if own else float(self._high[-1])

    def _deviate(self, action: np.ndarray) -> np.ndarray:
        style = self.style
        if style.pause_probability > 0:
            for row in range(self.num_envs):
                draw = self._rng[row].random()
                if self._pause[row] == 0 and draw < style.pause_probability:
                    self._pause[row] = self._rng[row].integers(style.pause_steps[0], style.pause_steps[1] + 1)
            gripping = np.array([name.endswith("gripper") for name in self.interface.action_spec.names])
            action[np.ix_(self._pause > 0, ~gripping)] = 0.0
            self._pause = np.maximum(self._pause - 1, 0)
        if style.noise > 0:
            half = (self._high - self._low) / 2
            action += style.noise * half * np.stack([rng.standard_normal(action.shape[1]) for rng in self._rng])
        return np.clip(action, self._low, self._high)


def wrap(angle: np.ndarray) -> np.ndarray:
    """Angles in rad brought to [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _merge(old: View, new: View, rows: np.ndarray) -> View:
    """`old` with `rows` (N,) bool taken from `new`."""

    def pick(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(rows[:, None] if a.ndim == 2 else rows, b, a)

    def each(name: str) -> tuple[np.ndarray, ...]:
        return tuple(pick(a, b) for a, b in zip(getattr(old, name), getattr(new, name), strict=True))

    return View(
        tools=each("tools"),
        tool_yaws=each("tool_yaws"),
        grippers=each("grippers"),
        positions={k: pick(v, new.positions[k]) for k, v in old.positions.items()},
        rotations={k: pick(v, new.rotations[k]) for k, v in old.rotations.items()},
    )


def make_expert(
    task: str,
    quality: str = "clean",
    num_envs: int = 1,
    style: ExpertStyle | None = None,
    noise: float = 0.0,
    seed: int = 0,
    robot: RobotConfig | None = None,
) -> Expert:
    """The scripted expert of a registered task.

    Args:
        task: its name.
        quality: "clean" or "human".
        num_envs: N.
        style: replaces the style that `quality` names.
        noise: white action noise, as in `ExpertStyle.noise`, added to the style's own.
        robot: the robot that takes the place of the task's own arm.
        seed: worlds start with deviations seed, seed + 1, …; `reset` gives others.

    Raises:
        InputError: unknown task or quality.
    """
    if quality not in STYLES:
        raise unknown("expert quality", quality, STYLES)
    chosen = style or STYLES[quality]
    expert = Expert(make_interface(task, robot=robot), replace(chosen, noise=chosen.noise + noise), num_envs)
    expert.reset(seeds=range(seed, seed + num_envs))
    return expert


def reached(task: str, keys: Sequence[str], seeds: Sequence[int]) -> dict[str, Tensor]:
    """What the clean expert of a task has reached at the end of an episode in the scenes of `seeds`, {key: (n, D)}.

    Args:
        task: its name.
        keys: vectors of the observation.
        seeds: one scene each.
    """
    from sim.vec_env import MujocoVecEnv

    env = MujocoVecEnv(make_interface(task), len(seeds))
    try:
        expert, obs = make_expert(task, num_envs=len(seeds)), env.reset(list(seeds))
        expert.reset(seeds=seeds)
        final = {key: obs[key].clone() for key in keys}
        running = torch.ones(len(seeds), dtype=torch.bool)
        while running.any():
            obs, _, terminated, truncated, info = env.step(expert.act(obs))
            over = running & (terminated | truncated)
            for key in keys:
                final[key][over] = info["final_observation"][key][over]
            running &= ~over
        return final
    finally:
        env.close()
