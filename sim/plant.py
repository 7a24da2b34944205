"""A robot that follows recorded commands in many variants at once: what identification compares with what was measured."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import mujoco.rollout
import numpy as np

from sim.latency import Drive
from sim.model_fields import ModelFields
from sim.robots.config import find
from sim.sampling import Slot
from sinew.errors import InputError

_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
DELAY_MAX_STEPS = 6.0
"""Longest delay that is looked for, in control steps."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Commands to the joints of a robot and what was measured of them, at an even rate."""

    command: np.ndarray
    """(T, J) rad or m: the target that is reached at the end of each step."""
    position: np.ndarray
    """(T, J) at the beginning of each step."""
    velocity: np.ndarray
    """(T, J) likewise."""


@dataclass(frozen=True)
class Windows:
    """Equally long pieces of trajectories, each simulated by itself from what was measured at its beginning."""

    command: np.ndarray
    """(W, K + T, J): K commands before the window, then those in it."""
    position: np.ndarray
    """(W, T + 1, J)."""
    velocity: np.ndarray
    """(W, J) at the beginning."""

    def __len__(self) -> int:
        return len(self.command)

    def __getitem__(self, rows: slice | np.ndarray) -> Windows:
        return Windows(self.command[rows], self.position[rows], self.velocity[rows])


AWAY_M = 10.0
BEFORE = int(DELAY_MAX_STEPS) + 2
"""Commands before a window that are needed to know what is still under way."""


def windows(trajectories: Sequence[Trajectory], steps: int) -> Windows:
    """All whole windows of `steps` control steps, one after the other.

    Raises:
        InputError: no trajectory is long enough.
    """
    found = [
        (t.command[at - BEFORE : at + steps], t.position[at : at + steps + 1], t.velocity[at])
        for t in trajectories
        for at in range(BEFORE, len(t.position) - steps, steps)
    ]
    if not found:
        longest = max((len(t.position) for t in trajectories), default=0)
        raise InputError(f"the longest recorded piece has {longest} frames; {BEFORE + steps + 1} in a row are needed: take shorter windows")
    return Windows(*(np.stack(part) for part in zip(*found, strict=True)))


class Plant:
    """A robot with servos that touches nothing: objects lie far away, and no shapes collide.

    Args:
        model: compiled; every joint that is commanded has an actuator of position.
        joints: names in command order.
        actuators: likewise.
        rate_hz: commands per second.

    Raises:
        InputError: a name does not exist, or the rate is no whole number of physics steps.
    """

    def __init__(self, model: mujoco.MjModel, joints: Sequence[str], actuators: Sequence[str], rate_hz: float) -> None:
        self.model, self.joints, self.rate_hz = _in_step(model, rate_hz), tuple(joints), rate_hz
        ids = [find(model, "joint", name) for name in joints]
        self.joint_ids = np.array(ids)
        self._qpos, self._qvel = model.jnt_qposadr[ids], model.jnt_dofadr[ids]
        self.actuator_ids = self._ctrl = np.array([find(model, "actuator", name) for name in actuators])
        self._data = mujoco.MjData(self.model)
        self._pool = mujoco.rollout.Rollout(nthread=0)
        self.substeps = round(1.0 / (rate_hz * self.model.opt.timestep))

    def follow(self, slots: Sequence[Slot], variants: np.ndarray, given: Windows) -> np.ndarray:
        """Positions (C, W, T + 1, J) of variants (C, P) of the robot in all windows; NaN where one diverged.

        Args:
            slots: what the numbers of a variant are; `action_delay` in control steps and `servo_lag` in seconds act on commands.
            variants: one row each.
            given: what is followed.
        """
        fields, count, length = ModelFields(self.model, slots), len(given), given.position.shape[1] - 1
        models = [fields.write(values, copy.copy(self.model)) for values in variants]
        rows = [model for model in models for _ in range(count)]
        command = np.tile(given.command, (len(variants), 1, 1))
        state = self._begin(np.tile(given.position[:, 0], (len(variants), 1)), np.tile(given.velocity, (len(variants), 1)), command)
        drive = self._drive(slots, np.repeat(variants, count, axis=0), command)
        seen = np.empty((len(rows), length + 1, len(self.joints)))
        seen[:, 0] = np.tile(given.position[:, 0], (len(variants), 1))
        trace = np.empty((len(rows), self.substeps, state.shape[1]))
        for step in range(length):
            targets = drive.targets(command[:, BEFORE + step]).swapaxes(0, 1)
            whole = np.tile(self._still, (len(rows), self.substeps, 1))
            whole[..., self._ctrl] = targets
            self._pool.rollout(rows, self._data, state, whole, nstep=self.substeps, state=trace)
            state = trace[:, -1].copy()
            seen[:, step + 1] = state[:, 1 + self._qpos]
        return seen.reshape(len(variants), count, length + 1, len(self.joints))

    def _begin(self, position: np.ndarray, velocity: np.ndarray, command: np.ndarray) -> np.ndarray:
        """(N, …) states of the whole model; joints that nobody commands are where the model has them, held by their servos."""
        state = np.zeros((len(position), mujoco.mj_stateSize(self.model, _STATE)))
        state[:, 1 : 1 + self.model.nq] = self.model.qpos0
        free = self.model.jnt_qposadr[self.model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)]
        state[:, 1 + free] += AWAY_M
        state[:, 1 + self._qpos], state[:, 1 + self.model.nq + self._qvel] = position, velocity
        self._still = np.array([self.model.qpos0[self.model.jnt_qposadr[j]] for j in self.model.actuator_trnid[:, 0]])
        return state

    def _drive(self, slots: Sequence[Slot], values: np.ndarray, command: np.ndarray) -> Drive:
        """What is between commands and servos, with the commands before the windows under way."""
        drive = Drive(command[:, BEFORE - 1], self.substeps, self.model.opt.timestep, DELAY_MAX_STEPS)
        drive.history = np.stack([command[:, BEFORE - 1 - k] for k in range(len(drive.history))])
        drive.ideal = False
        for i, slot in enumerate(slots):
            if slot.what == "action_delay":
                drive.delay_steps = values[:, i]
            if slot.what == "servo_lag":
                drive.lag_s = values[:, i]
                drive.begin(np.ones(len(command), dtype=bool), command[:, 0])
                for k in range(1, BEFORE):
                    drive.targets(command[:, k])
        return drive

    def close(self) -> None:
        """Stop the threads."""
        self._pool.close()


def _in_step(model: mujoco.MjModel, rate_hz: float) -> mujoco.MjModel:
    """A copy without contacts whose physics step divides the control period: the longest one that is not longer than the model's own.

    Where it diverges it does not begin anew.
    """
    model = copy.copy(model)
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT) | int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    period = 1.0 / rate_hz
    model.opt.timestep = period / np.ceil(period / model.opt.timestep - 1e-6)
    return model
